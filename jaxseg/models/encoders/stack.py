"""The plain encoder: stages of convolutions, separated by 2x2 max pooling."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.blocks import ConvBlock
from jaxseg.models.encoders.features import Features
from jaxseg.models.layers import Dropout, batch_norm, run_stage
from jaxseg.models.options import LayerOptions
from jaxseg.ops.pooling import max_pool_argmax


class ConvPoolStack(nn.Module):
    """Stages of convolutions, each followed by a 2x2 max pooling.

    VGG16, SegNet-Basic's encoder and U-Net's contracting path are three choices of its
    fields. Pooling is in ceil mode, so images may have any size: 45 rows become 23, as
    in the authors' CamVid net of SegNet. Level i has stride 2^i. If the last stage is
    pooled too, its pooled map is the deepest level.

    Attributes:
        widths: channels of each stage.
        depths: convolutions in each stage.
        kernel: side of the kernels, in cells.
        norm: class or function that makes the normalization after each convolution;
            None for none.
        dropouts: rate of the dropout at the end of each stage; None for no dropout.
        drop_maps: whether that dropout comes before the stage's pooling, so that it
            affects the skips too, as in U-Net, rather than after.
        pool_last: whether the last stage is pooled too.
        prepare: function applied to the image first, without parameters.
        margin: zeros around the image, in pixels, in addition to the padding of the
            convolutions: FCN pads its first convolution by 100, a margin of 99.
        padding: of the convolutions, "SAME" or the U-Net paper's "VALID".
        options: see `LayerOptions`.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    kernel: int = 3
    norm: Callable[..., nn.Module] | None = batch_norm
    dropouts: tuple[float, ...] | None = None
    drop_maps: bool = False
    pool_last: bool = True
    prepare: Callable[[jax.Array], jax.Array] | None = None
    margin: int = 0
    padding: str = "SAME"
    options: LayerOptions = LayerOptions()

    def __post_init__(self):
        if len(self.widths) != len(self.depths) or min(*self.widths, *self.depths) < 1:
            raise ValueError(
                f"widths={self.widths} and depths={self.depths}: every stage needs one "
                "of each, all at least 1."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels, of strides 1, 2, 4, ..."""
        x = image if self.prepare is None else self.prepare(image)
        margin = (self.margin, self.margin)
        x = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
        maps: list[jax.Array] = []
        pooled: list[jax.Array | None] = [None]
        places: list[jax.Array | None] = [None]
        dropouts = self.dropouts or (0.0,) * len(self.widths)
        stages = zip(self.widths, self.depths, dropouts, strict=True)
        for i, (width, depth, rate) in enumerate(stages, start=1):
            stage = ConvBlock(
                (width,) * depth,
                kernel=self.kernel,
                norm=self.norm,
                dropout=rate if self.drop_maps else 0.0,
                padding=self.padding,
                options=self.options,
                name=f"stage{i}",
            )
            x = run_stage(stage, x, train=train, remat=self.options.remat)
            maps.append(x)
            if i < len(self.widths) or self.pool_last:
                x, place = max_pool_argmax(x)
                pooled.append(x)
                places.append(place)
            if not self.drop_maps:
                x = Dropout(rate, self.options.axis_name)(x, train=train)
        if self.pool_last:
            maps.append(x)
        strides = tuple(2**i for i in range(len(maps)))
        return Features(tuple(maps), tuple(pooled), tuple(places), strides)
