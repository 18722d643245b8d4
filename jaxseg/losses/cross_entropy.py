"""Softmax cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

DENOMINATORS = ("pixels", "weights", "none")


def cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    class_weights: jax.Array | None = None,
    denominator: str = "pixels",
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy: its sum over the valid pixels, and the denominator.

        total = sum_i sum_k q_ik w_k (-log softmax(logits_i)_k),
        q_ik  = (1 - label_smoothing) [k = label_i] + label_smoothing / K

    Both are returned so that both can be summed over devices before `divide` computes
    the loss. In a mean of the devices' means, the weight of a pixel would depend on the
    number of void pixels on its device. The denominators are

        "pixels"   number of valid pixels (Caffe normalize: true; caffe-segnet)
        "weights"  sum of w[label] over the valid pixels (PyTorch's weighted mean)
        "none"     0, for which `divide` returns the sum (Caffe normalize: false)

    Without class weights "pixels" and "weights" are equal.

    Void pixels are ignored: their logits, even if infinite or NaN, change neither the
    value nor any gradient, and their own gradient is exactly 0. Without any valid pixel
    both results are 0. A label that is neither in 0..K-1 nor void makes the sum NaN,
    since a device cannot raise an error.

    Args:
        logits: [..., K], any float dtype; computed in float32.
        label: [...], integers in 0..K-1 or `ignore_index`.
        class_weights: weight of each class, [K]; None for equal weights.
        denominator: "pixels", "weights" or "none", see above.
        ignore_index: label of the void pixels.
        label_smoothing: fraction of the target that is spread evenly over all classes,
            in [0, 1].

    Returns:
        (sum, denominator), float32 scalars.

    Raises:
        ValueError: if shapes do not match, there is no class, logits are not floating or
            labels not integers, the denominator is unknown, or `label_smoothing` or a
            class weight is out of range.

    Source: Caffe's SoftmaxWithLoss; torch.nn.functional.cross_entropy.
    """
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(
            f"logits have shape {logits.shape}; expected [..., K] with at least 1 class"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating, not {logits.dtype}")
    num_classes = logits.shape[-1]
    if label.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels have shape {label.shape}, but logits have shape {logits.shape}; "
            f"expected labels of shape {logits.shape[:-1]}"
        )
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, not {label.dtype}")
    if denominator not in DENOMINATORS:
        raise ValueError(
            f"unknown denominator {denominator!r}; known: {', '.join(DENOMINATORS)}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    if class_weights is None:
        weights = jnp.ones(num_classes, jnp.float32)
    else:
        if not isinstance(class_weights, Tracer) and not _are_weights(class_weights):
            raise ValueError(
                f"class_weights is {class_weights}; weights must be finite and at least "
                "0"
            )
        weights = jnp.asarray(class_weights, jnp.float32)
    if weights.shape != (num_classes,):
        raise ValueError(
            f"class_weights has shape {weights.shape}; the logits have {num_classes} "
            f"classes, so it must be ({num_classes},)"
        )

    label = label.astype(jnp.int32)
    valid = label != ignore_index
    # Void logits are replaced before anything is computed from them. With a mask on the
    # loss only, the gradient would multiply infinity by zero.
    logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0.0)
    log_probability = jax.nn.log_softmax(logits)

    # A comparison instead of a gather: it fuses, it can be sharded over space, and
    # gathers are slow on TPUs.
    classes = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    weights = lax.broadcast_in_dim(weights, logits.shape, (logits.ndim - 1,))
    is_label = (label[..., None] == classes) & valid[..., None]
    target = jnp.where(is_label, 1.0 - label_smoothing, 0.0)
    target += label_smoothing / num_classes * valid[..., None]
    # A class with target 0 may have probability 0, and 0 * inf is NaN.
    total = -jnp.sum(
        jnp.where(target > 0, target * weights * log_probability, 0.0),
        dtype=jnp.float32,
    )
    unknown = valid & ((label < 0) | (label >= num_classes))
    total = jnp.where(jnp.any(unknown), jnp.nan, total)

    if denominator == "pixels":
        # The global batch of a pod can have more pixels than int32 can count.
        rows = jnp.sum(valid, axis=-1, dtype=jnp.int32)
        divisor = jnp.sum(rows, dtype=jnp.float32)
    elif denominator == "weights":
        divisor = jnp.sum(jnp.where(is_label, weights, 0.0))
    else:
        divisor = jnp.zeros((), jnp.float32)
    return total, divisor


def _are_weights(class_weights):
    values = np.asarray(class_weights, np.float32)
    return np.all(np.isfinite(values)) and np.all(values >= 0)
