"""Resizing images on the device, bit for bit as OpenCV resizes them on the host.

A network with a fixed input size was trained on images resized by OpenCV: averaged over
the area of each output pixel when they shrink, interpolated bilinearly when they grow.
An exported network must do the same by itself. Averages often lie exactly between two
gray levels, so the result depends on the order of OpenCV's rounding steps, which this
code reproduces. Heights and widths of the image may be symbolic.

Source: opencv/modules/imgproc/src/resize.cpp.
"""

import jax
import jax.numpy as jnp
from jax import lax


def resize_image(image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes images by area averaging if they shrink, else by interpolation.

    Equal to `jaxseg.data.transforms.resize_image` applied to each image of the batch.

    Args:
        image: uint8 [B, H, W, C].
        size: (height, width) of the result, in pixels.

    Returns:
        uint8 [B, *size, C].

    Raises:
        ValueError: if the image is not uint8, or a side has no pixel.
    """
    if image.dtype != jnp.uint8:
        raise ValueError(f"image is {image.dtype}; expected uint8.")
    # Symbolic sizes are not compared.
    if any(isinstance(n, int) and n < 1 for n in (*image.shape[1:3], *size)):
        raise ValueError(
            f"image has shape {image.shape} and size is {size}; each side must have at "
            "least 1 pixel."
        )
    height, width = map(jnp.asarray, image.shape[1:3])
    shrinks = (height > size[0]) & (width > size[1])
    return lax.cond(
        shrinks, lambda x: _average(x, size), lambda x: _interpolate(x, size), image
    )


def _average(image, size):
    """INTER_AREA: float sums over the columns, then the rows, of each pixel's area."""
    factors = [jnp.asarray(n) // out for n, out in zip(image.shape[1:3], size)]
    rest = [jnp.asarray(n) % out for n, out in zip(image.shape[1:3], size)]
    whole = (rest[0] == 0) & (rest[1] == 0)
    x = image.astype(jnp.float32)
    for axis in (2, 1):
        x = _sum(x, size[axis - 1], axis, whole)
    # If each area holds whole pixels, OpenCV sums integers and divides once.
    mean = jnp.where(whole, x * (1 / (factors[0] * factors[1])), x)
    two_by_two = whole & (factors[0] == 2) & (factors[1] == 2)
    mean = jnp.where(two_by_two, jnp.floor((x + 2) / 4), jnp.round(mean))
    return jnp.clip(mean, 0, 255).astype(jnp.uint8)


def _sum(x, out, axis, whole):
    """Sums over the area of each of `out` pixels, weighted by the overlap."""
    n = x.shape[axis]
    i = jnp.arange(out)
    begin, before = jnp.divmod(i * n, out)  # whole pixels, remainder in 1 / out pixel
    end, after = jnp.divmod((i + 1) * n, out)

    def add(tap, total):
        pixel = begin + tap
        covered = jnp.where(pixel < end, out, jnp.where(pixel == end, after, 0))
        covered = jnp.where(tap == 0, covered - before, covered)
        # OpenCV ignores overlaps of less than a thousandth of a pixel.
        covered = jnp.where(covered * 1000 > out, covered, 0)
        weight = _divide(covered, jnp.where(whole, out, n))
        weight = weight.reshape([-1 if k == axis else 1 for k in range(4)])
        term = weight * jnp.take(x, pixel, axis=axis, mode="clip")
        # The maximum does not change the value. It keeps compilers from fusing the
        # product and the sum, which would then be rounded once instead of twice.
        return total + jnp.maximum(term, 0)

    shape = [out if k == axis else m for k, m in enumerate(x.shape)]
    return lax.fori_loop(0, n // out + 2, add, jnp.zeros(shape, jnp.float32))


def _interpolate(image, size):
    """INTER_LINEAR: fixed-point weights of 11 bits, columns first."""
    x = image.astype(jnp.int32)
    pixel, weights = _between(x.shape[2], size[1])
    inside = (pixel >= 0) & (pixel < x.shape[2] - 1)
    # Beyond the border OpenCV gives a column the full weight, but blends a row with
    # itself.
    weights = jnp.where(inside[None], weights, jnp.array([[2048], [0]]))
    pixel = jnp.clip(pixel, 0, x.shape[2] - 1)
    left, right = (
        jnp.take(x, pixel + k, axis=2, mode="clip") * weights[k][None, None, :, None]
        for k in (0, 1)
    )
    x = left + right
    pixel, weights = _between(x.shape[1], size[0])
    above, below = (
        (jnp.take(x, pixel + k, axis=1, mode="clip") >> 4)
        * weights[k][None, :, None, None]
        >> 16
        for k in (0, 1)
    )
    return jnp.clip((above + below + 2) >> 2, 0, 255).astype(jnp.uint8)


def _between(n, out):
    """The pixel before each of `out`, and weights of it and the next in 1/2048."""
    position = _divide((2 * jnp.arange(out) + 1) * n - out, jnp.asarray(2 * out))
    pixel = jnp.floor(position)
    fraction = position - pixel
    weights = jnp.stack([1 - fraction, fraction])
    return pixel.astype(jnp.int32), jnp.round(weights * 2048).astype(jnp.int32)


def _divide(x, divisor):
    """Divides integers in float32, correctly rounded."""
    # Compilers would multiply by the rounded inverse of a scalar divisor instead.
    divisor = jnp.broadcast_to(divisor, jnp.shape(x)).astype(jnp.float32)
    return x.astype(jnp.float32) / lax.optimization_barrier(divisor)
