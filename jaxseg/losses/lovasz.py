"""Lovasz-softmax."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.losses.averages import average, check_average, select_weights
from jaxseg.losses.targets import read_targets
from jaxseg.utils.collectives import psum_over


def lovasz_softmax(
    logits: jax.Array,
    label: jax.Array,
    *,
    per: str = "image",
    absent: str = "skip",
    classes: Sequence[int] | None = None,
    class_weights: jax.Array | None = None,
    ignore_index: int = 255,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Lovasz extension of the Jaccard loss, for each class.

    With the errors m_i = |[k = label_i] - p_ik| of a class in descending order,

        loss_k = sum_i m_i (J_i - J_(i-1)),

    where J_i is the Jaccard loss of a prediction that is wrong at the first i pixels.
    The loss of an image, or of the batch, is the mean over its classes.

    Void pixels are ignored as in `tversky`, and so are images without valid pixels. The
    pixels of each class are sorted. With per = "batch" each device sorts those of all.

    Args:
        logits: [B, H, W, K], any float dtype; computed in float32.
        label: [B, H, W], integers in 0..K-1 or `ignore_index`.
        per: "image" or "batch", which pixels are sorted together.
        absent: what happens to a class that no pixel of the image or batch has as its
            label: "skip" leaves it out of the mean; "count" gives it its largest error.
        classes: the classes that count; None for all.
        class_weights: weight of each class in the mean, [K]; None for equal weights.
        ignore_index: label of the void pixels.
        axis_name: mapped axis of the batch; None if the batch is whole.

    Returns:
        (sum, denominator), float32 scalars, as `tversky`.

    Raises:
        ValueError: if shapes do not match or an argument is unknown.

    Source: Berman et al. 2018, The Lovasz-Softmax loss.
    """
    check_average(per, absent)
    targets = read_targets(logits, label, ignore_index, ndim=4)
    num_classes = logits.shape[-1]
    weights = select_weights(class_weights, classes, num_classes)
    probability = targets.probability()
    errors = jnp.where(targets.is_label, 1.0 - probability, probability)

    def by_class(x):
        """[B, H, W, K] as [B, K, H W], or [1, K, B H W]."""
        x = jnp.moveaxis(x, -1, 0).reshape(num_classes, len(label), -1)
        if per == "batch":
            return x.reshape(1, num_classes, -1)
        return jnp.swapaxes(x, 0, 1)

    errors, is_label = by_class(errors), by_class(targets.is_label)
    valid = by_class(jnp.broadcast_to(targets.valid[..., None], targets.is_label.shape))
    # Void pixels come last, after those without an error.
    order = jnp.where(valid, lax.stop_gradient(errors), -1.0)
    shared = axis_name if per == "batch" else None
    if shared is None:
        slopes = _slopes(order, is_label)
    else:
        everywhere = (
            lax.all_gather(x, shared, axis=2, tiled=True) for x in (order, is_label)
        )
        size = order.shape[2]
        slopes = lax.dynamic_slice_in_dim(
            _slopes(*everywhere), lax.axis_index(shared) * size, size, axis=2
        )
    losses = psum_over(jnp.sum(errors * slopes, axis=2), shared)
    present = psum_over(jnp.sum(is_label, axis=2, dtype=jnp.float32), shared) > 0
    return average(
        losses,
        present,
        weights,
        targets,
        absent=absent,
        per=per,
        axis_name=axis_name,
    )


def _slopes(order: jax.Array, is_label: jax.Array) -> jax.Array:
    """By how much the Jaccard loss grows with the error of each pixel.

    Pixels are sorted twice, the second time back to their places: the gradient then
    needs neither a gather nor a scatter.

    Args:
        order: errors, [..., N].
        is_label: whether the pixel has the class as its label, [..., N].

    Returns:
        float32 [..., N].
    """
    axis = order.ndim - 1
    place = lax.broadcasted_iota(jnp.int32, order.shape, axis)
    _, is_label, place = lax.sort(
        (-order, is_label.astype(jnp.int32), place), dimension=axis
    )
    missed = lax.cumsum(is_label, axis)
    volume = missed[..., -1:]
    left = (volume - missed).astype(jnp.float32)
    union = (volume + lax.cumsum(1 - is_label, axis)).astype(jnp.float32)
    # A difference of Jaccard losses would lose its digits for many pixels. If the pixel
    # has the label, the intersection shrinks by 1; otherwise the union grows by 1.
    before = union - 1.0
    added = left / (jnp.where(before > 0, before, 1.0) * jnp.maximum(union, 1.0))
    # Without any pixel of the class, only the largest error counts.
    added = jnp.where(before > 0, added, 1.0)
    slopes = jnp.where(is_label > 0, 1.0 / jnp.maximum(union, 1.0), added)
    return lax.sort((place, slopes), dimension=axis)[1]
