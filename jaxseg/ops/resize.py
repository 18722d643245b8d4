"""Resizing maps to a size, bilinearly or by the nearest pixel; cropping and padding.

Pixels are squares: pixel i of n covers [i, i + 1) and a resized map covers the same
area, so pixel i of the result looks at (i + 0.5) * n / size - 0.5 (half-pixel centres).
With `align_corners` the centres of the corner pixels coincide instead, and it looks at
i * (n - 1) / (size - 1). Enlarging and shrinking alike interpolate between the nearest
pixels, without antialiasing, as the segmentation literature's frameworks do.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def resize_bilinear(
    x: jax.Array, size: tuple[int, int], align_corners: bool = False
) -> jax.Array:
    """Resizes to `size` by bilinear interpolation; beyond the border, the border.

    Equal to `torch.nn.functional.interpolate(mode="bilinear", antialias=False)`.

    Args:
        x: [B, H, W, C], floating. Computed in float32 at least.
        size: (height, width) of the result, in pixels.
        align_corners: False, half-pixel centres: OpenCV, TensorFlow 2, PyTorch's
            default. True, corner centres coincide: Caffe's Interp, DeepLab.

    Returns:
        [B, *size, C] in the dtype of `x`.

    Raises:
        ValueError: if `x` does not have four axes or `size` is not positive.
    """
    _check(x, size)
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

    The sizes may be traced, so one compiled program scores images of any sizes. Where
    size equals `out_shape` this is `resize_bilinear`, half-pixel centres. It gathers
    pixels, which is fast forward and slow backward: a form for evaluation.

    Args:
        x: [B, h, w, C], floating. Computed in float32 at least.
        size: (height, width) of each sample's result, in pixels, int32, [B, 2], from 1
            to `out_shape`.
        out_shape: (height, width) of the result, in pixels.

    Returns:
        [B, *out_shape, C] in the dtype of `x`. What stands below and to the right of a
        sample's size is left over and means nothing.

    Raises:
        ValueError: if `x` does not have four axes, `size` not two or `out_shape` is
            not positive.
    """
    _check(x, out_shape)
    if size.shape != (x.shape[0], 2):
        raise ValueError(
            f"size has shape {size.shape} for {x.shape[0]} samples; give "
            f"({x.shape[0]}, 2), one height and width for each."
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
    """Resizes to `size` by taking the pixel under each centre; for labels, too.

    Enlarging by a whole number repeats every pixel. Equal to
    `torch.nn.functional.interpolate(mode="nearest-exact")`.

    Args:
        x: [B, H, W] or [B, H, W, C], any dtype.
        size: (height, width) of the result, in pixels.

    Returns:
        [B, *size] or [B, *size, C] in the dtype of `x`.

    Raises:
        ValueError: if `x` does not have three or four axes or `size` is not positive.
    """
    _check(x, size, axes=(3, 4))
    for axis, (n, out) in enumerate(zip(x.shape[1:3], size), start=1):
        if out % n == 0:
            x = jnp.repeat(x, out // n, axis=axis)
        else:
            x = jnp.take(x, (2 * jnp.arange(out) + 1) * n // (2 * out), axis=axis)
    return x


def crop_to(
    x: jax.Array, size: tuple[int, int], offset: tuple[int, int] = (0, 0)
) -> jax.Array:
    """Cuts out `size` pixels, beginning at `offset`.

    Args:
        x: [B, H, W] or [B, H, W, C], any dtype.
        size: (height, width) of the result, in pixels.
        offset: (row, column) of its first pixel.

    Returns:
        [B, *size] or [B, *size, C].

    Raises:
        ValueError: if the crop reaches over the edge.
    """
    _check(x, size, axes=(3, 4))
    for axis, n, out, start in zip(("height", "width"), x.shape[1:], size, offset):
        if start < 0 or start + out > n:
            raise ValueError(
                f"a crop of {axis} {out} from {start} on reaches out of {n} pixels; "
                f"crop at most {max(0, n - max(0, start))}, or pad first."
            )
    (top, left), (height, width) = offset, size
    return x[:, top : top + height, left : left + width]


def pad_to(x: jax.Array, size: tuple[int, int], value: float) -> jax.Array:
    """Fills up with `value` at the bottom and on the right until `size` is reached.

    Args:
        x: [B, H, W] or [B, H, W, C], any dtype.
        size: (height, width) of the result, in pixels.
        value: for the new pixels; 255 makes those of a label void.

    Returns:
        [B, *size] or [B, *size, C] in the dtype of `x`.

    Raises:
        ValueError: if `x` is larger than `size`.
    """
    _check(x, size, axes=(3, 4))
    for axis, n, out in zip(("height", "width"), x.shape[1:], size):
        if n > out:
            raise ValueError(
                f"{axis} {n} does not fit into {out}; pad to at least {n}, "
                "or crop first."
            )
    fill = [(0, out - n) for n, out in zip(x.shape[1:3], size)]
    fill = [(0, 0), *fill, *[(0, 0)] * (x.ndim - 3)]
    return jnp.pad(x, fill, constant_values=value)


def _positions(n, size, count, align_corners):
    """Where each of `count` pixels looks, when `size` of them span a map of n.

    `size` may be traced. Returns the pixel, int32 [count], and the fraction, float32
    [count], of the way from there to the next.
    """
    i = jnp.arange(count)
    # Divided in integers, since float32 would lose the fraction on large maps.
    if align_corners:
        numerator, denominator = i * (n - 1), jnp.maximum(size - 1, 1)
    else:
        numerator, denominator = (2 * i + 1) * n - size, 2 * size
    pixel, rest = jnp.divmod(numerator, denominator)
    inside = (pixel >= 0) & (pixel < n - 1)
    return jnp.clip(pixel, 0, n - 1), jnp.where(inside, rest / denominator, 0)


def _interpolate(x, size, axis, align_corners):
    """To any size, by a matrix product: its gradient is a matrix product again."""
    n = x.shape[axis]
    pixel, fraction = _positions(n, size, size, align_corners)
    pixel, fraction, j = pixel[:, None], fraction[:, None], jnp.arange(n)[None, :]
    weights = jnp.where(j == pixel, 1 - fraction, 0)
    weights = jnp.where(j == pixel + 1, fraction, weights)
    # Full precision keeps float32 on accelerators.
    formula = {1: "oh,bhwc->bowc", 2: "ow,bhwc->bhoc"}[axis]
    return jnp.einsum(formula, weights, x, precision="highest")


def _multiply(x, factor, axis):
    """To a multiple of the size, by its phases: several times faster, and local."""
    n = x.shape[axis]
    part = functools.partial(lax.slice_in_dim, x, axis=axis)
    # Concatenated, since padding by the edge has a far slower gradient.
    before = jnp.concatenate([part(0, 1), part(0, n - 1)], axis=axis)
    after = jnp.concatenate([part(1, n), part(n - 1, n)], axis=axis)
    phases = []
    for phase in range(factor):
        offset = (phase + 0.5) / factor - 0.5
        neighbour = before if offset < 0 else after
        phases.append(x * (1 - abs(offset)) + neighbour * abs(offset))
    shape = (*x.shape[:axis], n * factor, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis=axis + 1).reshape(shape)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check(x, size, axes=(4,)):
    if x.ndim not in axes:
        shapes = " or ".join({3: "[B, H, W]", 4: "[B, H, W, C]"}[n] for n in axes)
        raise ValueError(f"x has shape {x.shape}; give {shapes}.")
    if len(size) != 2 or any(n < 1 for n in size):
        raise ValueError(f"size is {size}; give a height and width of at least 1.")
