"""Bilinear and nearest-neighbor resizing of maps; cropping and padding.

Pixels are squares: pixel i covers [i, i + 1), and the resized map covers the same area,
so pixel i of the result samples position (i + 0.5) * n / size - 0.5 (half-pixel
centers). With `align_corners` the centers of the corner pixels coincide instead, and it
samples i * (n - 1) / (size - 1). Both enlarging and shrinking interpolate between the
nearest pixels without antialiasing, as in the frameworks of the segmentation papers.
"""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)


def resize_bilinear(
    x: jax.Array, size: tuple[int, int], align_corners: bool = False
) -> jax.Array:
    """Resizes to `size` by bilinear interpolation; borders are replicated.

    Equal to `torch.nn.functional.interpolate(mode="bilinear", antialias=False)`.

    Args:
        x: [B, H, W, C], floating. Computed in float32 or wider.
        size: (height, width) of the result, in pixels.
        align_corners: False for half-pixel centers, as in OpenCV, TensorFlow 2 and, by
            default, PyTorch. True for coinciding corner centers, as in Caffe's Interp
            layer and DeepLab.

    Returns:
        [B, *size, C] in the dtype of `x`.

    Raises:
        ValueError: if `x` does not have four axes, or its height, its width or `size`
            is not positive.
    """
    _check_resize(x, size)
    y = _wide(x)
    for axis, out in enumerate(size, start=1):
        if out % x.shape[axis] == 0 and not align_corners:
            y = _multiply(y, out // x.shape[axis], axis)
        else:
            y = _interpolate(y, out, axis, align_corners)
    return y.astype(x.dtype)


def resize_bilinear_to(
    x: jax.Array, size: jax.Array, out_shape: tuple[int, int]
) -> jax.Array:
    """Resizes every sample to its own size, in the top left corner of one shape.

    The sizes may be traced, so one compiled program handles images of any size. For
    samples whose size is `out_shape` this equals `resize_bilinear` with half-pixel
    centers. It gathers pixels, which is fast forward but slow backward, so it is meant
    for evaluation.

    Args:
        x: [B, h, w, C], floating. Computed in float32 or wider.
        size: (height, width) of each sample's result, in pixels, int32, [B, 2], from 1
            to `out_shape`.
        out_shape: (height, width) of the result, in pixels.

    Returns:
        [B, *out_shape, C] in the dtype of `x`. Pixels below and to the right of a
        sample's size are undefined.

    Raises:
        ValueError: if `x` does not have four axes, `size` is not [B, 2], or the height
            or width of `x` or `out_shape` is not positive.
    """
    _check_resize(x, out_shape)
    if size.shape != (x.shape[0], 2):
        raise ValueError(
            f"size has shape {size.shape} for {x.shape[0]} samples; expected "
            f"({x.shape[0]}, 2), a height and a width per sample."
        )

    def resize(y, size):
        for axis in range(2):
            n, out = y.shape[axis], out_shape[axis]
            pixel, fraction = _positions(n, size[axis], out, align_corners=False)
            fraction = fraction.reshape([(out, 1, 1), (1, out, 1)][axis])
            this = jnp.take(y, pixel, axis=axis, mode="clip")
            next_ = jnp.take(y, pixel + 1, axis=axis, mode="clip")
            y = this * (1 - fraction) + next_ * fraction
        return y

    return jax.vmap(resize)(_wide(x), size).astype(x.dtype)


def resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes to `size` by nearest-neighbor sampling; also for labels.

    An integer factor repeats every pixel. Equal to
    `torch.nn.functional.interpolate(mode="nearest-exact")`.

    Args:
        x: [B, H, W] or [B, H, W, C], any dtype.
        size: (height, width) of the result, in pixels.

    Returns:
        [B, *size] or [B, *size, C] in the dtype of `x`.

    Raises:
        ValueError: if `x` does not have three or four axes, or its height, its width
            or `size` is not positive.
    """
    _check_resize(x, size, axes=(3, 4))
    for axis, (n, out) in enumerate(zip(x.shape[1:3], size), start=1):
        if out % n == 0:
            x = jnp.repeat(x, out // n, axis=axis)
        else:
            x = jnp.take(x, (2 * jnp.arange(out) + 1) * n // (2 * out), axis=axis)
    return x


def crop_to(
    x: jax.Array, size: tuple[int, int], offset: tuple[int, int] = (0, 0)
) -> jax.Array:
    """Crops a window of `size` that begins at `offset`.

    Args:
        x: [B, H, W] or [B, H, W, C], any dtype.
        size: (height, width) of the result, in pixels.
        offset: (row, column) of its first pixel.

    Returns:
        [B, *size] or [B, *size, C].

    Raises:
        ValueError: if the window extends beyond the map.
    """
    _check(x, size, axes=(3, 4))
    for axis, n, out, start in zip(("height", "width"), x.shape[1:], size, offset):
        if start < 0 or start + out > n:
            raise ValueError(
                f"a crop of {axis} {out} at offset {start} extends beyond {n} pixels; "
                f"crop at most {max(0, n - max(0, start))}, or pad first."
            )
    (top, left), (height, width) = offset, size
    return x[:, top : top + height, left : left + width]


def pad_to(x: jax.Array, size: tuple[int, int], value: float) -> jax.Array:
    """Pads with `value` at the bottom and right, to `size`.

    Args:
        x: [B, H, W] or [B, H, W, C], any dtype.
        size: (height, width) of the result, in pixels.
        value: of the new pixels; for labels use the ignore index, 255.

    Returns:
        [B, *size] or [B, *size, C] in the dtype of `x`.

    Raises:
        ValueError: if `x` is larger than `size`.
    """
    _check(x, size, axes=(3, 4))
    for axis, n, out in zip(("height", "width"), x.shape[1:], size):
        if n > out:
            raise ValueError(
                f"{axis} {n} is larger than {out}; pad to at least {n}, or crop first."
            )
    fill = [(0, out - n) for n, out in zip(x.shape[1:3], size)]
    fill = [(0, 0), *fill, *[(0, 0)] * (x.ndim - 3)]
    return jnp.pad(x, fill, constant_values=value)


def pad_edges(x: ArrayT, size: tuple[Any, Any]) -> ArrayT:
    """Pads to `size` by repeating the last row and column.

    Args:
        x: [..., H, W, C], any dtype, a JAX or NumPy array.
        size: (height, width) of the result, at least those of `x`; may be symbolic.

    Returns:
        [..., *size, C], the same kind of array.
    """
    numpy: Any = np if isinstance(x, np.ndarray) else jnp
    for axis, out in zip((-3, -2), size):
        if x.shape[axis] != out:
            # Not by pad, which does not allow symbolic sizes.
            x = numpy.take(x, numpy.arange(out), axis=axis, mode="clip")
    return x


def _positions(n, size, count, align_corners):
    """The positions in n pixels that `count` pixels sample, if `size` of them span n.

    `size` may be traced. Returns the pixel before each position, int32 [count], and the
    fraction of the distance to the next pixel, float32 [count].
    """
    i = jnp.arange(count)
    # Integer division, because float32 would lose the fraction on large maps.
    if align_corners:
        numerator, denominator = i * (n - 1), jnp.maximum(size - 1, 1)
    else:
        numerator, denominator = (2 * i + 1) * n - size, 2 * size
    pixel, rest = jnp.divmod(numerator, denominator)
    inside = (pixel >= 0) & (pixel < n - 1)
    return jnp.clip(pixel, 0, n - 1), jnp.where(inside, rest / denominator, 0)


def _interpolate(x, size, axis, align_corners):
    """Resizes to any size by a matrix product, whose gradient is one as well."""
    n = x.shape[axis]
    pixel, fraction = _positions(n, size, size, align_corners)
    pixel, fraction, j = pixel[:, None], fraction[:, None], jnp.arange(n)[None, :]
    weights = jnp.where(j == pixel, 1 - fraction, 0)
    weights = jnp.where(j == pixel + 1, fraction, weights)
    # Full precision keeps float32 on accelerators.
    formula = {1: "oh,bhwc->bowc", 2: "ow,bhwc->bhoc"}[axis]
    return jnp.einsum(formula, weights, x, precision="highest")


def _multiply(x, factor, axis):
    """Resizes by an integer factor, phase by phase: several times faster, and local."""
    n = x.shape[axis]
    cut = functools.partial(lax.slice_in_dim, x, axis=axis)
    # Concatenated, because edge padding has a far slower gradient.
    before = jnp.concatenate([cut(0, 1), cut(0, n - 1)], axis=axis)
    after = jnp.concatenate([cut(1, n), cut(n - 1, n)], axis=axis)
    phases = []
    for phase in range(factor):
        offset = (phase + 0.5) / factor - 0.5
        neighbor = before if offset < 0 else after
        phases.append(x * (1 - abs(offset)) + neighbor * abs(offset))
    shape = (*x.shape[:axis], n * factor, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis=axis + 1).reshape(shape)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_resize(x, size, axes=(4,)):
    _check(x, size, axes)
    if 0 in x.shape[1:3]:
        raise ValueError(f"x has shape {x.shape}, without pixels to resize.")


def _check(x, size, axes=(4,)):
    if x.ndim not in axes:
        shapes = " or ".join({3: "[B, H, W]", 4: "[B, H, W, C]"}[n] for n in axes)
        raise ValueError(f"x has shape {x.shape}; expected {shapes}.")
    if len(size) != 2 or any(n < 1 for n in size):
        raise ValueError(f"size is {size}; expected a height and width of at least 1.")
