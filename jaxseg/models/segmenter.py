"""The whole network: encoder, decoder and head around the image's own size."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.ops.resize import resize_bilinear


class Segmenter(nn.Module):
    """Logits for every pixel of the image, from an encoder, a decoder and a head.

    Attributes:
        encoder: called as `(image, train=...)`, returns `Features`.
        decoder: called as `(features, train=...)`, returns one map.
        head: called as `(map)`, returns scores, [B, h, w, K].
    """

    encoder: nn.Module
    decoder: nn.Module
    head: nn.Module

    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Maps an image [B, H, W, C] to float32 logits [B, H, W, K], any H and W."""
        features = self.encoder(image, train=train)
        scores = self.head(self.decoder(features, train=train)).astype(jnp.float32)
        if scores.shape[1:3] == image.shape[1:3]:
            return scores
        return resize_bilinear(scores, image.shape[1:3])
