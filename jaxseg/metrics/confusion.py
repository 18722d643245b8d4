"""The confusion matrix, counted on the device and summed on the host, and its ratios.

Ratios are taken once, from counts over the whole data set: a mean over images or
batches of their own ratios is another number, and not the one papers report.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def confusion_counts(
    prediction: jax.Array,
    label: jax.Array,
    num_classes: int,
    ignore_index: int = 255,
) -> jax.Array:
    """Confusion matrix of one batch, exact in integers, for use under `jit`.

        counts[i, j] = number of pixels of class i predicted as j

    Void pixels are counted nowhere, whatever is predicted there, so they are no false
    positives either. Nor are pixels whose label or prediction is no class at all:
    labels are checked where they are read, not here.

    Args:
        prediction: class numbers `[...]`, integers.
        label: true class numbers `[...]`, integers, `ignore_index` where void.
        num_classes: K.
        ignore_index: label of the void pixels.

    Returns:
        int32 `[K, K]`, rows truth, columns prediction; exact below 2^31 pixels.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_shapes(prediction, label)
    prediction = prediction.astype(jnp.int32)
    # Void becomes -1, which is no class, as ignore_index may be a class's own number.
    label = jnp.where(label == ignore_index, -1, label.astype(jnp.int32))
    return jax.lax.platform_dependent(
        prediction,
        label,
        tpu=lambda p, t: _counts_by_matmul(p, t, num_classes),
        default=lambda p, t: _counts_by_scatter(p, t, num_classes),
    )


def _check_shapes(prediction, label):
    if prediction.shape != label.shape:
        raise ValueError(
            f"predictions of shape {prediction.shape} do not fit labels of shape "
            f"{label.shape}"
        )


def _counts_by_scatter(prediction, label, num_classes):
    """One addition a pixel: the fastest where memory takes scattered writes well."""
    is_class = (label >= 0) & (prediction >= 0) & (prediction < num_classes)
    cell = jnp.where(is_class, label * num_classes + prediction, num_classes**2)
    counts = jnp.zeros(num_classes**2, jnp.int32)
    return counts.at[cell].add(1, mode="drop").reshape(num_classes, num_classes)


def _counts_by_matmul(prediction, label, num_classes):
    """A product of one-hot maps: TPUs multiply matrices fast and scatter slowly.

    int8 factors summed in int32, since a float32 sum would stop at 2^24.
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
    """Confusion counts over any number of pixels, and the ratios taken from them.

    Add up the batches, then compute once:

        confusion = Confusion.zeros(num_classes)
        for batch in batches:
            confusion += Confusion(confusion_counts(...))
        result = confusion.compute(class_names)

    Attributes:
        counts: int64 `[K, K]`, rows truth, columns prediction; exact below 2^63 pixels.
    """

    counts: np.ndarray

    def __post_init__(self):
        counts = np.asarray(self.counts)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
            raise ValueError(f"counts must be [K, K], not {counts.shape}")
        if not np.issubdtype(counts.dtype, np.integer):
            raise ValueError(f"counts must be integers, not {counts.dtype}")
        object.__setattr__(self, "counts", counts.astype(np.int64))

    @classmethod
    def zeros(cls, num_classes: int) -> "Confusion":
        """The empty matrix of K classes, to add to."""
        return cls(np.zeros((num_classes, num_classes), np.int64))

    @classmethod
    def of(
        cls,
        prediction: np.ndarray,
        label: np.ndarray,
        num_classes: int,
        ignore_index: int = 255,
    ) -> "Confusion":
        """That of maps on the host; `confusion_counts` says what is counted.

        Args:
            prediction: class numbers `[...]`, integers.
            label: true class numbers `[...]`, integers, `ignore_index` where void.
            num_classes: K.
            ignore_index: label of the void pixels.

        Raises:
            ValueError: if the shapes differ.
        """
        _check_shapes(prediction, label)
        is_class = (label != ignore_index) & (label >= 0) & (label < num_classes)
        is_class &= (prediction >= 0) & (prediction < num_classes)
        cell = label[is_class].astype(np.int64) * num_classes + prediction[is_class]
        counts = np.bincount(cell, minlength=num_classes**2)
        return cls(counts.reshape(num_classes, num_classes))

    def __add__(self, other: "Confusion") -> "Confusion":
        """Counts of both sets of pixels together."""
        if self.counts.shape != other.counts.shape:
            raise ValueError(
                f"cannot add confusions of {len(self.counts)} and "
                f"{len(other.counts)} classes"
            )
        return Confusion(self.counts + other.counts)

    merge = __add__

    def compute(self, class_names: Sequence[str], absent: str = "exclude") -> dict:
        """Accuracies and intersections over union of the pixels counted.

        With n_ij the counts, t_i = sum_j n_ij and p_i = sum_j n_ji,

            pixel_accuracy = sum_i n_ii / sum_i t_i
            accuracy_i     = n_ii / t_i
            iou_i          = n_ii / (t_i + p_i - n_ii)
            fw_iou         = sum_i t_i iou_i / sum_i t_i

        A class absent from the truth has no accuracy (NaN); one that is also never
        predicted has no IoU (NaN), but predicted where it is not, its IoU is 0.
        The means (`mean_accuracy`, `miou`) of "exclude" are over the classes that have
        the value, as FCN's; those of "zero" are over all K with 0 for the missing, as
        SegNet's. The values by class are the same with both. Without a single valid
        pixel there is nothing to say, and every figure is NaN.

        Args:
            class_names: K different names.
            absent: "exclude" or "zero".

        Returns:
            {"pixel_accuracy", "mean_accuracy", "miou", "fw_iou": float in [0, 1] or
            NaN; "iou", "accuracy": {class name: float in [0, 1] or NaN}}

        Raises:
            ValueError: for names that do not fit the counts, or an unknown `absent`.

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
    """Refuses, by ValueError, class names that do not fit the counts."""
    if len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class names for {num_classes} classes")
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"class names must differ: {', '.join(class_names)}")


def _ratio(part, whole):
    """part / whole in float64, NaN where the whole is 0."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def format_table(result: Mapping) -> str:
    """Plain-text table of a result of `Confusion.compute`, in percent.

    Args:
        result: the dictionary `Confusion.compute` returns.

    Returns:
        Aligned lines without a final line break: one of IoU and accuracy for each
        class, one of their means, then pixel accuracy and frequency-weighted IoU. "-"
        stands for a class that has no such value.
    """
    rows = [("class", "IoU", "accuracy")]
    rows += [
        (name, _percent(iou), _percent(result["accuracy"][name]))
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
