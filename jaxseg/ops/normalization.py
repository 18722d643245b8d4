"""Local response normalisation across channels."""

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
    """Divides each value by the energy of its neighbouring channels.

        y_c = x_c / (k + alpha / size * sum_{|d - c| <= size // 2} x_d^2) ^ beta

    `alpha` is divided by `size`, as Caffe and PyTorch do and TensorFlow does not. The
    formula is not scale-free: SegNet-Basic feeds it raw 0..255 pixels, and on pixels
    in 0..1 it is almost the identity.

    Args:
        x: features, [..., C]; computed in float32, returned in the dtype of `x`.
        size: number of channels in the window, odd.
        alpha: weight of the energy, before division by `size`.
        beta: exponent.
        k: additive constant.

    Returns:
        Normalised features, [..., C].

    Raises:
        ValueError: if `size` is even or not positive.

    Source: AlexNet, sec. 3.3; Caffe's LRN layer, ACROSS_CHANNELS, for the constants.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size={size}: the window needs an odd number of channels.")
    wide = x.astype(jnp.float32)
    window = (1,) * (x.ndim - 1) + (size,)
    energy = lax.reduce_window(
        jnp.square(wide), 0.0, lax.add, window, (1,) * x.ndim, "SAME"
    )
    return (wide * (k + alpha / size * energy) ** -beta).astype(x.dtype)
