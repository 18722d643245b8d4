"""Exact Gaussian sums: over the image plane, and over all pairs of points."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg.utils.rounding import divide_up, round_up

_TILE = 64  # Outputs of one matrix product along an axis.
_CHUNK = 256  # Rows of the matrix of all pairs that are in memory at a time.


def blur(x: jax.Array, sigma: float) -> jax.Array:
    """Gaussian sums over the image plane, with zero padding.

        y[i] = sum over j of exp(-|i - j|^2 / (2 sigma^2)) * x[j]

    along rows and columns in turn. The kernel is truncated at 5 sigma, which loses
    about 1e-6 of its sum.

    Args:
        x: values, float32 [H, W, C].
        sigma: standard deviation in pixels, above 0.

    Returns:
        The sums, not divided by the sum of the kernel, float32 [H, W, C].

    Raises:
        ValueError: if `x` is empty, or `sigma` is not positive.
    """
    chex.assert_rank(x, 3)
    if 0 in x.shape:
        raise ValueError(f"x has shape {x.shape}; no axis may be empty.")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}; it must be positive.")
    return _blur_axis(_blur_axis(x, sigma, 0), sigma, 1)


def _blur_axis(x, sigma, axis):
    # A banded matrix product in tiles: small dense products, which are fast on every
    # device, and a program whose size does not depend on sigma.
    size = x.shape[axis]
    radius = min(math.ceil(5 * sigma), size - 1)
    tiles = divide_up(size, _TILE)
    window = np.arange(_TILE + 2 * radius)
    offset = window - radius - np.arange(_TILE)[:, None]
    kernel = np.exp(-0.5 * (offset / sigma) ** 2) * (abs(offset) <= radius)
    margins = [(0, 0)] * 3
    margins[axis] = (radius, radius + tiles * _TILE - size)
    index = np.arange(tiles)[:, None] * _TILE + window
    x = jnp.take(jnp.pad(x, margins), index, axis=axis)
    form = ("os,tswc->towc", "os,htsc->htoc")[axis]
    y = jnp.einsum(form, kernel.astype("f4"), x, precision=lax.Precision.HIGHEST)
    y = y.reshape(*y.shape[:axis], tiles * _TILE, *y.shape[axis + 2 :])
    return lax.slice_in_dim(y, 0, size, axis=axis)


def sum_pairs(features: jax.Array, x: jax.Array) -> jax.Array:
    """Gaussian sums over all pairs of points, in O(N^2) time and O(N) memory.

        y[i] = sum over j of exp(-|f_i - f_j|^2 / 2) * x[j]

    Args:
        features: points f in units of the standard deviation, float32 [N, d].
        x: values, float32 [N, C].

    Returns:
        The sums, float32 [N, C]. Differentiable in both arguments, in O(N) memory.
    """
    chex.assert_rank([features, x], 2)
    chex.assert_equal_shape_prefix([features, x], 1)
    n, d = features.shape
    padding = round_up(n, _CHUNK) - n
    rows = jnp.pad(features, ((0, padding), (0, 0))).reshape(-1, _CHUNK, d)

    # The backward pass recomputes the rows of the matrix instead of storing them.
    @jax.checkpoint
    def chunk(rows):
        # |a|^2 + |b|^2 - 2 a b would suffer from cancellation in float32.
        square = sum(
            jnp.square(rows[:, k][:, None] - features[:, k][None]) for k in range(d)
        )
        return jnp.matmul(jnp.exp(-0.5 * square), x, precision=lax.Precision.HIGHEST)

    return lax.map(chunk, rows).reshape(-1, x.shape[1])[:n]
