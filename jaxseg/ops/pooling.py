"""Max pooling that remembers where each maximum stood, and its inverse.

Windows are square and disjoint, and a maximum's place is counted inside its own window
(uint8), so everything here is slices and comparisons, forward and backward: as fast as
memory allows, and it shards over space. `max_pool_indices` and `max_unpool_indices`
are the general form, any geometry with indices over the plane.

Derivatives are defined in reverse mode (`jax.grad`, `jax.vjp`), to any order.
"""

import functools

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
    windows,
)

__all__ = [
    "indices_to_places",
    "max_pool_argmax",
    "max_pool_indices",
    "max_unpool",
    "max_unpool_indices",
    "places_to_indices",
]


def max_pool_argmax(x: jax.Array, window: int = 2) -> tuple[jax.Array, jax.Array]:
    """Max-pools disjoint windows; also returns each maximum's place.

    A place is counted row by row inside its own window, so `max_unpool` never needs
    the image width. On a tie the first place wins and takes the whole gradient. Where
    H or W is not a multiple of `window` the last windows are clipped to the image
    (ceil mode), and no place ever lies outside it. A NaN counts as greater than every
    number, and the last NaN of a window wins, as in PyTorch.

    Args:
        x: features, [B, H, W, C], any real dtype.
        window: side of the square window and its stride, in pixels, 1 to 16.

    Returns:
        Maxima [B, ceil(H/window), ceil(W/window), C] in the dtype of `x`, and their
        places, uint8, same shape, in [0, window**2).

    Raises:
        ValueError: if `x` does not have four axes or `window` is out of range.

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
    """Puts every value back at its place in its window, among zeros.

    Args:
        y: features, [B, h, w, C], any real dtype.
        places: the place of each, [B, h, w, C], uint8, from `max_pool_argmax`.
            A value whose place lies outside `size` or its window is dropped.
        size: (H, W) before the pooling, in pixels; by default (h*window, w*window).
        window: side of the window that `places` were counted in, in pixels, 1 to 16.

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
            f"places are {places.dtype}, not uint8; flat indices go to "
            "max_unpool_indices, or through indices_to_places."
        )
    _, h, w, _ = y.shape
    size = (h * window, w * window) if size is None else tuple(size)
    _check_pools_to(size, (h, w), window)
    return _unpool(y, places, size, window)


def places_to_indices(
    places: jax.Array, size: tuple[int, int], window: int = 2
) -> jax.Array:
    """Turns places in windows into flat indices over the plane: row * W + column.

    Args:
        places: [B, h, w, C], uint8, from `max_pool_argmax`.
        size: (H, W) before the pooling, in pixels.
        window: side of the window that `places` were counted in, in pixels, 1 to 16.

    Returns:
        int32, [B, h, w, C], in [0, H*W): what `max_unpool_indices` and PyTorch take.

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
    """Turns flat indices over the plane into places in disjoint windows.

    Args:
        indices: [B, h, w, C], integer, each inside its own window: what
            `max_pool_indices(x, window, ceil_mode=True)` or PyTorch returns.
        size: (H, W) of the plane that they were counted over, in pixels.
        window: side of the disjoint windows, in pixels, 1 to 16.

    Returns:
        uint8, [B, h, w, C], in [0, window**2): what `max_unpool` takes.

    Raises:
        ValueError: if `size` does not pool to (h, w).
    """
    check_map("indices", indices)
    _check_window(window)
    _check_pools_to(size, indices.shape[1:3], window)
    row, column = indices // size[1], indices % size[1]
    return (row % window * window + column % window).astype(jnp.uint8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _pool(x, size, window):
    del size
    # Widened after the split, since TPUs would otherwise write `x` out in float32.
    pieces = [widened(piece) for piece in _split(x, window, fill=lowest(x.dtype))]
    maxima, places = pieces[0], jnp.zeros(pieces[0].shape, jnp.uint8)
    for place, piece in enumerate(pieces[1:], start=1):
        larger = greater(piece, maxima)
        maxima = jnp.where(larger, piece, maxima)
        places = jnp.where(larger, jnp.uint8(place), places)
    return maxima.astype(x.dtype), places


def _pool_fwd(x, size, window):
    maxima, places = _pool(x, size, window)
    return (maxima, places), places


def _pool_bwd(size, window, places, cotangents):
    return (_unpool(cotangents[0], places, size, window),)


_pool.defvjp(_pool_fwd, _pool_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _unpool(y, places, size, window):
    # Window and place are axes of their own, [B, h, row, w, column, C], so that the
    # output is written once and in order. Compiled for TPUs between convolutions, this
    # moves 0.6 of the bytes that adding up spread and padded maps does.
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
    """Takes from each window of `x` the value at its place: `_unpool` transposed."""
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
    """The window**2 strided slices of `x`, one for each place, row by row."""
    _, h, w, _ = x.shape
    rows, columns = (window * windows(n, window) for n in (h, w))
    x = jnp.pad(
        x, ((0, 0), (0, rows - h), (0, columns - w), (0, 0)), constant_values=fill
    )
    # Ending at the last window's first pixel: a length that symbolic sizes divide.
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
            f"window is {window}; places in a window fit into uint8 from 1 to 16. "
            "max_pool_indices has no such limit."
        )


def _check_pools_to(size, pooled, window):
    for axis, n, k in zip(("height", "width"), size, pooled):
        if windows(n, window) != k:
            raise ValueError(
                f"{axis} {n} pools to {windows(n, window)}, not to the map's {k}; "
                f"give {(k - 1) * window + 1} to {k * window}, the size that went "
                "into the pooling."
            )
