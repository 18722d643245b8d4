"""Exact Gaussian sums: over the plane, and over all pairs of points."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_TILE = 64  # Outputs of one matrix product along an axis.
_CHUNK = 256  # Rows of the matrix of all pairs that are in memory at a time.


def blur(x: jax.Array, sigma: float) -> jax.Array:
    """Gaussian sums over the plane, with zeros around it.

        y[i] = sum over j of exp(-|i - j|^2 / (2 sigma^2)) * x[j]

    along rows and columns in turn, cut off at 5 sigma: a part in 10^6 of the whole.

    Args:
        x: values, float32 [H, W, C].
        sigma: standard deviation in pixels, above 0.

    Returns:
        The sums, not divided by that of the kernel, float32 [H, W, C].
    """
    return _blur_axis(_blur_axis(x, sigma, 0), sigma, 1)


def _blur_axis(x, sigma, axis):
    # A banded matrix by tiles: products of small matrices, which all devices are fast
    # at, and a program that does not grow with sigma.
    size = x.shape[axis]
    radius = min(math.ceil(5 * sigma), size - 1)
    tiles = -(-size // _TILE)
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
        features: points in standard deviations, float32 [N, d].
        x: their values, float32 [N, C].

    Returns:
        The sums, float32 [N, C]; differentiable in both, and keeping no more memory
        for it.
    """
    n, d = features.shape
    rows = jnp.pad(features, ((0, -n % _CHUNK), (0, 0))).reshape(-1, _CHUNK, d)

    # Rows of the matrix are made again for the gradient, rather than kept.
    @jax.checkpoint
    def chunk(rows):
        # Not by |a|^2 + |b|^2 - 2 a b, in which float32 would cancel.
        square = sum(
            jnp.square(rows[:, k][:, None] - features[:, k][None]) for k in range(d)
        )
        return jnp.matmul(jnp.exp(-0.5 * square), x, precision=lax.Precision.HIGHEST)

    return lax.map(chunk, rows).reshape(-1, x.shape[1])[:n]
