"""Focal loss."""

import jax
import jax.numpy as jnp

from jaxseg.losses.targets import check_range, pixel_denominator, read_targets


def focal(
    logits: jax.Array,
    label: jax.Array,
    *,
    gamma: float = 2.0,
    class_weights: jax.Array | None = None,
    denominator: str = "pixels",
    ignore_index: int = 255,
    pixel_weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in which pixels that are classified well count less.

        total = sum_i v_i w[label_i] (1 - p_i)^gamma (-log p_i),

    where p_i is the softmax probability of the label. Void pixels, unknown labels and
    the denominators are as in `cross_entropy`.

    Args:
        logits: [..., K], any float dtype; computed in float32.
        label: [...], integers in 0..K-1 or `ignore_index`.
        gamma: at least 0; 0 for cross-entropy.
        class_weights: weight of each class, [K], the paper's alpha; None for equal ones.
        denominator: "pixels", "weights" or "none".
        ignore_index: label of the void pixels.
        pixel_weights: weight of each pixel, [...], at least 0; None for equal weights.

    Returns:
        (sum, denominator), float32 scalars.

    Raises:
        ValueError: as `cross_entropy`, or if gamma is out of range.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 3.
    """
    check_range(gamma=gamma)
    targets = read_targets(logits, label, ignore_index)
    weights = targets.label_weights(class_weights, pixel_weights)
    divisor = pixel_denominator(denominator, targets.valid, weights)
    nll = targets.nll()
    # 1 - p without the rounding of p, and without the infinite slope that a power
    # below 1 has at 0.
    missing = -jnp.expm1(-nll)
    factor = jnp.where(missing > 0, jnp.where(missing > 0, missing, 1.0) ** gamma, 0.0)
    factor = jnp.where(jnp.isnan(nll), jnp.nan, factor) if gamma else 1.0
    total = jnp.sum(weights * factor * nll, dtype=jnp.float32)
    return jnp.where(targets.unknown, jnp.nan, total), divisor
