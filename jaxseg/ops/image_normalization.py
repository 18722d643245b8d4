"""Normalization of stored pixels to the range that a network was trained on."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LARGEST = int(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Normalization:
    """Normalizes pixels: `(x - mean) / std`.

    Attributes:
        mean: one value per channel, or one for all channels, in units of the pixels.
        std: standard deviations, in the same form; positive.

    Raises:
        ValueError: if a value is not a number, not finite in float32, or a standard
            deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        """Converts any sequence to a tuple, and checks the values."""
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if not all(map(_is_finite, self.mean)):
            raise ValueError(f"mean is {self.mean!r:.80}; it must be finite numbers.")
        # Compared in float32, in which a tiny one is 0.
        if not all(_is_finite(v) and np.float32(v) > 0 for v in self.std):
            raise ValueError(
                f"std is {self.std!r:.80}; it must be positive, finite numbers."
            )

    def __call__(self, image: jax.Array) -> jax.Array:
        """Normalizes pixels of any dtype, [B, H, W, C], to float32 [B, H, W, C]."""
        mean, std = (
            jnp.broadcast_to(jnp.asarray(v, jnp.float32), image.shape[-1:])
            for v in (self.mean, self.std)
        )
        shape = (1,) * (image.ndim - 1) + image.shape[-1:]
        return (image.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(shape)


def _is_finite(value: Any) -> bool:
    """Whether it is a number that is finite in float32."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    # As a Python number, because huge integers cannot be converted.
    return number and bool(abs(value) <= _LARGEST)
