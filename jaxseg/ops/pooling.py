"""Max pooling that also returns the place of each maximum, and its inverse.

Windows are square and disjoint, and a place is a pixel's number inside its own window
(uint8). Everything is therefore slices and comparisons, forward and backward: as fast
as memory allows, and it can be sharded over space. `max_pool_indices` and
`max_unpool_indices` are the general form, for any geometry, with flat indices.

Derivatives are defined in reverse mode (`jax.grad`, `jax.vjp`), to any order.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg.ops.indexed_pooling import (
    check_map,
    check_same,
    greater,
    lowest,
    max_pool_indices,
    max_unpool_indices,
    widened,
)
from jaxseg.utils.rounding import divide_up, round_up

__all__ = [
    "indices_to_places",
    "max_pool_argmax",
    "max_pool_indices",
    "max_unpool",
    "max_unpool_indices",
    "places_to_indices",
]


def max_pool_argmax(x: jax.Array, window: int = 2) -> tuple[jax.Array, jax.Array]:
    """Max-pools disjoint windows; also returns the place of each maximum.

    Places are numbered row by row inside each window, so `max_unpool` does not need the
    image width. On a tie the first place wins and gets the whole gradient. If H or W is
    not a multiple of `window`, the last windows are clipped to the image (ceil mode),
    and no place is outside the image. NaN is greater than every number, and the last
    NaN of a window wins, as in PyTorch.

    Args:
        x: features, [B, H, W, C], any real dtype.
        window: side of the square window, and its stride, in pixels, 1 to 16.

    Returns:
        Maxima [B, ceil(H/window), ceil(W/window), C] in the dtype of `x`, and their
        places, uint8, same shape, in [0, window**2).

    Raises:
        ValueError: if `x` does not have four axes, or `window` is out of range.

    Source: SegNet, sec. 3, https://arxiv.org/abs/1511.00561.
    """
    check_map("x", x)
    _check_window(window)
    return _pool(x, x.shape[1:3], window)


def max_unpool(
    y: jax.Array,
    places: jax.Array,
    size: tuple[int, int] | None = None,
    window: int = 2,
) -> jax.Array:
    """Writes every value to its place in its window; other pixels are zero.

    Args:
        y: features, [B, h, w, C], any real dtype.
        places: place of each value, [B, h, w, C], uint8, from `max_pool_argmax`.
            Values with a place outside `size` or the window are dropped.
        size: (H, W) before pooling, in pixels; by default (h*window, w*window).
        window: side of the pooling window, in pixels, 1 to 16.

    Returns:
        [B, H, W, C] in the dtype of `y`.

    Raises:
        ValueError: if the shapes of `y` and `places` differ, if `places` are not uint8
            or if `size` does not pool to (h, w).

    Source: SegNet, sec. 3, https://arxiv.org/abs/1511.00561.
    """
    check_map("y", y)
    _check_window(window)
    check_same("places", places, y)
    if places.dtype != jnp.uint8:
        raise ValueError(
            f"places are {places.dtype}, not uint8; for flat indices use "
            "max_unpool_indices, or convert them with indices_to_places."
        )
    _, h, w, _ = y.shape
    height, width = (h * window, w * window) if size is None else size
    _check_pools_to((height, width), (h, w), window)
    return _unpool(y, places, (height, width), window)


def places_to_indices(
    places: jax.Array, size: tuple[int, int], window: int = 2
) -> jax.Array:
    """Converts places in windows to flat indices over the plane, row * W + column.

    Args:
        places: [B, h, w, C], uint8, from `max_pool_argmax`.
        size: (H, W) before pooling, in pixels.
        window: side of the pooling window, in pixels, 1 to 16.

    Returns:
        int32, [B, h, w, C], in [0, H*W), for `max_unpool_indices` or PyTorch.

    Raises:
        ValueError: if `size` does not pool to (h, w).
    """
    check_map("places", places)
    _check_window(window)
    _check_pools_to(size, places.shape[1:3], window)
    places = places.astype(jnp.int32)
    row = lax.broadcasted_iota(jnp.int32, places.shape, 1) * window + places // window
    column = lax.broadcasted_iota(jnp.int32, places.shape, 2) * window + places % window
    return row * size[1] + column


def indices_to_places(
    indices: jax.Array, size: tuple[int, int], window: int = 2
) -> jax.Array:
    """Converts flat indices over the plane to places in disjoint windows.

    Args:
        indices: [B, h, w, C], integer, each inside its own window, from
            `max_pool_indices(x, window, ceil_mode=True)` or PyTorch.
        size: (H, W) of the plane, in pixels.
        window: side of the disjoint windows, in pixels, 1 to 16.

    Returns:
        uint8, [B, h, w, C], in [0, window**2), for `max_unpool`.

    Raises:
        ValueError: if `size` does not pool to (h, w).
    """
    check_map("indices", indices)
    _check_window(window)
    _check_pools_to(size, indices.shape[1:3], window)
    row, column = indices // size[1], indices % size[1]
    return (row % window * window + column % window).astype(jnp.uint8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _pool(
    x: jax.Array, size: tuple[int, int], window: int
) -> tuple[jax.Array, jax.Array]:
    del size
    # Widened after the split; otherwise TPUs would write `x` to memory in float32.
    pieces = [widened(piece) for piece in _split(x, window, fill=lowest(x.dtype))]
    maxima, places = pieces[0], jnp.zeros(pieces[0].shape, jnp.uint8)
    for place, piece in enumerate(pieces[1:], start=1):
        larger = greater(piece, maxima)
        maxima = jnp.where(larger, piece, maxima)
        places = jnp.where(larger, jnp.uint8(place), places)
    return maxima.astype(x.dtype), places


def _pool_fwd(x, size, window):
    output: Any = _pool(x, size, window)
    return output, output[1]


def _pool_bwd(size, window, places, cotangents):
    return (_unpool(cotangents[0], places, size, window),)


_pool.defvjp(_pool_fwd, _pool_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _unpool(y, places, size, window):
    # Windows and places have separate axes, [B, h, row, w, column, C], so that the
    # output is written once and in order. Compiled for TPUs between convolutions, this
    # moves 0.6 times the bytes that a sum of dilated and padded maps moves.
    b, h, w, c = y.shape
    place = np.arange(window**2, dtype=places.dtype)
    here = places[:, :, None, :, None] == place.reshape(1, 1, window, 1, window, 1)
    x = jnp.where(here, y[:, :, None, :, None], jnp.zeros((), y.dtype))
    x = x.reshape(b, h * window, w * window, c)
    return x[:, : size[0], : size[1]]


def _unpool_fwd(y, places, size, window):
    return _unpool(y, places, size, window), places


def _unpool_bwd(size, window, places, g):
    return _pick(g, places, size, window), None


_unpool.defvjp(_unpool_fwd, _unpool_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pick(x, places, size, window):
    """The value at the place in each window of `x`: the transpose of `_unpool`."""
    del size
    y = jnp.zeros(places.shape, x.dtype)
    for place, piece in enumerate(_split(x, window, fill=0)):
        y = jnp.where(places == place, piece, y)
    return y


def _pick_fwd(x, places, size, window):
    return _pick(x, places, size, window), places


def _pick_bwd(size, window, places, g):
    return _unpool(g, places, size, window), None


_pick.defvjp(_pick_fwd, _pick_bwd)


def _split(x, window, fill):
    """The window**2 strided slices of `x`, one per place, row by row."""
    _, h, w, _ = x.shape
    rows, columns = (round_up(n, window) for n in (h, w))
    x = jnp.pad(
        x, ((0, 0), (0, rows - h), (0, columns - w), (0, 0)), constant_values=fill
    )
    # Slices end at the last window's first pixel, so that strides divide symbolic sizes.
    rows, columns = rows - window + 1, columns - window + 1
    batch, _, _, channels = x.shape
    # `lax.slice`: before JAX 0.9.1 strided indexing of arrays became a gather.
    return [
        lax.slice(
            x,
            (0, i, j, 0),
            (batch, i + rows, j + columns, channels),
            (1, window, window, 1),
        )
        for i in range(window)
        for j in range(window)
    ]


def _check_window(window):
    if not 1 <= window <= 16:
        raise ValueError(
            f"window is {window}; it must be 1 to 16, so that places fit into uint8. "
            "max_pool_indices has no such limit."
        )


def _check_pools_to(size, pooled, window):
    for axis, n, k in zip(("height", "width"), size, pooled):
        if divide_up(n, window) != k:
            raise ValueError(
                f"{axis} {n} pools to {divide_up(n, window)}, but the map has {k}; "
                f"pass the {axis} before pooling, {(k - 1) * window + 1} to "
                f"{k * window}."
            )
