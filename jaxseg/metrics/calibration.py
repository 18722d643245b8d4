"""Calibration: whether the confidence of a model equals its accuracy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NUM_BINS = 15


def calibration_counts(
    probabilities: jax.Array,
    label: jax.Array,
    num_bins: int = NUM_BINS,
    ignore_index: int = 255,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Counts the pixels of a batch by the confidence of the model, for use in `jit`.

    Confidence is the largest probability. Pixel x is in bin m of M if

        m / M < max_k p_k(x) <= (m + 1) / M

    Void pixels, and pixels whose label is not a class, are not counted.

    Args:
        probabilities: float32 in [0, 1], [..., K], which sum to 1 over the classes.
        label: true classes, integers [...], `ignore_index` for void.
        num_bins: number M of bins of equal width.
        ignore_index: label of the void pixels.

    Returns:
        For each bin, [M]: the number of pixels (int32, exact below 2^31), the sum of
        their confidence (float32), and the number of correct predictions (int32). Sum
        them over devices.

    Raises:
        ValueError: if the shapes do not fit, labels are not integers, or there are no
            classes or no bins.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    if probabilities.shape[:-1] != label.shape:
        raise ValueError(
            f"probabilities have shape {probabilities.shape} and labels have shape "
            f"{label.shape}; expected [..., K] and [...]"
        )
    num_classes = probabilities.shape[-1]
    if num_classes < 1 or num_bins < 1:
        raise ValueError(
            f"there are {num_classes} classes and {num_bins} bins; both must be at "
            "least 1"
        )
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, not {label.dtype}")
    prediction = jnp.argmax(probabilities, axis=-1)
    confidence = jnp.max(probabilities, axis=-1).astype(jnp.float32)
    label = jnp.where(label == ignore_index, -1, label.astype(jnp.int32))
    valid = (label >= 0) & (label < num_classes)
    number = jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1
    number = jnp.where(valid, jnp.clip(number, 0, num_bins - 1), -1)
    inside = jax.nn.one_hot(number, num_bins, dtype=bool)

    def total(values):
        # XLA sums in blocks, so float32 stays accurate over millions of pixels.
        pixels = tuple(range(values.ndim))
        return jnp.where(inside, values[..., None], 0).sum(axis=pixels)

    count = total(jnp.ones_like(label))
    correct = total((prediction == label).astype(jnp.int32))
    return count, total(confidence), correct


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Counts of pixels by confidence: the data of a reliability diagram.

    Add up the batches, then compute once:

        calibration = Calibration.zeros()
        for batch in batches:
            calibration += Calibration(*calibration_counts(...))
        result = calibration.compute()

    Attributes:
        count: number of pixels in each bin, int64 [M].
        confidence: sum of their confidence, float64 [M].
        correct: number of correct predictions among them, int64 [M].
    """

    count: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray

    def __post_init__(self):
        for name, kind in _KINDS.items():
            values = np.asarray(getattr(self, name))
            # Written so that NaN fails, too.
            if values.ndim != 1 or not np.all(values >= 0) or not len(values):
                raise ValueError(f"{name} must be [M] of values from 0, not {values}")
            object.__setattr__(self, name, values.astype(kind))
        if not len(self.count) == len(self.confidence) == len(self.correct):
            raise ValueError("count, confidence and correct must have the same length")

    @classmethod
    def zeros(cls, num_bins: int = NUM_BINS) -> "Calibration":
        """The counts of no pixels in M bins."""
        return cls(*np.zeros((3, num_bins)))

    def __add__(self, other: "Calibration") -> "Calibration":
        """The counts of both sets of pixels together."""
        if len(self.count) != len(other.count):
            raise ValueError(
                f"cannot add calibrations of {len(self.count)} and "
                f"{len(other.count)} bins"
            )
        return Calibration(
            *(getattr(self, name) + getattr(other, name) for name in _KINDS)
        )

    def compute(self) -> dict[str, Any]:
        """Expected calibration error, and the reliability diagram.

            ece = sum_m n_m / n |accuracy_m - confidence_m|

        where n_m is the number of pixels in bin m, and n their sum. The model is
        overconfident in bins whose confidence is above their accuracy.

        Returns:
            {"ece", "accuracy", "confidence": float in [0, 1], NaN without pixels;
            "bins": {"low", "high": the edges of the bins, "count": pixels,
            "confidence", "accuracy": means of each bin, NaN if it is empty}, lists of
            length M}.
        """
        edges = np.linspace(0, 1, len(self.count) + 1)
        pixels = self.count.sum()
        with np.errstate(invalid="ignore"):
            confidence = self.confidence / self.count
            accuracy = self.correct / self.count
            ece = np.abs(self.correct - self.confidence).sum() / pixels
            overall = self.correct.sum() / pixels, self.confidence.sum() / pixels
        return {
            "ece": float(ece),
            "accuracy": float(overall[0]),
            "confidence": float(overall[1]),
            "bins": {
                "low": edges[:-1].tolist(),
                "high": edges[1:].tolist(),
                "count": self.count.tolist(),
                "confidence": confidence.tolist(),
                "accuracy": accuracy.tolist(),
            },
        }


_KINDS = {"count": np.int64, "confidence": np.float64, "correct": np.int64}
