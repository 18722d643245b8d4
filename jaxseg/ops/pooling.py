"""Max pooling that remembers where each maximum stood, and its inverse.

Two forms. `max_pool_argmax` and `max_unpool` know only disjoint square windows and
count a maximum's place inside its own window (uint8): they are strided slices,
comparisons and interleaving, forward and backward, so they are as fast as memory and
shard over space. `max_pool_indices` and `max_unpool_indices` know every geometry of
`torch.nn.MaxPool2d` and count over the whole plane (int32): they gather and scatter.

Derivatives are defined in reverse mode (`jax.grad`, `jax.vjp`), to any order.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

IntOrPair = int | tuple[int, int]


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
    _check_map("x", x)
    _check_window(window)
    return _pool(x, window)


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
        ValueError: if the shapes of `y` and `places` differ, or if `size` does not
            pool to (h, w).

    Source: SegNet, sec. 3, https://arxiv.org/abs/1511.00561.
    """
    _check_map("y", y)
    _check_window(window)
    _check_same("places", places, y)
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
    _check_map("places", places)
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
    _check_map("indices", indices)
    _check_window(window)
    _check_pools_to(size, indices.shape[1:3], window)
    row, column = indices // size[1], indices % size[1]
    return (row % window * window + column % window).astype(jnp.uint8)


def max_pool_indices(
    x: jax.Array,
    window: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Max-pools any windows; also returns each maximum's flat index over the plane.

    Equal to `torch.nn.MaxPool2d(return_indices=True)` in values, indices and
    gradients: ties, NaN and clipping as in `max_pool_argmax`, and padding is never
    selected. Along each axis the output has

        (H + 2 * padding - dilation * (window - 1) - 1) / stride + 1

    places, rounded down, or up in ceil mode without a last window that would begin
    behind the image and its first padding. (Caffe rounds up always, and keeps such a
    window if there is no padding; it needs stride > window.)

    Args:
        x: features, [B, H, W, C], any real dtype.
        window: height and width of the window, or one int for both, in pixels.
        stride: from window to window; by default `window`, which leaves no overlap.
        padding: on every side, in pixels, at most half the window.
        dilation: step from pixel to pixel inside a window.
        ceil_mode: whether to keep last windows that reach over the edge.

    Returns:
        Maxima [B, h, w, C] in the dtype of `x`, and their indices, int32, same shape,
        row * W + column.

    Raises:
        ValueError: if the geometry is impossible or a window would hold no pixel.
    """
    _check_map("x", x)
    window = _pair("window", window, 1)
    stride = window if stride is None else _pair("stride", stride, 1)
    padding = _pair("padding", padding, 0)
    dilation = _pair("dilation", dilation, 1)
    axes = [
        _axis_geometry(*a, ceil_mode)
        for a in zip(x.shape[1:3], window, stride, padding, dilation)
    ]
    indices = _search(lax.stop_gradient(x), axes, window, stride, padding, dilation)
    # The maxima are gathered, so that their gradient is added up where they came from.
    flat = x.reshape(x.shape[0], -1, x.shape[3])
    maxima = jnp.take_along_axis(flat, _flatten(indices), axis=1)
    return maxima.reshape(indices.shape), indices


def max_unpool_indices(
    y: jax.Array, indices: jax.Array, size: tuple[int, int]
) -> jax.Array:
    """Puts every value at its flat index over the plane, among zeros.

    Equal to `torch.nn.MaxUnpool2d` with `output_size`. Where windows overlapped, one
    index may come several times: one of its values is kept, and the gradient is the
    one PyTorch gives, the pixel's whole gradient to each of them.

    Args:
        y: features, [B, h, w, C], any real dtype.
        indices: of each, [B, h, w, C], integer, in [0, H*W).
        size: (H, W) of the result, in pixels.

    Returns:
        [B, H, W, C] in the dtype of `y`.

    Raises:
        ValueError: if the shapes of `y` and `indices` differ.
    """
    _check_map("y", y)
    _check_same("indices", indices, y)
    b, _, _, c = y.shape
    x = _scatter(_flatten(y), _flatten(indices), size[0] * size[1])
    return x.reshape(b, *size, c)


# --- disjoint windows -----------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x, window):
    # bfloat16 is compared as float32, which is exact and five times faster on CPUs.
    wide = jnp.promote_types(x.dtype, jnp.float32) if _is_float(x) else x.dtype
    pieces = _split(x.astype(wide), window, fill=_lowest(wide))
    maxima, places = pieces[0], jnp.zeros(pieces[0].shape, jnp.uint8)
    for place, piece in enumerate(pieces[1:], start=1):
        greater = _greater(piece, maxima)
        maxima = jnp.where(greater, piece, maxima)
        places = jnp.where(greater, jnp.uint8(place), places)
    return maxima.astype(x.dtype), places


def _pool_fwd(x, window):
    maxima, places = _pool(x, window)
    # An array of no elements carries the input's size to the backward pass.
    return (maxima, places), (places, jnp.empty((*x.shape[1:3], 0)))


def _pool_bwd(window, residuals, cotangents):
    places, empty = residuals
    return (_unpool(cotangents[0], places, empty.shape[:2], window),)


_pool.defvjp(_pool_fwd, _pool_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _unpool(y, places, size, window):
    b, h, w, c = y.shape
    zero = jnp.zeros((), y.dtype)
    pieces = [jnp.where(places == k, y, zero) for k in range(window**2)]
    rows = [
        jnp.stack(pieces[i : i + window], axis=3) for i in range(0, window**2, window)
    ]
    x = jnp.stack(rows, axis=2).reshape(b, h * window, w * window, c)
    return x[:, : size[0], : size[1]]


def _unpool_fwd(y, places, size, window):
    return _unpool(y, places, size, window), places


def _unpool_bwd(size, window, places, g):
    return _pick(g, places, window), None


_unpool.defvjp(_unpool_fwd, _unpool_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pick(x, places, window):
    """Takes from each window of `x` the value at its place: `_unpool` transposed."""
    pieces = _split(x, window, fill=0)
    y = jnp.zeros(places.shape, x.dtype)
    for place, piece in enumerate(pieces):
        y = jnp.where(places == place, piece, y)
    return y


def _pick_fwd(x, places, window):
    return _pick(x, places, window), (places, jnp.empty((*x.shape[1:3], 0)))


def _pick_bwd(window, residuals, g):
    places, empty = residuals
    return _unpool(g, places, empty.shape[:2], window), None


_pick.defvjp(_pick_fwd, _pick_bwd)


def _split(x, window, fill):
    """The window**2 strided slices of `x`, one for each place, row by row."""
    _, h, w, _ = x.shape
    ragged = ((0, 0), (0, -h % window), (0, -w % window), (0, 0))
    x = jnp.pad(x, ragged, constant_values=fill)
    return [x[:, i::window, j::window] for i in range(window) for j in range(window)]


# --- any windows ----------------------------------------------------------------------


def _search(x, axes, window, stride, padding, dilation):
    """Flat index of each window's maximum, int32 [B, h, w, C]."""
    b, height, width, c = x.shape
    (h, first_row), (w, first_column) = axes
    shape = (b, h, w, c)
    reach = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip((h, w), stride, dilation, window)
    ]
    low = _lowest(x.dtype)
    margins = [
        (p, max(0, r - p - n), 0) for p, r, n in zip(padding, reach, (height, width))
    ]
    x = lax.pad(x, jnp.asarray(low, x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    # Begin at each window's first pixel, which wins if all its pixels are the lowest.
    tap = (first_row[:, None] * window[1] + first_column).astype(np.int32)
    tap = jnp.broadcast_to(tap[None, :, :, None], shape)
    maxima = jnp.full(shape, low, x.dtype)
    for k in range(window[0] * window[1]):
        i, j = (q * d for q, d in zip(divmod(k, window[1]), dilation))
        piece = x[:, i : i + reach[0] : stride[0], j : j + reach[1] : stride[1]]
        piece = piece[:, :h, :w]
        greater = _greater(piece, maxima)
        maxima = jnp.where(greater, piece, maxima)
        tap = jnp.where(greater, k, tap)
    row = lax.broadcasted_iota(jnp.int32, shape, 1) * stride[0] - padding[0]
    column = lax.broadcasted_iota(jnp.int32, shape, 2) * stride[1] - padding[1]
    row = row + tap // window[1] * dilation[0]
    column = column + tap % window[1] * dilation[1]
    return row * width + column


def _axis_geometry(size, window, stride, padding, dilation, ceil_mode):
    """Number of windows along an axis, and each one's first tap inside the image."""
    if 2 * padding > window:
        raise ValueError(
            f"padding {padding} is more than half the window of {window}; "
            f"pad by at most {window // 2}."
        )
    span = dilation * (window - 1) + 1
    room = size + 2 * padding - span + (stride - 1 if ceil_mode else 0)
    count = room // stride + 1
    if count < 1:
        raise ValueError(
            f"a window that spans {span} pixels does not fit into {size} pixels padded "
            f"by {padding}; give a larger map or a smaller window or dilation."
        )
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    start = np.arange(count) * stride - padding
    first = -(np.minimum(start, 0) // dilation)
    empty = (first >= window) | (start + first * dilation >= size)
    if empty.any():
        raise ValueError(
            f"the window that begins at pixel {start[empty][0]} of {size} holds no "
            f"pixel; give less padding ({padding}) or dilation ({dilation})."
        )
    return count, first


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scatter(y, indices, pixels):
    x = jnp.zeros((y.shape[0], pixels, y.shape[2]), y.dtype)
    return jnp.put_along_axis(x, indices, y, axis=1, inplace=False, mode="drop")


def _scatter_fwd(y, indices, pixels):
    return _scatter(y, indices, pixels), indices


def _scatter_bwd(pixels, indices, g):
    del pixels
    return jnp.take_along_axis(g, indices, axis=1), None


_scatter.defvjp(_scatter_fwd, _scatter_bwd)


def _flatten(x):
    return x.reshape(x.shape[0], -1, x.shape[3])


# --- common ---------------------------------------------------------------------------


def _greater(value, best):
    greater = value > best
    return greater | jnp.isnan(value) if _is_float(value) else greater


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def _lowest(dtype):
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf
    return jnp.iinfo(dtype).min


def _pair(name, value, least):
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(
            f"{name} is {value!r}; give an int of at least {least}, or two of them."
        )
    return pair


def _check_map(name, x):
    if x.ndim != 4:
        raise ValueError(
            f"{name} has shape {x.shape}; give [B, H, W, C], "
            f"for instance {name}[None] for one image."
        )


def _check_window(window):
    if not 1 <= window <= 16:
        raise ValueError(
            f"window is {window}; places in a window fit into uint8 from 1 to 16. "
            "max_pool_indices has no such limit."
        )


def _check_same(name, x, y):
    if x.shape != y.shape:
        raise ValueError(
            f"{name} has shape {x.shape} and y {y.shape}; give one of {name} for every "
            "value of y, from the pooling that y mirrors."
        )


def _check_pools_to(size, pooled, window):
    for axis, n, k in zip(("height", "width"), size, pooled):
        if -(-n // window) != k:
            raise ValueError(
                f"{axis} {n} pools to {-(-n // window)}, not to the map's {k}; "
                f"give {(k - 1) * window + 1} to {k * window}, the size that went "
                "into the pooling."
            )
