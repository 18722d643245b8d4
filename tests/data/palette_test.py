import numpy as np
import pytest

from jaxseg.data.datasets import camvid
from jaxseg.data.palette import distinct_palette, named_palette, oklab, voc_palette

INK_PAPER_VOID = ((0, 0, 0), (255, 255, 255), (224, 224, 192))


def distances_to(some, others):
    return np.linalg.norm(oklab(some)[:, None] - oklab(others), axis=-1)


def least_distance(colors):
    pairs = np.triu_indices(len(colors), 1)
    return distances_to(colors, colors)[pairs].min()


def test_oklab_of_known_colors():
    # Ottosson's own figures for white, and for red, green and blue.
    expected = [
        [1, 0, 0],
        [0.62796, 0.22486, 0.12585],
        [0.86644, -0.23389, 0.17950],
        [0.45201, -0.03246, -0.31153],
    ]
    colors = [(255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    np.testing.assert_allclose(oklab(colors), expected, atol=1e-4)


@pytest.mark.parametrize(
    "count, least", [(2, 0.42), (11, 0.19), (21, 0.16), (150, 0.068), (256, 0.054)]
)
def test_distinct_colors_are_far_apart(count, least):
    colors = distinct_palette(count)
    assert len(colors) == count
    assert least_distance(colors) > least
    assert distances_to(INK_PAPER_VOID, colors).min() > least
    if count > 2:
        assert least_distance(voc_palette(count)) < least / 4


def test_distinct_colors_do_not_change_with_their_number():
    assert distinct_palette(256)[:30] == distinct_palette(30)
    assert distinct_palette(0) == ()
    with pytest.raises(ValueError, match="not 257"):
        distinct_palette(257)


def test_none_is_left_out_that_is_farther_than_those_chosen():
    colors = distinct_palette(40)
    steps = np.linspace(0, 255, 20).round()
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    left = distances_to(grid, colors + INK_PAPER_VOID).min(axis=1).max()
    assert left <= least_distance(colors)


def test_the_data_sets_own():
    cityscapes, ade = named_palette("cityscapes", 19), named_palette("ade20k", 150)
    assert cityscapes[0] == (128, 64, 128)  # road
    assert cityscapes[13] == (0, 0, 142)  # car
    assert cityscapes[18] == (119, 11, 32)  # bicycle
    assert len(set(cityscapes)) == 19
    assert ade[0] == (120, 120, 120)  # wall
    assert ade[2] == (6, 230, 230)  # sky
    assert ade[149] == (92, 0, 255)  # flag
    assert len(set(ade)) == 149
    assert ade[6] == ade[48]  # road, skyscraper
    assert named_palette("camvid", 11) == camvid.PALETTE
    assert named_palette("voc", 21) == voc_palette(21)
    assert named_palette("distinct", 7) == distinct_palette(7)


def test_unknown_names_and_numbers_are_refused():
    with pytest.raises(ValueError, match=r"unknown palette 'viridis'.*camvid, city"):
        named_palette("viridis", 3)
    with pytest.raises(ValueError, match="'cityscapes' is for 19 classes, not 20"):
        named_palette("cityscapes", 20)
