"""Transposed convolution, and the kernel that makes it interpolate bilinearly."""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.utils.rounding import divide_up


def bilinear_kernel(size: int) -> jax.Array:
    """Kernel with which a transposed convolution interpolates bilinearly.

        weight[i, j] = (1 - |i - c| / f) * (1 - |j - c| / f)

    where f = (size + 1) // 2 and c is the center of the kernel: f - 1 for an odd size,
    f - 0.5 for an even one. To enlarge by an even factor s, use size = 2 * s, stride s
    and padding s // 2; away from the border the result equals `resize_bilinear`.

    Args:
        size: side of the kernel, in pixels, at least 1.

    Returns:
        Weights in (0, 1], float32, [size, size].

    Raises:
        ValueError: if `size` is below 1.

    Source: FCN, sec. 3.3, https://arxiv.org/abs/1411.4038, and its `surgery.py`.
    """
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1 pixel.")
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    side = 1 - jnp.abs(jnp.arange(size) - center) / factor
    return side[:, None] * side[None, :]


def conv_transpose(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0
) -> jax.Array:
    """Transposed convolution with the geometry of Caffe and PyTorch.

        y[i * stride + r - padding] += x[i] * kernel[r]

    along both axes: every input pixel adds a copy of the kernel (not flipped) to the
    output, `stride` pixels apart, and `padding` pixels are cropped from every side.

    XLA's own form is a convolution of `x` dilated with zeros; its gradient is 15 to 40
    times slower on CPUs. This one computes the stride**2 phases of the output, each an
    ordinary small convolution of `x`, all at once in one matrix product (or, for a
    depthwise kernel, in one sum of products).

    Args:
        x: features, [B, H, W, Cin], floating.
        kernel: [kh, kw, Cin, Cout], or [kh, kw, Cin] for a depthwise convolution.
        stride: distance between two input pixels in the output, in pixels.
        padding: pixels to crop from every side of the output.

    Returns:
        [B, (H-1) * stride + kh - 2 * padding, (W-1) * stride + kw - 2 * padding, C],
        where C is Cout or Cin.

    Raises:
        ValueError: if the channels do not match, an axis is empty, or the output would
            be empty.
    """
    _check(x, kernel, stride, padding)
    if kernel.ndim == 4 and stride == 1:
        return _conv_flipped(x, kernel, padding)
    product = _dense_phases if kernel.ndim == 4 else _channelwise_phases
    y = _interleaved(x, kernel, stride, product)
    _, h, w, _ = x.shape
    height = (h - 1) * stride + kernel.shape[0] - 2 * padding
    width = (w - 1) * stride + kernel.shape[1] - 2 * padding
    return y[:, padding : padding + height, padding : padding + width]


def _conv_flipped(x, kernel, padding):
    """Stride 1: an ordinary convolution with the kernel flipped."""
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=[(k - 1 - padding,) * 2 for k in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _interleaved(x, kernel, stride, product):
    """The output before cropping, [B, h * stride, w * stride, C].

    The output pixel i * stride + r is the sum of x[i - a] * kernel[a * stride + r] over
    all a below ceil(kh / stride). The kernel is split into these taps, each of which
    has stride**2 phases.
    """
    rows, columns = (divide_up(k, stride) for k in kernel.shape[:2])
    fill = [(0, n * stride - k) for n, k in zip((rows, columns), kernel.shape)]
    kernel = jnp.pad(kernel, fill + [(0, 0)] * (kernel.ndim - 2))
    kernel = kernel.reshape(rows, stride, columns, stride, *kernel.shape[2:])
    b, h, w, _ = x.shape
    h, w = h + rows - 1, w + columns - 1
    x = jnp.pad(x, ((0, 0), (rows - 1,) * 2, (columns - 1,) * 2, (0, 0)))
    taps = [
        (x[:, rows - 1 - a :][:, :h, columns - 1 - c :][:, :, :w], kernel[a, :, c])
        for a in range(rows)
        for c in range(columns)
    ]
    return product(taps).reshape(b, h * stride, w * stride, -1)


def _dense_phases(taps):
    """[B, h, stride, w, stride, Cout] from taps ([B, h, w, Cin], [s, s, Cin, Cout])."""
    x = jnp.concatenate([x for x, _ in taps], axis=-1)
    kernel = jnp.concatenate([k for _, k in taps], axis=2)
    return jnp.einsum("bhwc,ijcd->bhiwjd", x, kernel)


def _channelwise_phases(taps):
    """[B, h, stride, w, stride, C] from taps ([B, h, w, C], [s, s, C])."""
    dtype = jnp.result_type(*taps[0])
    wide = jnp.promote_types(dtype, jnp.float32)
    products = [
        x.astype(wide)[:, :, None, :, None] * k.astype(wide)[None, None, :, None]
        for x, k in taps
    ]
    return functools.reduce(operator.add, products).astype(dtype)


def _check(x, kernel, stride, padding):
    if x.ndim != 4 or kernel.ndim not in (3, 4) or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"x has shape {x.shape} and kernel has shape {kernel.shape}; expected "
            "[B, H, W, Cin] and [kh, kw, Cin, Cout], or [kh, kw, Cin] for a depthwise "
            "convolution."
        )
    # Symbolic sizes are not compared.
    if any(isinstance(n, int) and n == 0 for n in (*x.shape, *kernel.shape)):
        raise ValueError(
            f"x has shape {x.shape} and kernel has shape {kernel.shape}; no axis may be "
            "empty."
        )
    if stride < 1 or padding < 0:
        raise ValueError(
            f"stride is {stride} and padding is {padding}; stride must be at least 1 "
            "and padding at least 0."
        )
    for axis, n, k in zip(("height", "width"), x.shape[1:], kernel.shape):
        whole = (n - 1) * stride + k
        if whole <= 2 * padding:
            raise ValueError(
                f"padding {padding} crops the whole {axis} of the output, {whole} "
                f"pixels; it must be below {(whole + 1) // 2}."
            )
