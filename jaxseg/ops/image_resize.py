"""Resizing photographs in a program as OpenCV does on the host, to the last bit.

A network that is fed at one size has seen images that OpenCV has resized: averaged over
the area under each pixel where they shrink, interpolated linearly where they grow. What
is exported must do the same itself, and a mean over pixels often lies exactly between
two grey levels: which of them it becomes is a matter of OpenCV's order of rounding, so
that order is kept here. Heights and widths of the image may be symbolic.

Source: opencv/modules/imgproc/src/resize.cpp.
"""

import jax
import jax.numpy as jnp
from jax import lax


def resize_image(image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes images, averaging where they shrink and interpolating where they grow.

    Equal to `jaxseg.data.transforms.resize_image`, for images of a batch.

    Args:
        image: uint8 [B, H, W, C].
        size: height and width to give them.

    Returns:
        uint8 [B, *size, C].
    """
    height, width = map(jnp.asarray, image.shape[1:3])
    shrinks = (height > size[0]) & (width > size[1])
    return lax.cond(
        shrinks, lambda x: _average(x, size), lambda x: _interpolate(x, size), image
    )


def _average(image, size):
    """INTER_AREA: float sums over the columns, then the rows, under each pixel."""
    factors = [jnp.asarray(n) // out for n, out in zip(image.shape[1:3], size)]
    rest = [jnp.asarray(n) % out for n, out in zip(image.shape[1:3], size)]
    whole = (rest[0] == 0) & (rest[1] == 0)
    x = image.astype(jnp.float32)
    for axis in (2, 1):
        x = _sum(x, size[axis - 1], axis, whole)
    # Over windows of whole pixels OpenCV sums integers and divides once.
    mean = jnp.where(whole, x * (1 / (factors[0] * factors[1])), x)
    halves = whole & (factors[0] == 2) & (factors[1] == 2)
    mean = jnp.where(halves, jnp.floor((x + 2) / 4), jnp.round(mean))
    return jnp.clip(mean, 0, 255).astype(jnp.uint8)


def _sum(x, out, axis, whole):
    """The pixels under each of `out`, weighed by the share of it that they cover."""
    n = x.shape[axis]
    i = jnp.arange(out)
    begin, before = jnp.divmod(i * n, out)  # in pixels, and a rest in 1 / out of them
    end, after = jnp.divmod((i + 1) * n, out)

    def add(tap, total):
        pixel = begin + tap
        covered = jnp.where(pixel < end, out, jnp.where(pixel == end, after, 0))
        covered = jnp.where(tap == 0, covered - before, covered)
        # OpenCV leaves out what covers less than a thousandth of a pixel.
        covered = jnp.where(covered * 1000 > out, covered, 0)
        weight = _divide(covered, jnp.where(whole, out, n))
        weight = weight.reshape([-1 if k == axis else 1 for k in range(4)])
        term = weight * jnp.take(x, pixel, axis=axis, mode="clip")
        # The maximum changes nothing but keeps compilers from fusing product and sum,
        # which would round once and not twice.
        return total + jnp.maximum(term, 0)

    shape = [out if k == axis else m for k, m in enumerate(x.shape)]
    return lax.fori_loop(0, n // out + 2, add, jnp.zeros(shape, jnp.float32))


def _interpolate(image, size):
    """INTER_LINEAR: fixed-point weights of 11 bits, columns first."""
    x = image.astype(jnp.int32)
    pixel, weights = _between(x.shape[2], size[1])
    inside = (pixel >= 0) & (pixel < x.shape[2] - 1)
    # Beside the image a column counts whole, while a row is mixed with itself.
    weights = jnp.where(inside[None], weights, jnp.array([[2048], [0]]))
    pixel = jnp.clip(pixel, 0, x.shape[2] - 1)
    columns = [jnp.take(x, pixel + k, axis=2, mode="clip") for k in (0, 1)]
    x = sum(c * w[None, None, :, None] for c, w in zip(columns, weights))
    pixel, weights = _between(x.shape[1], size[0])
    rows = [jnp.take(x, pixel + k, axis=1, mode="clip") for k in (0, 1)]
    x = sum((r >> 4) * w[None, :, None, None] >> 16 for r, w in zip(rows, weights))
    return jnp.clip((x + 2) >> 2, 0, 255).astype(jnp.uint8)


def _between(n, out):
    """The pixel before each of `out`, and the weights of it and the next in 1/2048."""
    place = _divide((2 * jnp.arange(out) + 1) * n - out, jnp.asarray(2 * out))
    pixel = jnp.floor(place)
    fraction = place - pixel
    weights = jnp.stack([1 - fraction, fraction])
    return pixel.astype(jnp.int32), jnp.round(weights * 2048).astype(jnp.int32)


def _divide(x, divisor):
    """Integers as floats; compilers would multiply by a scalar's rounded inverse."""
    divisor = jnp.broadcast_to(divisor, x.shape).astype(jnp.float32)
    return x.astype(jnp.float32) / lax.optimization_barrier(divisor)
