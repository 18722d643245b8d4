"""Local response normalization across channels."""

import jax
import jax.numpy as jnp
from jax import lax


def local_response_norm(
    x: jax.Array,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> jax.Array:
    """Divides each value by the energy of its neighboring channels.

        y_c = x_c / (k + alpha / size * sum_{|d - c| <= size // 2} x_d^2) ^ beta

    `alpha` is divided by `size`, as in Caffe and PyTorch but not in TensorFlow. The
    result depends on the scale of `x`: SegNet-Basic applies it to raw pixels in 0..255;
    on pixels in 0..1 it is almost the identity.

    Args:
        x: features, [..., C]; computed in float32, returned in the dtype of `x`.
        size: number of channels in the window, an odd number.
        alpha: weight of the energy, before the division by `size`.
        beta: exponent.
        k: additive constant.

    Returns:
        Normalized features, [..., C].

    Raises:
        ValueError: if `size` is even or not positive.

    Source: AlexNet, sec. 3.3; Caffe's LRN layer, ACROSS_CHANNELS, for the constants.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size is {size}; it must be an odd number of channels.")
    x = jnp.asarray(x)  # NumPy's float64 becomes what JAX makes of it
    wide = x.astype(jnp.float32)
    window = (1,) * (x.ndim - 1) + (size,)
    energy = lax.reduce_window(
        jnp.square(wide), 0.0, lax.add, window, (1,) * x.ndim, "SAME"
    )
    return (wide * (k + alpha / size * energy) ** -beta).astype(x.dtype)
