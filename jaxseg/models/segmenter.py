"""The whole network: encoder, neck, decoder, head, and resizing to the image."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jax.typing import DTypeLike

from jaxseg.models.encoders.features import Features
from jaxseg.models.layers import run_stage
from jaxseg.models.options import LayerOptions
from jaxseg.models.outputs import AuxiliaryLogits
from jaxseg.ops.partition import pin
from jaxseg.ops.resize import resize_bilinear


class Auxiliary(nn.Module):
    """An auxiliary head: scores of one encoder level, for deep supervision.

    Attributes:
        block: called as `(map, train=...)`.
        head: called as `(map)`, returns scores, [B, h, w, K].
        level: index of the level in `Features.maps`.
        weight: factor on its loss; the main loss has 1.
    """

    block: nn.Module
    head: nn.Module
    level: int
    weight: float

    def __call__(self, features: Features, *, train: bool) -> jax.Array:
        """Maps an encoder's levels to scores [B, h, w, K]."""
        return self.head(self.block(features.maps[self.level], train=train))


class Segmenter(nn.Module):
    """Logits for every pixel of the image, from an encoder, a decoder and a head.

    Attributes:
        encoder: called as `(image, train=...)`, returns `Features`.
        decoder: called as `(features, train=...)`, returns one map; None to use the
            deepest level's.
        head: called as `(map)`, returns scores, [B, h, w, K].
        image_level: whether the decoder has the image itself as its finest level.
        neck: called as `(map, train=...)` with the deepest level's map, which its
            result replaces: FCN's fully connected layers, DeepLab's ASPP. None for
            none.
        auxiliary: auxiliary heads, for deep supervision.
        restore_size: function that resizes or crops scores to the size of the image,
            called as `(scores, size)`; the scores have `logits_dtype`.
        check_size: function called with the (height, width) of the image, which raises
            ValueError if the network does not support it. None if it supports all.
        input_size: for a network whose logits cover only the middle of the image:
            function from a number of logits, in height or width, to the number of
            pixels that the image needs and the number of logits that it has then; see
            `unet.valid_size`. None if the logits cover the whole image.
        options: see `LayerOptions`.
        logits_dtype: of the logits; in training, bfloat16 halves their memory. Use
            `model.clone(logits_dtype=...)` to change it.
    """

    encoder: nn.Module
    decoder: nn.Module | None
    head: Callable[[jax.Array], jax.Array]
    image_level: bool = False
    neck: nn.Module | None = None
    auxiliary: tuple[Auxiliary, ...] = ()
    restore_size: Callable[[jax.Array, tuple[int, int]], jax.Array] = resize_bilinear
    check_size: Callable[[tuple[int, int]], None] | None = None
    input_size: Callable[[int], tuple[int, int]] | None = None
    options: LayerOptions = LayerOptions()
    logits_dtype: DTypeLike = jnp.float32

    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Maps an image [B, H, W, C] to logits [B, H, W, K], any H and W.

        Raises:
            ValueError: if the image has no batch axis, or the variables are those of
                a model for images with another number of channels.
        """
        # Initialization creates the parameters of the auxiliary heads too.
        if self.is_initializing():
            return self.with_auxiliary(image, train=train)[0]
        return self._logits(image, train)[0]

    def with_auxiliary(
        self, image: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[AuxiliaryLogits, ...]]:
        """The logits, and those of the auxiliary heads, for training.

        Args:
            image: [B, H, W, C].
            train: whether BatchNorm uses the batch's statistics and dropout is on.

        Returns:
            The logits that a call returns, and one `AuxiliaryLogits` for each auxiliary
            head.
        """
        logits, features = self._logits(image, train)
        scores = ((head.weight, head(features, train=train)) for head in self.auxiliary)
        return logits, tuple(
            AuxiliaryLogits(weight, self._resized(x, image)) for weight, x in scores
        )

    def _logits(self, image, train):
        if image.ndim != 4:
            raise ValueError(
                f"The image must be [B, H, W, C], not {list(image.shape)}."
            )
        if self.check_size is not None:
            self.check_size(image.shape[1:3])
        features = self._encode(image, train)
        x = features.maps[-1]
        if self.neck is not None:
            x = run_stage(self.neck, x, train=train, remat=self.options.remat)
            features = features.replace(maps=(*features.maps[:-1], x))
        if self.decoder is not None:
            levels = features.with_image(image) if self.image_level else features
            x = self.decoder(levels, train=train)
        return self._resized(self.head(x), image), features

    def _resized(self, scores, image):
        scores = pin(scores.astype(self.logits_dtype))
        return pin(self.restore_size(scores, image.shape[1:3]))

    def _encode(self, image, train):
        try:
            return self.encoder(image, train=train)
        except ScopeParamShapeError as error:
            raise ValueError(
                f"The image has {image.shape[-1]} channels, but the variables belong to "
                "a model for another number of channels, or of another width; use images "
                f"like those it was trained on. ({error})"
            ) from error
