"""The decoder: upsample, fuse, convolve, from the deepest level to the finest."""

import flax.linen as nn
import jax

from jaxseg.models.encoders.features import Features
from jaxseg.models.options import LayerOptions
from jaxseg.ops.partition import pin


class Decoder(nn.Module):
    """Climbs the levels of an encoder, one upsampler, skip and block at each.

    Of levels that share a stride, the encoder's `Features.merged` keeps one.

    Attributes:
        upsamplers: one a level, deepest first, called as `(x, places, size)`.
        skips: likewise, called as `(x, level, train=...)`.
        blocks: likewise, called as `(x, train=...)`.
        levels: which levels to climb to, counted from the finest, deepest first; None
            for all but the deepest.
        pooled_skips: whether skips are given what the max pooling that opens a level
            gave, as in FCN, rather than the level's last map. A level that does not
            open with one gives its last map all the same.
        skip_last: whether the skip comes after the block rather than before.
        options: see `LayerOptions`.
    """

    upsamplers: tuple[nn.Module, ...]
    skips: tuple[nn.Module, ...]
    blocks: tuple[nn.Module, ...]
    levels: tuple[int, ...] | None = None
    pooled_skips: bool = False
    skip_last: bool = False
    options: LayerOptions = LayerOptions()

    def __call__(self, features: Features, *, train: bool) -> jax.Array:
        """Maps an encoder's levels to one map, of the size of the last level climbed to.

        Raises:
            ValueError: if there is not one upsampler, skip and block for each level.
        """
        features = features.merged()
        deepest = len(features.maps) - 1
        levels = range(deepest - 1, -1, -1) if self.levels is None else self.levels
        counts = [len(p) for p in (self.upsamplers, self.skips, self.blocks)]
        if set(counts) != {len(levels)}:
            raise ValueError(
                f"The encoder has {deepest + 1} levels, and the decoder climbs to "
                f"{len(levels)} of them, so it takes as many upsamplers, skips and "
                f"blocks, deepest first; it was given {', '.join(map(str, counts))}."
            )
        x, below = features.maps[-1], deepest
        for step, level in enumerate(levels):
            source = features.pooled[level] if self.pooled_skips else None
            source = features.maps[level] if source is None else source
            # Places lead from a level to the next finer one alone.
            places = features.places[below] if level == below - 1 else None
            x = self._climb(step, x, places, source, features.sizes[level], train)
            below = level
        return x

    def _climb(self, step, x, places, source, size, train):
        def climb(self, x, places, source):
            x = self.upsamplers[step](x, places, size)
            if not self.skip_last:
                x = self.skips[step](x, source, train=train)
            x = self.blocks[step](x, train=train)
            if self.skip_last:
                x = self.skips[step](x, source, train=train)
            return pin(x)

        return (nn.remat(climb) if self.options.remat else climb)(
            self, x, places, source
        )
