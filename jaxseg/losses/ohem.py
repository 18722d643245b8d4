"""Cross-entropy of the hardest pixels."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.losses.targets import pixel_denominator, read_targets


def ohem_cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    threshold: float = 0.7,
    min_fraction: float = 0.1,
    class_weights: jax.Array | None = None,
    denominator: str = "pixels",
    ignore_index: int = 255,
    pixel_weights: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy with online hard example mining.

    A pixel is kept if the probability of its label is below `threshold`, or if it is
    among the `min_fraction` of all valid pixels of the batch, rounded up, with the
    lowest probabilities; of equal ones at the limit all are kept. With threshold 0 this
    is the top-k loss. Weights do not change which pixels are kept.

    Void pixels and unknown labels are as in `cross_entropy`. So are the denominators,
    which count the pixels that are kept.

    Args:
        logits: [..., K], any float dtype; computed in float32.
        label: [...], integers in 0..K-1 or `ignore_index`.
        threshold: probability of the label below which a pixel is hard, in [0, 1].
        min_fraction: least fraction of the pixels that is kept, in [0, 1].
        class_weights: weight of each class, [K]; None for equal weights.
        denominator: "pixels", "weights" or "none".
        ignore_index: label of the void pixels.
        pixel_weights: weight of each pixel, [...], at least 0; None for equal weights.
        axis_name: mapped axis of the batch; None if the batch is whole.

    Returns:
        (sum, denominator), float32 scalars.

    Raises:
        ValueError: as `cross_entropy`, or if `threshold` or `min_fraction` is out of
            range.

    Source: Shrivastava et al. 2016; OHEMPixelSampler of mmsegmentation.
    """
    for name, value in (("threshold", threshold), ("min_fraction", min_fraction)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], not {value}")
    targets = read_targets(logits, label, ignore_index)
    nll = targets.nll()
    # Which pixels are kept does not depend on the parameters.
    hardness = jnp.where(targets.valid, lax.stop_gradient(nll), -1.0).reshape(-1)
    if axis_name is not None:
        hardness = lax.all_gather(hardness, axis_name, tiled=True)
    rank = jnp.ceil(min_fraction * jnp.sum(hardness != -1.0)).astype(jnp.int32)
    rank = jnp.minimum(rank, hardness.size)
    least = lax.dynamic_index_in_dim(
        -jnp.sort(-hardness), jnp.maximum(rank - 1, 0), keepdims=False
    )
    least = jnp.where(rank > 0, least, jnp.inf)
    limit = -math.log(threshold) if threshold > 0 else math.inf
    # Written so that NaN, the loss of a network that diverged, is kept.
    kept = targets.valid & ~((nll <= limit) & (nll < least))
    weights = jnp.where(kept, targets.label_weights(class_weights, pixel_weights), 0.0)
    divisor = pixel_denominator(denominator, kept, weights)
    total = jnp.sum(jnp.where(kept, weights * nll, 0.0), dtype=jnp.float32)
    return jnp.where(targets.unknown, jnp.nan, total), divisor
