"""From sums and denominators to a loss: over columns, devices and the whole batch."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

LossFn = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""From logits [B, H, W, K] and labels [B, H, W] to a sum and its denominator."""


def by_columns(loss_fn: LossFn, chunks: int) -> LossFn:
    """The same loss, computed for a chunk of the columns at a time.

    Its float32 arithmetic, and that of its gradient, then takes memory for one chunk of
    the pixels alone. With logits in bfloat16 there is no float32 tensor of all pixels
    and classes. Rows would do as well, but they may be split over devices.

    Args:
        loss_fn: from logits [B, H, W, K] and labels [B, H, W] to a sum over the pixels
            and its denominator, such as `cross_entropy`.
        chunks: how many, a divisor of the width; 1 for all columns at once.

    Returns:
        A function as `loss_fn`, equal but for the order of the sum. No gradient flows
        through its denominator. It raises a ValueError if the width does not divide.

    Raises:
        ValueError: if `chunks` is below 1.
    """
    if chunks < 1:
        raise ValueError(f"chunks={chunks}: give 1 for all columns, or more.")
    if chunks == 1:
        return loss_fn

    def pieces(label):
        width, rest = divmod(label.shape[2], chunks)
        if rest:
            raise ValueError(
                f"chunks={chunks} does not divide the width {label.shape[2]} of the "
                "images; give one that does."
            )
        starts = jnp.arange(chunks) * width
        cut = functools.partial(lax.dynamic_slice_in_dim, slice_size=width, axis=2)
        return starts, cut

    @jax.custom_vjp
    def loss(logits, label):
        starts, cut = pieces(label)
        sums = lax.map(lambda at: loss_fn(cut(logits, at), cut(label, at)), starts)
        return jax.tree.map(jnp.sum, sums)

    def forward(logits, label):
        return loss(logits, label), (logits, label)

    def backward(saved, cotangents):
        logits, label = saved
        starts, cut = pieces(label)

        def put(gradient, at):
            piece = cut(label, at)
            part = jax.grad(lambda x: loss_fn(x, piece)[0])(cut(logits, at))
            part = part * cotangents[0]
            part = part.astype(logits.dtype)
            return lax.dynamic_update_slice_in_dim(gradient, part, at, axis=2), None

        return lax.scan(put, jnp.zeros_like(logits), starts)[0], None

    loss.defvjp(forward, backward)
    return loss


def divide(total: jax.Array, denominator: jax.Array) -> jax.Array:
    """The loss: `total / denominator`, or `total` itself where the denominator is 0.

    The exception covers both a batch of nothing but void, whose loss is then 0 and
    not NaN, and the denominator "none" of `cross_entropy`.

    Args:
        total: sum of the loss over all pixels of all devices, scalar.
        denominator: sum of the denominators over all devices, scalar, at least 0.

    Returns:
        The loss, scalar.
    """
    return total / jnp.where(denominator > 0, denominator, 1.0)
