"""Colours for classes that bring none."""

import numpy as np


def voc_palette(num_colours: int) -> tuple[tuple[int, int, int], ...]:
    """The colour map of PASCAL VOC: distinct colours for up to 256 classes.

    Bit j of the three colour channels, from the highest, is bits 3j, 3j+1 and 3j+2 of
    the class number.

    Args:
        num_colours: how many, from 0 to 256.

    Returns:
        RGB tuples of 0..255.

    Source: PASCAL VOC development kit, `VOClabelcolormap.m`.
    """
    index = np.arange(num_colours)[:, None] >> np.arange(0, 24, 3)[None, :]
    weight = 128 >> np.arange(8)
    channels = [((index >> c & 1) * weight).sum(1) for c in range(3)]
    return tuple(tuple(int(v) for v in colour) for colour in zip(*channels))
