"""Normalization of stored pixels to the range that a network was trained on."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Normalization:
    """Normalizes pixels: `(x - mean) / std`.

    Attributes:
        mean: one value per channel, or one for all channels, in units of the pixels.
        std: standard deviations, in the same form.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        """Converts any sequence to a tuple."""
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))

    def __call__(self, image: jax.Array) -> jax.Array:
        """Normalizes pixels of any dtype, [B, H, W, C], to float32 [B, H, W, C]."""
        mean, std = (
            jnp.broadcast_to(jnp.asarray(v, jnp.float32), image.shape[-1:])
            for v in (self.mean, self.std)
        )
        shape = (1,) * (image.ndim - 1) + image.shape[-1:]
        return (image.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(shape)
