"""From stored pixels to what a network was trained on."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Normalization:
    """Normalizes pixels: `(x - mean) / std`.

    Attributes:
        mean: one value for each channel, or one for all, on the scale of the pixels.
        std: likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        """Takes any sequence, and keeps tuples."""
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))

    def __call__(self, image: jax.Array) -> jax.Array:
        """Maps pixels [B, H, W, C] of any type to float32 [B, H, W, C]."""
        mean, std = (
            jnp.broadcast_to(jnp.asarray(v, jnp.float32), image.shape[-1:])
            for v in (self.mean, self.std)
        )
        shape = (1,) * (image.ndim - 1) + image.shape[-1:]
        return (image.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(shape)
