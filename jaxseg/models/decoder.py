"""The decoder: upsample, fuse, convolve, from the deepest level to the finest."""

from collections.abc import Callable

import flax.linen as nn
import jax

from jaxseg.models.blocks import run_stage
from jaxseg.models.encoders.features import Features


class Decoder(nn.Module):
    """Climbs the levels of an encoder, one upsampler, skip and block at each.

    Attributes:
        upsampler: makes the module called as `(x, places, size)`.
        skip: makes the module called as `(x, level, train=...)`.
        blocks: one module a level, deepest first, called as `(x, train=...)`.
        remat: compute each block's activations again for the gradient.
    """

    upsampler: Callable[..., nn.Module]
    skip: Callable[..., nn.Module]
    blocks: tuple[nn.Module, ...]
    remat: bool = False

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> jax.Array:
        """Maps an encoder's levels to one map at the finest level's size.

        Raises:
            ValueError: if there is not one block for each level but the deepest.
        """
        steps = len(features.maps) - 1
        if len(self.blocks) != steps:
            raise ValueError(
                f"The encoder has {steps + 1} levels, so the decoder takes {steps} "
                f"blocks, deepest first; it was given {len(self.blocks)}."
            )
        x = features.maps[-1]
        for step, block in enumerate(self.blocks):
            level = steps - 1 - step
            size = features.sizes[level]
            x = self.upsampler(name=f"up{level}")(x, features.places[level + 1], size)
            x = self.skip(name=f"skip{level}")(x, features.maps[level], train=train)
            x = run_stage(block, x, train=train, remat=self.remat)
        return x
