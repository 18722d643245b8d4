"""What all losses compute from logits and labels: valid pixels, targets, weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

DENOMINATORS = ("pixels", "weights", "none")


class Targets(NamedTuple):
    """Logits and labels of softmax classes without the influence of void pixels.

    Attributes:
        logits: float32 [..., K], 0 at void pixels.
        is_label: whether a class is the pixel's label, [..., K]; False at void pixels.
        valid: whether a pixel is not void, [...].
        unknown: whether any label is neither a class nor void, scalar.
    """

    logits: jax.Array
    is_label: jax.Array
    valid: jax.Array
    unknown: jax.Array

    def probability(self) -> jax.Array:
        """Softmax probabilities, float32 [..., K], 0 at void pixels."""
        return jnp.where(self.valid[..., None], jax.nn.softmax(self.logits), 0.0)

    def nll(self) -> jax.Array:
        """Negative log-likelihood of the label, float32 [...], 0 at void pixels."""
        log_probability = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.where(self.is_label, log_probability, 0.0), axis=-1)

    def label_weights(
        self, class_weights: jax.Array | None, pixel_weights: jax.Array | None
    ) -> jax.Array:
        """Weight of each pixel times that of its label, float32 [...], 0 if void."""
        weights = read_class_weights(class_weights, self.logits.shape[-1])
        weights = lax.broadcast_in_dim(
            weights, self.logits.shape, (self.logits.ndim - 1,)
        )
        weights = jnp.sum(jnp.where(self.is_label, weights, 0.0), axis=-1)
        pixel_weights = read_pixel_weights(pixel_weights, self.valid)
        return weights if pixel_weights is None else weights * pixel_weights


def read_targets(
    logits: jax.Array, label: jax.Array, ignore_index: int, ndim: int | None = None
) -> Targets:
    """Checks logits and labels, and removes the void pixels from them.

    Args:
        logits: [..., K], any float dtype.
        label: [...], integers in 0..K-1 or `ignore_index`.
        ignore_index: label of the void pixels.
        ndim: number of axes that the logits must have; None for any.

    Raises:
        ValueError: if shapes do not match, there is no class, or logits are not floating
            or labels not integers.
    """
    check_logits(logits)
    if ndim not in (None, logits.ndim):
        raise ValueError(f"logits have shape {logits.shape}; expected [B, H, W, K]")
    num_classes = logits.shape[-1]
    if label.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels have shape {label.shape}, but logits have shape {logits.shape}; "
            f"expected labels of shape {logits.shape[:-1]}"
        )
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, not {label.dtype}")
    label = label.astype(jnp.int32)
    valid = label != ignore_index
    # Void logits are replaced before anything is computed from them. With a mask on the
    # loss only, the gradient would multiply infinity by zero.
    logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0.0)
    # A comparison instead of a gather: it fuses, it can be sharded over space, and
    # gathers are slow on TPUs.
    classes = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    is_label = (label[..., None] == classes) & valid[..., None]
    unknown = jnp.any(valid & ((label < 0) | (label >= num_classes)))
    return Targets(logits, is_label, valid, unknown)


def check_logits(logits: jax.Array) -> None:
    """Raises a ValueError if logits have no class or are not floating."""
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(
            f"logits have shape {logits.shape}; expected [..., K] with at least 1 class"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating, not {logits.dtype}")


def read_class_weights(
    class_weights: jax.Array | np.ndarray | None, num_classes: int
) -> jax.Array:
    """Weights of the classes, float32 [K]; ones for None.

    Raises:
        ValueError: if they are not K finite numbers of at least 0.
    """
    if class_weights is None:
        return jnp.ones(num_classes, jnp.float32)
    if not isinstance(class_weights, Tracer) and not _are_weights(class_weights):
        raise ValueError(
            f"class_weights is {class_weights}; weights must be finite and at least 0"
        )
    weights = jnp.asarray(class_weights, jnp.float32)
    if weights.shape != (num_classes,):
        raise ValueError(
            f"class_weights has shape {weights.shape}; the logits have {num_classes} "
            f"classes, so it must be ({num_classes},)"
        )
    return weights


def read_pixel_weights(
    pixel_weights: jax.Array | None, valid: jax.Array
) -> jax.Array | None:
    """Weights of the pixels, float32 and 0 at void pixels; None for None.

    Raises:
        ValueError: if they do not have the labels' shape.
    """
    if pixel_weights is None:
        return None
    if pixel_weights.shape != valid.shape:
        raise ValueError(
            f"pixel_weights has shape {pixel_weights.shape}; expected that of the "
            f"labels, {valid.shape}"
        )
    return jnp.where(valid, pixel_weights.astype(jnp.float32), 0.0)


def pixel_denominator(kind: str, valid: jax.Array, weights: jax.Array) -> jax.Array:
    """What the sum over the pixels is divided by.

        "pixels"   number of valid pixels (Caffe normalize: true; caffe-segnet)
        "weights"  sum of the weights (PyTorch's weighted mean)
        "none"     0, for which `divide` returns the sum (Caffe normalize: false)

    Args:
        kind: one of `DENOMINATORS`.
        valid: the pixels that count, bool [...].
        weights: 0 where pixels do not count, any shape.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind == "pixels":
        # The global batch of a pod can have more pixels than int32 can count.
        rows = jnp.sum(valid, axis=-1, dtype=jnp.int32)
        return jnp.sum(rows, dtype=jnp.float32)
    if kind == "weights":
        return jnp.sum(weights)
    if kind == "none":
        return jnp.zeros((), jnp.float32)
    raise ValueError(f"unknown denominator {kind!r}; known: {', '.join(DENOMINATORS)}")


def choose(kind: str, value: str, known: tuple[str, ...]) -> None:
    """Raises a ValueError if the value of an argument is not a known one."""
    if value not in known:
        raise ValueError(f"{kind} is {value!r}; it must be {' or '.join(known)}")


def check_range(**values: float) -> None:
    """Raises a ValueError if an argument is not a finite number of at least 0."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}; it must be finite and at least 0")


def _are_weights(class_weights: jax.Array | np.ndarray) -> bool:
    values = np.asarray(class_weights, np.float32)
    return bool(np.all(np.isfinite(values)) and np.all(values >= 0))
