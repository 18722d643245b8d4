"""The confusion matrix, counted on the device and summed on the host, and its ratios.

Ratios are computed once, from the counts of the whole data set. A mean of the ratios of
images or batches is a different number, and not the one that papers report.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.utils.text import printable

ArrayLike = jax.Array | np.ndarray

MAX_CLASSES = 2**14
"""Largest number of classes: the matrix of more does not fit into 2 GiB."""


def confusion_counts(
    prediction: jax.Array,
    label: jax.Array,
    num_classes: int,
    ignore_index: int = 255,
) -> jax.Array:
    """Confusion matrix of one batch, for use in `jit`.

        counts[i, j] = number of pixels of class i predicted as j

    Void pixels are not counted, so no prediction there is a false positive. Pixels
    whose label or prediction is not a class are not counted; labels are checked when
    they are read.

    Args:
        prediction: predicted classes, integers [...].
        label: true classes, integers [...], `ignore_index` for void.
        num_classes: K.
        ignore_index: label of the void pixels.

    Returns:
        int32 [K, K], rows truth, columns prediction; exact below 2^31 pixels.

    Raises:
        ValueError: if the shapes differ, an array does not have integers, or K is out of
            range.
    """
    check_num_classes(num_classes)
    check_maps(prediction, label)
    prediction = prediction.astype(jnp.int32)
    # Void becomes -1, because ignore_index may be the index of a class.
    label = jnp.where(label == ignore_index, -1, label.astype(jnp.int32))
    return jax.lax.platform_dependent(
        prediction,
        label,
        tpu=lambda p, t: _counts_by_matmul(p, t, num_classes),
        default=lambda p, t: _counts_by_scatter(p, t, num_classes),
    )


def check_num_classes(num_classes: int) -> None:
    """Raises a ValueError unless there can be a confusion matrix of K classes."""
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(
            f"num_classes is {num_classes}; metrics need 1 to {MAX_CLASSES} classes"
        )


def check_maps(prediction: ArrayLike, label: ArrayLike) -> None:
    """Raises a ValueError unless both have integers, and the same shape."""
    if np.shape(prediction) != np.shape(label):
        raise ValueError(
            f"predictions have shape {np.shape(prediction)}, but labels have shape "
            f"{np.shape(label)}; they must be equal"
        )
    for name, x in (("predictions", prediction), ("labels", label)):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"{name} must be integers, not {x.dtype}")


def checked_counts(name: str, counts: Any) -> np.ndarray:
    """Counts as int64.

    Raises:
        ValueError: if they are not integers, do not fit into int64, or are negative.
    """
    counts = np.asarray(counts)
    if not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"{name} must be integers, not {counts.dtype}")
    if counts.size and (counts.min() < 0 or counts.max() > np.iinfo(np.int64).max):
        raise ValueError(f"{name} must be from 0 to 2^63 - 1; one is {counts.min()}")
    return counts.astype(np.int64)


def _counts_by_scatter(prediction, label, num_classes):
    """One addition per pixel: the fastest form on CPUs and GPUs."""
    is_class = (label >= 0) & (prediction >= 0) & (prediction < num_classes)
    cell = jnp.where(is_class, label * num_classes + prediction, num_classes**2)
    counts = jnp.zeros(num_classes**2, jnp.int32)
    return counts.at[cell].add(1, mode="drop").reshape(num_classes, num_classes)


def _counts_by_matmul(prediction, label, num_classes):
    """A product of one-hot maps: on TPUs, matrix products are fast, scatters slow.

    Products of int8, summed in int32, since float32 is exact only up to 2^24.
    """
    pixels = tuple(range(label.ndim))
    return jax.lax.dot_general(
        jax.nn.one_hot(label, num_classes, dtype=jnp.int8),
        jax.nn.one_hot(prediction, num_classes, dtype=jnp.int8),
        ((pixels, pixels), ((), ())),
        preferred_element_type=jnp.int32,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Confusion:
    """A confusion matrix of any number of pixels, and the metrics computed from it.

    Add up the batches, then compute once:

        confusion = Confusion.zeros(num_classes)
        for batch in batches:
            confusion += Confusion(confusion_counts(...))
        result = confusion.compute(class_names)

    Attributes:
        counts: int64 [K, K], rows truth, columns prediction; exact below 2^63 pixels.
    """

    counts: np.ndarray

    def __post_init__(self):
        counts = np.asarray(self.counts)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
            raise ValueError(f"counts must be [K, K], not {counts.shape}")
        check_num_classes(len(counts))
        object.__setattr__(self, "counts", checked_counts("counts", counts))

    @classmethod
    def zeros(cls, num_classes: int) -> "Confusion":
        """The confusion matrix of no pixels."""
        check_num_classes(num_classes)
        return cls(np.zeros((num_classes, num_classes), np.int64))

    @classmethod
    def of(
        cls,
        prediction: np.ndarray,
        label: np.ndarray,
        num_classes: int,
        ignore_index: int = 255,
    ) -> "Confusion":
        """The confusion matrix of maps on the host; see `confusion_counts`.

        Args:
            prediction: predicted classes, integers [...].
            label: true classes, integers [...], `ignore_index` for void.
            num_classes: K.
            ignore_index: label of the void pixels.

        Returns:
            The confusion matrix.

        Raises:
            ValueError: as for `confusion_counts`.
        """
        check_num_classes(num_classes)
        check_maps(prediction, label)
        is_class = (label != ignore_index) & (label >= 0) & (label < num_classes)
        is_class &= (prediction >= 0) & (prediction < num_classes)
        # Both in int64: int64 plus uint64 would be float64.
        true, predicted = (x[is_class].astype(np.int64) for x in (label, prediction))
        cell = true * num_classes + predicted
        counts = np.bincount(cell, minlength=num_classes**2)
        return cls(counts.reshape(num_classes, num_classes))

    def __add__(self, other: "Confusion") -> "Confusion":
        """The counts of both sets of pixels together."""
        if self.counts.shape != other.counts.shape:
            raise ValueError(
                f"cannot add confusions of {len(self.counts)} and "
                f"{len(other.counts)} classes"
            )
        return Confusion(self.counts + other.counts)

    merge = __add__

    def compute(
        self, class_names: Sequence[str], absent: str = "exclude"
    ) -> dict[str, Any]:
        """Accuracies and intersections over union (IoU).

        With the counts n_ij, t_i = sum_j n_ij and p_i = sum_j n_ji,

            pixel_accuracy = sum_i n_ii / sum_i t_i
            accuracy_i     = n_ii / t_i
            iou_i          = n_ii / (t_i + p_i - n_ii)
            fw_iou         = sum_i t_i iou_i / sum_i t_i

        A class that is absent from the truth has no accuracy (NaN). If it is not
        predicted either, it has no IoU (NaN); if it is predicted, its IoU is 0.
        The means (`mean_accuracy`, `miou`) are over the classes that have a value with
        absent="exclude", as in FCN, and over all K classes, with 0 for missing values,
        with absent="zero", as in SegNet. The values by class are the same for both.
        Without any valid pixel all metrics are NaN.

        Args:
            class_names: K different names.
            absent: "exclude" or "zero", see above.

        Returns:
            {"pixel_accuracy", "mean_accuracy", "miou", "fw_iou": float in [0, 1] or
            NaN; "iou", "accuracy": {class name: float in [0, 1] or NaN}}

        Raises:
            ValueError: if the names do not match the counts, or `absent` is unknown.

        Source: FCN, section 5, and its score.py (nanmean); SegNet's
            compute_test_results.m (mean over all classes).
        """
        check_names(class_names, len(self.counts))
        if absent not in ("exclude", "zero"):
            raise ValueError(f"unknown absent {absent!r}; known: exclude, zero")

        hit = np.diagonal(self.counts)
        truth = self.counts.sum(axis=1)
        union = truth + self.counts.sum(axis=0) - hit
        accuracy = _ratio(hit, truth)
        iou = _ratio(hit, union)
        pixels = truth.sum()

        def mean(values):
            if absent == "zero" and pixels:
                return float(np.nan_to_num(values).mean())
            values = values[~np.isnan(values)]
            return float(values.mean()) if values.size else float("nan")

        return {
            "pixel_accuracy": float(_ratio(hit.sum(), pixels)),
            "mean_accuracy": mean(accuracy),
            "miou": mean(iou),
            "fw_iou": float(np.sum(_ratio(truth, pixels) * np.nan_to_num(iou))),
            "iou": dict(zip(class_names, iou.tolist())),
            "accuracy": dict(zip(class_names, accuracy.tolist())),
        }


def check_names(class_names: Sequence[str], num_classes: int) -> None:
    """Raises a ValueError unless there are K different class names."""
    if len(class_names) != num_classes:
        raise ValueError(
            f"{len(class_names)} class names for {num_classes} classes; give one each"
        )
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"class names must differ: {', '.join(class_names)}")


def _ratio(numerator, denominator):
    """The ratio in float64, NaN if the denominator is 0."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(numerator, denominator)


def format_table(result: Mapping[str, Any]) -> str:
    """Formats a result of `Confusion.compute` as a plain-text table, in percent.

    Args:
        result: dictionary from `Confusion.compute`.

    Returns:
        Aligned lines without a final line break: IoU and accuracy of each class, their
        means, then pixel accuracy and frequency-weighted IoU, with "-" for NaN.
        Control characters in names are escaped.
    """
    rows = [("class", "IoU", "accuracy")]
    rows += [
        (printable(name), _percent(iou), _percent(result["accuracy"][name]))
        for name, iou in result["iou"].items()
    ]
    rows.append(("mean", _percent(result["miou"]), _percent(result["mean_accuracy"])))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {iou:>6}  {acc:>8}" for name, iou, acc in rows]
    rule = "-" * len(lines[0])
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    return "\n".join(
        [
            *lines,
            f"pixel accuracy {_percent(result['pixel_accuracy'])}, "
            f"frequency-weighted IoU {_percent(result['fw_iou'])} (all in percent)",
        ]
    )


def _percent(value):
    return "-" if np.isnan(value) else f"{100 * value:.1f}"
