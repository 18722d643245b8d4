"""Upsamplers: how a decoder's map grows to the size of the next finer level."""

import flax.linen as nn
import jax

from jaxseg.ops.pooling import max_unpool


class Unpool(nn.Module):
    """Puts each value back where the encoder found its maximum, among zeros.

    Source: SegNet, sec. 3, https://arxiv.org/abs/1511.00561.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, places: jax.Array | None, size: tuple[int, int]
    ) -> jax.Array:
        """Maps [B, h, w, C] to [B, *size, C].

        Args:
            x: the coarse map.
            places: uint8 [B, h, w, C] from the encoder's pooling.
            size: height and width to grow to, those of the pooled map.

        Raises:
            ValueError: if the encoder does not reach this level by max pooling, or the
                channels differ.
        """
        if places is None:
            raise ValueError(
                "Unpooling needs the places of an encoder's max pooling, and this "
                "encoder reaches this level without one; take another upsampler, or an "
                "encoder that max-pools at every level, such as vgg16_bn."
            )
        if places.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"Unpooling maps channel to channel, but the decoder brings "
                f"{x.shape[-1]} channels to a level of {places.shape[-1]}; let the "
                f"decoder block before it end in {places.shape[-1]}."
            )
        return max_unpool(x, places, size)
