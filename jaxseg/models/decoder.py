"""The decoder: upsample, fuse and convolve, from the deepest level to the finest."""

import flax.linen as nn
import jax

from jaxseg.models.encoders.features import Features
from jaxseg.models.options import LayerOptions
from jaxseg.ops.partition import pin


class Decoder(nn.Module):
    """One upsampler, skip and block for each level, from deep to fine.

    Levels that share a stride are merged first; see `Features.merged`.

    Attributes:
        upsamplers: one for each decoder level, deepest first, called as
            `(x, places, size)`.
        skips: one for each decoder level, called as `(x, level, train=...)`.
        blocks: one for each decoder level, called as `(x, train=...)`.
        levels: indices of the encoder levels to decode, 0 being the finest, deepest
            first; None for all but the deepest.
        pooled_skips: whether skips start from the output of the max pooling with which
            a level begins, as in FCN, rather than from the level's last map. If there
            is no max pooling, they start from the last map in any case.
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
        """Maps an encoder's levels to one map, of the size of the last decoder level.

        Raises:
            ValueError: if there is not one upsampler, skip and block for each level.
        """
        features = features.merged()
        deepest = len(features.maps) - 1
        levels = range(deepest - 1, -1, -1) if self.levels is None else self.levels
        counts = [len(p) for p in (self.upsamplers, self.skips, self.blocks)]
        if set(counts) != {len(levels)}:
            raise ValueError(
                f"The encoder has {deepest + 1} levels, so the decoder needs "
                f"{len(levels)} upsamplers, skips and blocks, deepest first; it has "
                f"{', '.join(map(str, counts))}."
            )
        x, below = features.maps[-1], deepest
        for step, level in enumerate(levels):
            source = features.pooled[level] if self.pooled_skips else None
            source = features.maps[level] if source is None else source
            # Pooling places are known only from a level to the next finer one.
            places = features.places[below] if level == below - 1 else None
            x = self._step(step, x, places, source, features.sizes[level], train)
            below = level
        return x

    def _step(self, step, x, places, source, size, train):
        def run(self, x, places, source):
            x = self.upsamplers[step](x, places, size)
            if not self.skip_last:
                x = self.skips[step](x, source, train=train)
            x = self.blocks[step](x, train=train)
            if self.skip_last:
                x = self.skips[step](x, source, train=train)
            return pin(x)

        return (nn.remat(run) if self.options.remat else run)(self, x, places, source)
