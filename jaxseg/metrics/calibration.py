"""Calibration: whether a model is right as often as it is sure."""

import dataclasses

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
    """Pixels of one batch by how sure the model is of them, for use under `jit`.

    Confidence is the largest probability; pixel x falls into bin m of M where

        m / M < max_k p_k(x) <= (m + 1) / M

    Void pixels fall nowhere, nor do those whose label is no class.

    Args:
        probabilities: `[..., K]`, float32 in [0, 1], K of them summing to 1.
        label: true class numbers `[...]`, `ignore_index` where void.
        num_bins: M, all of one width.
        ignore_index: label of the void pixels.

    Returns:
        For each bin, `[M]`: pixels (int32, exact below 2^31), the sum of their
        confidence (float32) and how many are predicted right (int32). Of several
        devices, their sums.

    Raises:
        ValueError: if the shapes do not fit.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    if probabilities.shape[:-1] != label.shape:
        raise ValueError(
            f"probabilities of shape {probabilities.shape} do not fit labels of shape "
            f"{label.shape}; they are [..., K] and [...]"
        )
    num_classes = probabilities.shape[-1]
    prediction = jnp.argmax(probabilities, axis=-1)
    confidence = jnp.max(probabilities, axis=-1).astype(jnp.float32)
    label = jnp.where(label == ignore_index, -1, label.astype(jnp.int32))
    valid = (label >= 0) & (label < num_classes)
    place = jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1
    place = jnp.where(valid, jnp.clip(place, 0, num_bins - 1), -1)
    inside = jax.nn.one_hot(place, num_bins, dtype=bool)

    def total(values):
        # XLA adds in blocks, so that float32 keeps its digits over millions of pixels.
        pixels = tuple(range(values.ndim))
        return jnp.where(inside, values[..., None], 0).sum(axis=pixels)

    count = total(jnp.ones_like(label))
    correct = total((prediction == label).astype(jnp.int32))
    return count, total(confidence), correct


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Pixels by confidence, over any number of pixels; a reliability diagram's data.

    Add up the batches, then compute once:

        calibration = Calibration.zeros()
        for batch in batches:
            calibration += Calibration(*calibration_counts(...))
        result = calibration.compute()

    Attributes:
        count: int64 `[M]`, pixels in each bin of confidence.
        confidence: float64 `[M]`, the sum of theirs.
        correct: int64 `[M]`, how many of them are predicted right.
    """

    count: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray

    def __post_init__(self):
        for name, kind in _KINDS.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name)).astype(kind))

    @classmethod
    def zeros(cls, num_bins: int = NUM_BINS) -> "Calibration":
        """No pixels in M bins, to add to."""
        return cls(*np.zeros((3, num_bins)))

    def __add__(self, other: "Calibration") -> "Calibration":
        """Both sets of pixels together."""
        if len(self.count) != len(other.count):
            raise ValueError(
                f"cannot add calibrations of {len(self.count)} and "
                f"{len(other.count)} bins"
            )
        return Calibration(
            *(getattr(self, name) + getattr(other, name) for name in _KINDS)
        )

    def compute(self) -> dict:
        """Expected calibration error, and the reliability diagram.

        With n_m the pixels of bin m and n those of all,

            ece = sum_m n_m / n |accuracy_m - confidence_m|

        Returns:
            {"ece", "accuracy", "confidence": float in [0, 1], NaN without a pixel;
            "bins": {"low", "high": the edges, "count", "confidence", "accuracy": the
            means of each bin, NaN where it is empty}, lists of M}. Over-confident where
            confidence is above accuracy.
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
