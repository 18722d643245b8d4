"""Softmax cross-entropy of labels and of soft targets."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.losses.targets import (
    check_logits,
    pixel_denominator,
    read_class_weights,
    read_pixel_weights,
    read_targets,
)


def cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    class_weights: jax.Array | None = None,
    denominator: str = "pixels",
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    pixel_weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy: its sum over the valid pixels, and the denominator.

        total = sum_i v_i sum_k q_ik w_k (-log softmax(logits_i)_k),
        q_ik  = (1 - label_smoothing) [k = label_i] + label_smoothing / K

    with the weights v of the pixels and w of the classes. Both results are returned so
    that both can be summed over devices before `divide` computes the loss. In a mean of
    the devices' means, the weight of a pixel would depend on the number of void pixels
    on its device. The denominators are

        "pixels"   number of valid pixels (Caffe normalize: true; caffe-segnet)
        "weights"  sum of v w[label] over the valid pixels (PyTorch's weighted mean)
        "none"     0, for which `divide` returns the sum (Caffe normalize: false)

    Without any weights "pixels" and "weights" are equal.

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
        pixel_weights: weight of each pixel, [...], at least 0; None for equal weights.

    Returns:
        (sum, denominator), float32 scalars.

    Raises:
        ValueError: if shapes do not match, there is no class, logits are not floating or
            labels not integers, the denominator is unknown, or `label_smoothing` or a
            class weight is out of range.

    Source: Caffe's SoftmaxWithLoss; torch.nn.functional.cross_entropy.
    """
    logits, is_label, valid, unknown = read_targets(logits, label, ignore_index)
    num_classes = logits.shape[-1]
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    weights = _weights(class_weights, pixel_weights, valid, logits.shape)
    divisor = pixel_denominator(denominator, valid, jnp.where(is_label, weights, 0.0))
    target = jnp.where(is_label, 1.0 - label_smoothing, 0.0)
    target += label_smoothing / num_classes * valid[..., None]
    total = _expected(target, weights, logits)
    return jnp.where(unknown, jnp.nan, total), divisor


def soft_cross_entropy(
    logits: jax.Array,
    target: jax.Array,
    *,
    class_weights: jax.Array | None = None,
    denominator: str = "pixels",
    pixel_weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy with a distribution over the classes as the target of each pixel.

        total = sum_i v_i sum_k target_ik w_k (-log softmax(logits_i)_k)

    For distillation, mixed images and several annotators. A pixel whose target is 0 for
    all classes is void, and ignored as in `cross_entropy`, whose denominators these are;
    "weights" is the sum of v_i w_k target_ik. The targets are not normalized, and no
    gradient flows to them.

    Args:
        logits: [..., K], any float dtype; computed in float32.
        target: [..., K], at least 0.
        class_weights: weight of each class, [K]; None for equal weights.
        denominator: "pixels", "weights" or "none".
        pixel_weights: weight of each pixel, [...], at least 0; None for equal weights.

    Returns:
        (sum, denominator), float32 scalars.

    Raises:
        ValueError: as `cross_entropy`.

    Source: torch.nn.functional.cross_entropy with class probabilities.
    """
    check_logits(logits)
    if target.shape != logits.shape or not jnp.issubdtype(target.dtype, jnp.floating):
        raise ValueError(
            f"the target is {target.dtype} of shape {target.shape}; expected floating "
            f"numbers of the logits' shape, {logits.shape}"
        )
    target = lax.stop_gradient(target.astype(jnp.float32))
    valid = jnp.any(target != 0, axis=-1)
    logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0.0)
    weights = _weights(class_weights, pixel_weights, valid, logits.shape)
    divisor = pixel_denominator(denominator, valid, target * weights)
    total = _expected(target, weights, logits)
    # The sum runs over positive targets only.
    return jnp.where(jnp.all(target >= 0), total, jnp.nan), divisor


def _weights(class_weights, pixel_weights, valid, shape):
    """Weight of each class at each pixel, float32 [..., K]."""
    weights = read_class_weights(class_weights, shape[-1])
    weights = lax.broadcast_in_dim(weights, shape, (len(shape) - 1,))
    pixel_weights = read_pixel_weights(pixel_weights, valid)
    return weights if pixel_weights is None else weights * pixel_weights[..., None]


def _expected(target, weights, logits):
    """Sum of the weighted negative log-likelihood under the target."""
    log_probability = jax.nn.log_softmax(logits)
    # A class with target 0 may have probability 0, and 0 * inf is NaN.
    return -jnp.sum(
        jnp.where(target > 0, target * weights * log_probability, 0.0),
        dtype=jnp.float32,
    )
