"""Max pooling over any windows, with indices over the plane, and its inverse.

Every geometry of `torch.nn.MaxPool2d`, overlapping windows included. Pooling is slices
and comparisons, forward and backward, and shards over space; unpooling scatters. For
disjoint windows `jaxseg.ops.pooling` is faster.

Derivatives are defined in reverse mode, to any order.
"""

import functools
import itertools
from typing import NamedTuple

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
    (h, first_row), (w, first_column) = axes
    grid = _Grid((h, w), window, stride, padding, dilation)
    first = first_row[:, None] * window[1] + first_column[None, :]
    taps = _search(lax.stop_gradient(x), first, grid)
    return _pick(x, taps, x.shape[1:3], grid), _indices(taps, x.shape[2], grid)


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


class _Grid(NamedTuple):
    """Windows on a map: their number along both axes, and the form of each."""

    count: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def margins(self, size):
        """Padding from the first window's first pixel to the last window's last."""
        ends = (
            (p, (count - 1) * s + d * (k - 1) + 1 - p - n, 0)
            for count, k, s, p, d, n in zip(*self, size)
        )
        return [(0, 0, 0), *ends, (0, 0, 0)]

    def pieces(self, x, fill):
        """What each tap sees of `x`: maps [B, h, w, C], row by row of the window."""
        x = lax.pad(x, jnp.asarray(fill, x.dtype), self.margins(x.shape[1:3]))
        for offsets in self._offsets():
            rows, columns = (
                slice(start, start + (count - 1) * step + 1, step)
                for start, count, step in zip(offsets, self.count, self.stride)
            )
            yield x[:, rows, columns]

    def spread(self, pieces, size):
        """The sum of what each tap puts on a map of `size`: `pieces` transposed.

        Taps that see the same rows and columns of every stride are summed first, and
        the sums then interleaved: far faster than adding maps with gaps.
        """
        sides = [
            count + d * (k - 1) // s
            for count, d, k, s in zip(
                self.count, self.dilation, self.window, self.stride
            )
        ]
        phases = {}
        for piece, offsets in zip(pieces, self._offsets()):
            shifts, phase = zip(*map(divmod, offsets, self.stride))
            ends = (
                (shift, side - count - shift, 0)
                for shift, side, count in zip(shifts, sides, self.count)
            )
            zero = jnp.zeros((), piece.dtype)
            piece = lax.pad(piece, zero, [(0, 0, 0), *ends, (0, 0, 0)])
            phases[phase] = phases[phase] + piece if phase in phases else piece
        b, _, _, c = piece.shape
        empty = jnp.zeros((b, *sides, c), piece.dtype)
        rows, columns = self.stride
        y = jnp.stack(
            [
                jnp.stack([phases.get((i, j), empty) for j in range(columns)], axis=3)
                for i in range(rows)
            ],
            axis=2,
        ).reshape(b, sides[0] * rows, sides[1] * columns, c)
        cut = [
            (-before, before + n - whole, 0)
            for before, n, whole in zip(self.padding, size, y.shape[1:3])
        ]
        return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *cut, (0, 0, 0)])

    def _offsets(self):
        """First pixel that each tap sees, row by row of the window."""
        for tap in itertools.product(*map(range, self.window)):
            yield tuple(i * d for i, d in zip(tap, self.dilation))


def _search(x, first, grid):
    """Number of the tap that sees each window's maximum, int32 [B, h, w, C].

    `first` is that of each window's first pixel, which wins if all are the lowest.
    """
    x = widened(x)
    shape = (x.shape[0], *grid.count, x.shape[3])
    tap = jnp.broadcast_to(first[None, :, :, None], shape)
    maxima = jnp.full(shape, lowest(x.dtype), x.dtype)
    for k, piece in enumerate(grid.pieces(x, lowest(x.dtype))):
        larger = greater(piece, maxima)
        maxima = jnp.where(larger, piece, maxima)
        tap = jnp.where(larger, k, tap)
    return tap


def _indices(taps, width, grid):
    """Flat index over the plane of what each tap sees, int32 [B, h, w, C]."""
    row, column = (
        lax.broadcasted_iota(jnp.int32, taps.shape, axis) * s - p + tap * d
        for axis, s, p, d, tap in zip(
            (1, 2),
            grid.stride,
            grid.padding,
            grid.dilation,
            (taps // grid.window[1], taps % grid.window[1]),
        )
    )
    return row * width + column


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pick(x, taps, size, grid):
    """What the chosen tap of each window sees, [B, h, w, C]."""
    del size
    y = jnp.zeros(taps.shape, x.dtype)
    for k, piece in enumerate(grid.pieces(x, 0)):
        y = jnp.where(taps == k, piece, y)
    return y


def _pick_fwd(x, taps, size, grid):
    return _pick(x, taps, size, grid), taps


def _pick_bwd(size, grid, taps, g):
    return _lay(g, taps, size, grid), None


_pick.defvjp(_pick_fwd, _pick_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lay(y, taps, size, grid):
    """Adds each window's value to the pixel that its tap sees: `_pick` transposed."""
    count = grid.window[0] * grid.window[1]
    return grid.spread((jnp.where(taps == k, y, 0) for k in range(count)), size)


def _lay_fwd(y, taps, size, grid):
    return _lay(y, taps, size, grid), taps


def _lay_bwd(size, grid, taps, g):
    return _pick(g, taps, size, grid), None


_lay.defvjp(_lay_fwd, _lay_bwd)


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
