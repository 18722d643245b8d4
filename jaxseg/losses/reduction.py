"""Losses in chunks of columns, and the division of the sum by its denominator.

The sum over devices is in `jaxseg.training.step`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

LossFn = Callable[..., tuple[Any, Any]]
"""A function from logits [B, H, W, K] and labels [B, H, W] to (sum, denominator).

If it is not a sum over pixels, it has the argument `axis_name`: the mapped axis of the
batch, over which it adds up what it needs of the whole batch, or None.
"""


def apply_loss(
    loss_fn: LossFn, logits: jax.Array, label: jax.Array, axis_name: str | None = None
) -> tuple[Any, Any]:
    """Computes a loss, with the mapped axis of the batch if it has that argument."""
    if _has_axis_name(loss_fn):
        return loss_fn(logits, label, axis_name=axis_name)
    return loss_fn(logits, label)


def by_columns(loss_fn: LossFn, chunks: int) -> LossFn:
    """The same loss, computed for one chunk of columns at a time, to save memory.

    The float32 computation, and that of the gradient, then needs memory for one chunk
    of the pixels only. With logits in bfloat16 there is never a float32 array of all
    pixels and classes. (Columns rather than rows, because rows may be sharded.)

    Args:
        loss_fn: function from logits [B, H, W, K] and labels [B, H, W] to a sum over
            the pixels and its denominator, such as `cross_entropy`.
        chunks: number of chunks, a divisor of the width W; 1 for all columns at once.

    Returns:
        A function like `loss_fn`, equal up to the order of the summation. No gradient
        flows through its denominator. It raises a ValueError if `chunks` does not
        divide the width.

    Raises:
        ValueError: if `chunks` is below 1, or above for a loss that is not a sum over
            pixels.
    """
    if not isinstance(chunks, int) or chunks < 1:
        raise ValueError(f"chunks is {chunks}; it must be an integer from 1.")
    if chunks == 1:
        return loss_fn
    if _has_axis_name(loss_fn):
        raise ValueError(
            f"chunks is {chunks}, but the loss is not a sum over pixels and needs whole "
            "images; set chunks to 1."
        )

    def split(label):
        if label.ndim != 3:
            raise ValueError(f"labels have shape {label.shape}; expected [B, H, W]")
        width, remainder = divmod(label.shape[2], chunks)
        if remainder:
            raise ValueError(
                f"chunks is {chunks}, which does not divide the width "
                f"{label.shape[2]} of the images; use a divisor of the width."
            )
        starts = jnp.arange(chunks) * width
        cut = functools.partial(lax.dynamic_slice_in_dim, slice_size=width, axis=2)
        return starts, cut

    @jax.custom_vjp
    def loss(logits, label):
        starts, cut = split(label)
        sums = lax.map(lambda at: loss_fn(cut(logits, at), cut(label, at)), starts)
        return jax.tree.map(jnp.sum, sums)

    def forward(logits, label):
        return loss(logits, label), (logits, label)

    def backward(saved, cotangents):
        logits, label = saved
        starts, cut = split(label)

        def add_chunk(gradient, at):
            labels = cut(label, at)
            chunk = jax.grad(lambda x: loss_fn(x, labels)[0])(cut(logits, at))
            chunk = (chunk * cotangents[0]).astype(logits.dtype)
            return lax.dynamic_update_slice_in_dim(gradient, chunk, at, axis=2), None

        return lax.scan(add_chunk, jnp.zeros_like(logits), starts)[0], None

    loss.defvjp(forward, backward)
    return loss


def divide(total: jax.Array, denominator: jax.Array) -> jax.Array:
    """The loss: `total / denominator`, or `total` if the denominator is 0.

    The denominator is 0 for a batch in which all pixels are void, whose loss is then 0
    instead of NaN, and for the denominator "none" of `cross_entropy`.

    Args:
        total: sum of the loss over all pixels of all devices, scalar.
        denominator: sum of the denominators over all devices, scalar, at least 0.

    Returns:
        The loss, scalar.
    """
    # A map of losses would divide without an error, but is not a mean.
    chex.assert_rank([total, denominator], 0)
    return total / jnp.where(denominator > 0, denominator, 1.0)


def _has_axis_name(loss_fn: LossFn) -> bool:
    return "axis_name" in inspect.signature(loss_fn).parameters
