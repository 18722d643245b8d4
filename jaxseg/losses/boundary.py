"""Boundary loss, by exact distance transforms."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.losses.averages import select_weights
from jaxseg.losses.targets import pixel_denominator, read_pixel_weights, read_targets

FAR = 1e12
"""Squared distance, in pixels, to a region that is empty; all others are below 1e9."""


def boundary(
    logits: jax.Array,
    label: jax.Array,
    *,
    classes: Sequence[int] | None = None,
    class_weights: jax.Array | None = None,
    ignore_index: int = 255,
    pixel_weights: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Probability of each class times the signed distance to the class's boundary.

        total = sum_i v_i sum_k w_k p_ik phi_ik
        phi_ik = distance of pixel i to the next pixel of class k, where i is outside;
                 1 - distance to the next pixel of another class, where it is inside

    with the softmax probabilities p and distances in pixels. The loss is negative for
    good predictions. Alone it is minimized by an empty foreground of small objects; the
    paper adds it to a region loss.

    Void pixels belong to no class and are ignored: distances are to valid pixels. In an
    image without pixels of a class, or with pixels of it only, phi is 0 for that class.
    A label that is neither a class nor void makes the sum NaN.

    The distances are computed on the device, exactly, in as many passes over an array
    [B, H, W, K] as the image has columns.

    Args:
        logits: [B, H, W, K], any float dtype; computed in float32.
        label: [B, H, W], integers in 0..K-1 or `ignore_index`.
        classes: the classes that count; None for all.
        class_weights: weight of each class, [K]; None for equal weights.
        ignore_index: label of the void pixels.
        pixel_weights: weight of each pixel, [B, H, W], at least 0; None for equal ones.
        axis_name: not used; its presence tells that whole images are needed.

    Returns:
        (sum, denominator), float32 scalars. The denominator is the number of valid
        pixels times the sum of w.

    Raises:
        ValueError: if shapes do not match or an argument is out of range.

    Source: Kervadec et al. 2019, Boundary loss for highly unbalanced segmentation.
    """
    del axis_name
    targets = read_targets(logits, label, ignore_index, ndim=4)
    weights = select_weights(class_weights, classes, logits.shape[-1])
    phi = signed_distance(targets.is_label, targets.valid)
    phi *= lax.broadcast_in_dim(weights, phi.shape, (3,))
    pixel_weights = read_pixel_weights(pixel_weights, targets.valid)
    if pixel_weights is not None:
        phi *= pixel_weights[..., None]
    total = jnp.sum(targets.probability() * phi, dtype=jnp.float32)
    denominator = pixel_denominator("pixels", targets.valid, weights) * jnp.sum(weights)
    return jnp.where(targets.unknown, jnp.nan, total), denominator


def signed_distance(is_label: jax.Array, valid: jax.Array) -> jax.Array:
    """The map phi of `boundary`.

    Args:
        is_label: [B, H, W, K], bool; False at void pixels.
        valid: [B, H, W], bool.

    Returns:
        float32 [B, H, W, K], in pixels; 0 at void pixels.
    """
    outside = _squared_distance(is_label)
    inside = _squared_distance(valid[..., None] & ~is_label)
    phi = jnp.where(is_label, 1.0 - jnp.sqrt(inside), jnp.sqrt(outside))
    # Each image must have pixels in the class and others.
    both = (outside < FAR) & (inside < FAR)
    return jnp.where(valid[..., None] & both, phi, 0.0)


def _squared_distance(region: jax.Array) -> jax.Array:
    """Squared Euclidean distance to the next pixel of a region, float32 [B, H, W, K]."""
    # The distance within each column, then the least sum of squares along each row.
    row = lax.broadcasted_iota(jnp.float32, region.shape, 1)
    above = lax.cummax(jnp.where(region, row, -jnp.inf), axis=1)
    below = lax.cummin(jnp.where(region, row, jnp.inf), axis=1, reverse=True)
    column = jnp.minimum(jnp.minimum(row - above, below - row) ** 2, FAR)
    place = lax.broadcasted_iota(jnp.float32, region.shape, 2)

    def look_at(other, least):
        there = lax.dynamic_slice_in_dim(column, other, 1, axis=2)
        return jnp.minimum(least, (place - other) ** 2 + there)

    least = lax.fori_loop(0, region.shape[2], look_at, column, unroll=8)
    return jnp.minimum(least, FAR)
