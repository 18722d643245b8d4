"""Max pooling over any windows, with indices over the plane, and its inverse.

Every geometry of `torch.nn.MaxPool2d`, overlapping windows included, by gathering and
scattering. For disjoint windows `jaxseg.ops.pooling` is many times faster.

Derivatives of `max_unpool_indices` are defined in reverse mode, to any order.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

IntOrPair = int | tuple[int, int]


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
    check_map("x", x)
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
    check_map("y", y)
    check_same("indices", indices, y)
    b, _, _, c = y.shape
    x = _scatter(_flatten(y), _flatten(indices), size[0] * size[1])
    return x.reshape(b, *size, c)


def _search(x, axes, window, stride, padding, dilation):
    """Flat index of each window's maximum, int32 [B, h, w, C]."""
    x = widened(x)
    b, height, width, c = x.shape
    (h, first_row), (w, first_column) = axes
    shape = (b, h, w, c)
    low = lowest(x.dtype)
    # From the first window's first pixel to the last window's last, padded or cut.
    margins = [
        (p, (count - 1) * s + d * (k - 1) + 1 - p - n, 0)
        for count, s, d, k, p, n in zip(
            (h, w), stride, dilation, window, padding, (height, width)
        )
    ]
    x = lax.pad(x, jnp.asarray(low, x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    # Begin at each window's first pixel, which wins if all its pixels are the lowest.
    tap = first_row[:, None] * window[1] + first_column[None, :]
    tap = jnp.broadcast_to(tap[None, :, :, None], shape)
    maxima = jnp.full(shape, low, x.dtype)
    for k in range(window[0] * window[1]):
        i, j = (q * d for q, d in zip(divmod(k, window[1]), dilation))
        rows = slice(i, i + (h - 1) * stride[0] + 1, stride[0])
        columns = slice(j, j + (w - 1) * stride[1] + 1, stride[1])
        piece = x[:, rows, columns]
        larger = greater(piece, maxima)
        maxima = jnp.where(larger, piece, maxima)
        tap = jnp.where(larger, k, tap)
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
    # Windows without a pixel begin before the image, between two taps, or behind it.
    for place in (*range(-(-padding // stride)), count - 1):
        start = place * stride - padding
        if place < count and (start % dilation if start < 0 else start) >= size:
            raise ValueError(
                f"the window that begins at pixel {start} of {size} holds no "
                f"pixel; give less padding ({padding}) or dilation ({dilation})."
            )
    start = lax.iota(jnp.int32, count) * stride - padding
    first = -(jnp.minimum(start, 0) // dilation)
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


def _pair(name, value, least):
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(
            f"{name} is {value!r}; give an int of at least {least}, or two of them."
        )
    return pair


def greater(value, best):
    """Whether `value` takes the lead: PyTorch's rule, in which NaN always does."""
    larger = value > best
    return larger | jnp.isnan(value) if _is_float(value) else larger


def windows(n, window):
    """Windows side by side that cover n pixels, the last of them perhaps in part.

    Rounded up as convolutions round their sizes, so that the two stay equal where
    sizes are symbolic, as in an export.
    """
    return (n - 1) // window + 1


def widened(x):
    """bfloat16 as float32: comparing it is exact, and several times faster on CPUs."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if _is_float(x) else x


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def lowest(dtype):
    """The value that no pixel is below."""
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf
    return jnp.iinfo(dtype).min


def check_map(name, x):
    """Refuses what is not [B, H, W, C]."""
    if x.ndim != 4:
        raise ValueError(
            f"{name} has shape {x.shape}; give [B, H, W, C], "
            f"for instance {name}[None] for one image."
        )


def check_same(name, x, y):
    """Refuses places or indices that do not belong to `y`."""
    if x.shape != y.shape:
        raise ValueError(
            f"{name} has shape {x.shape} and y {y.shape}; give one of {name} for every "
            "value of y, from the pooling that y mirrors."
        )
