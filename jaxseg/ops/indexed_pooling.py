"""Max pooling over any windows, with flat indices over the plane, and its inverse.

Supports every geometry of `torch.nn.MaxPool2d`, including overlapping windows. Pooling
uses slices and comparisons, forward and backward, so it can be sharded over space;
unpooling is a scatter. For disjoint windows `jaxseg.ops.pooling` is faster.

Derivatives are defined in reverse mode, to any order.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg.utils.rounding import divide_up

IntOrPair = int | tuple[int, int]


def max_pool_indices(
    x: jax.Array,
    window: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Max-pools any windows; also returns the flat index of each maximum.

    Equal to `torch.nn.MaxPool2d(return_indices=True)` in values, indices and
    gradients. Ties, NaN and clipping are handled as in `max_pool_argmax`, and padding
    is never selected. Along each axis the output has

        (H + 2 * padding - dilation * (window - 1) - 1) / stride + 1

    pixels, rounded down. With `ceil_mode` it is rounded up, without a last window that
    would begin behind the image and its leading padding. (Caffe always rounds up, and
    keeps such a window if there is no padding, which is possible if stride > window.)

    Args:
        x: features, [B, H, W, C], any real dtype.
        window: height and width of the window, or one int for both, in pixels.
        stride: distance between windows, in pixels; by default `window`, without
            overlap.
        padding: on every side, in pixels, at most half the window.
        dilation: distance between the pixels of a window.
        ceil_mode: whether to keep last windows that extend beyond the image.

    Returns:
        Maxima [B, h, w, C] in the dtype of `x`, and their indices, int32, same shape,
        row * W + column.

    Raises:
        ValueError: if the geometry is impossible or a window would contain no pixel.
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
    """Writes every value to its flat index over the plane; other pixels are zero.

    Equal to `torch.nn.MaxUnpool2d` with `output_size`. If windows overlapped, an index
    may occur several times: one of its values is kept, and each of them gets the whole
    gradient of the pixel, as in PyTorch.

    Args:
        y: features, [B, h, w, C], any real dtype.
        indices: flat index of each value, [B, h, w, C], integer, in [0, H*W).
        size: (H, W) of the result, in pixels.

    Returns:
        [B, H, W, C] in the dtype of `y`.

    Raises:
        ValueError: if the shapes of `y` and `indices` differ, or there is no pixel.
    """
    check_map("y", y)
    check_same("indices", indices, y)
    if any(isinstance(n, int) and n < 1 for n in size):
        raise ValueError(f"size is {size}; it must be at least 1 pixel on each side.")
    b, _, _, c = y.shape
    x: Any = _scatter(_flatten(y), _flatten(indices), size[0] * size[1])
    return x.reshape(b, *size, c)


class _Grid(NamedTuple):
    """Windows on a map: their number along both axes, and the geometry of each."""

    counts: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def margins(self, size):
        """Padding that makes the map end where the first and last windows end."""
        ends = (
            (p, (count - 1) * s + d * (k - 1) + 1 - p - n, 0)
            for count, k, s, p, d, n in zip(*self, size)
        )
        return [(0, 0, 0), *ends, (0, 0, 0)]

    def pieces(self, x, fill):
        """The values of `x` at each tap: maps [B, h, w, C], row by row of the window."""
        x = lax.pad(x, jnp.asarray(fill, x.dtype), self.margins(x.shape[1:3]))
        for offsets in self._offsets():
            rows, columns = (
                slice(start, start + (count - 1) * step + 1, step)
                for start, count, step in zip(offsets, self.counts, self.stride)
            )
            yield x[:, rows, columns]

    def spread(self, pieces, size):
        """The transpose of `pieces`: sums the values of all taps on a map of `size`.

        Taps with the same phase (the offset modulo the stride) are summed first, then
        the sums are interleaved: far faster than adding dilated maps.
        """
        sides = [
            count + d * (k - 1) // s
            for count, d, k, s in zip(
                self.counts, self.dilation, self.window, self.stride
            )
        ]
        phases = {}
        for piece, offsets in zip(pieces, self._offsets()):
            shifts, phase = zip(*map(divmod, offsets, self.stride))
            ends = (
                (shift, side - count - shift, 0)
                for shift, side, count in zip(shifts, sides, self.counts)
            )
            zero = jnp.zeros((), piece.dtype)
            piece = lax.pad(piece, zero, [(0, 0, 0), *ends, (0, 0, 0)])
            phases[phase] = phases[phase] + piece if phase in phases else piece
        empty = jnp.zeros_like(phases[0, 0])
        b, _, _, c = empty.shape
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
        """Offset of each tap from its window's first pixel, row by row."""
        for tap in itertools.product(*map(range, self.window)):
            yield tuple(i * d for i, d in zip(tap, self.dilation))


def _search(x, first, grid):
    """The tap at each window's maximum, int32 [B, h, w, C].

    `first` is the first tap inside the image, which wins if all values are the lowest.
    """
    x = widened(x)
    shape = (x.shape[0], *grid.counts, x.shape[3])
    tap = jnp.broadcast_to(first[None, :, :, None], shape)
    maxima = jnp.full(shape, lowest(x.dtype), x.dtype)
    for k, piece in enumerate(grid.pieces(x, lowest(x.dtype))):
        larger = greater(piece, maxima)
        maxima = jnp.where(larger, piece, maxima)
        tap = jnp.where(larger, k, tap)
    return tap


def _indices(taps, width, grid):
    """Flat index over the plane of each window's tap, int32 [B, h, w, C]."""
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
    """The value at the chosen tap of each window, [B, h, w, C]."""
    del size
    y = jnp.zeros(taps.shape, x.dtype)
    for k, piece in enumerate(grid.pieces(x, 0)):
        y = jnp.where(taps == k, piece, y)
    return y


def _pick_fwd(x, taps, size, grid):
    return _pick(x, taps, size, grid), taps


def _pick_bwd(size, grid, taps, g):
    return _add(g, taps, size, grid), None


_pick.defvjp(_pick_fwd, _pick_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _add(y, taps, size, grid):
    """Adds each window's value to the pixel at its tap: the transpose of `_pick`."""
    count = grid.window[0] * grid.window[1]
    return grid.spread((jnp.where(taps == k, y, 0) for k in range(count)), size)


def _add_fwd(y, taps, size, grid):
    return _add(y, taps, size, grid), taps


def _add_bwd(size, grid, taps, g):
    return _pick(g, taps, size, grid), None


_add.defvjp(_add_fwd, _add_bwd)


def _axis_geometry(size, window, stride, padding, dilation, ceil_mode):
    """Number of windows along an axis, and the first tap of each inside the image."""
    if 2 * padding > window:
        raise ValueError(
            f"padding {padding} is more than half of the window {window}; it must be "
            f"at most {window // 2}."
        )
    span = dilation * (window - 1) + 1
    room = size + 2 * padding - span + (stride - 1 if ceil_mode else 0)
    count = room // stride + 1
    if count < 1:
        raise ValueError(
            f"a window that spans {span} pixels does not fit into {size} pixels with "
            f"padding {padding}; use a larger map, or a smaller window or dilation."
        )
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    # A window without a pixel begins before the image, with the image between two of
    # its taps, or behind the image.
    for number in (*range(divide_up(padding, stride)), count - 1):
        start = number * stride - padding
        if number < count and (start % dilation if start < 0 else start) >= size:
            raise ValueError(
                f"the window that begins at pixel {start} of {size} contains no pixel; "
                f"reduce the padding ({padding}) or the dilation ({dilation})."
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
            f"{name} is {value!r}; expected an int of at least {least}, or two of them."
        )
    return pair


def greater(value: jax.Array, best: jax.Array) -> jax.Array:
    """Whether `value` replaces `best` as the maximum; NaN always does, as in PyTorch."""
    larger = value > best
    return larger | jnp.isnan(value) if _is_float(value) else larger


def widened(x: jax.Array) -> jax.Array:
    """bfloat16 as float32: exact, and several times faster to compare on CPUs."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if _is_float(x) else x


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def lowest(dtype: Any) -> float:
    """The smallest value of a dtype."""
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf
    return jnp.iinfo(dtype).min


def check_map(name: str, x: jax.Array) -> None:
    """Raises a ValueError unless `x` is [B, H, W, C] with at least one pixel."""
    if x.ndim != 4:
        raise ValueError(
            f"{name} has shape {x.shape}; expected [B, H, W, C], such as {name}[None] "
            "for one image."
        )
    # Symbolic sizes are not compared.
    if any(isinstance(n, int) and n == 0 for n in x.shape[1:3]):
        raise ValueError(f"{name} has shape {x.shape}, without any pixel.")


def check_same(name: str, x: jax.Array, y: jax.Array) -> None:
    """Raises a ValueError unless there is one place or index for each value of `y`."""
    if x.shape != y.shape:
        raise ValueError(
            f"{name} has shape {x.shape} and y has shape {y.shape}; they must be equal, "
            f"so use the {name} of the pooling that y corresponds to."
        )
