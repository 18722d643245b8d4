"""ConvNeXt-T: a ResNet with a transformer's layers, and no max pooling.

Source: Liu et al., https://arxiv.org/abs/2201.03545; torchvision's geometry, except
that sizes round up here and down there.
"""

from functools import partial
from itertools import islice

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.encoders.features import Features
from jaxseg.models.encoders.geometry import Stage
from jaxseg.models.layers import Conv, Dropout, run_stage
from jaxseg.models.options import LayerOptions

_init = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, 1x1 to four times the width and back, and a shortcut.

    Attributes:
        drop: probability that a sample skips the block in training.
        options: see `LayerOptions`.
    """

    drop: float = 0.0
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, C]."""
        width = x.shape[-1]
        y = Conv(
            width,
            (7, 7),
            feature_group_count=width,
            kernel_init=_init,
            **self.options.dtypes,
            name="depthwise",
        )(x)
        y = nn.LayerNorm(epsilon=1e-6, **self.options.dtypes, name="norm")(y)
        y = nn.Dense(
            4 * width, kernel_init=_init, **self.options.dtypes, name="expand"
        )(y)
        y = nn.gelu(y, approximate=False)
        y = nn.Dense(width, kernel_init=_init, **self.options.dtypes, name="project")(y)
        init = nn.initializers.constant(1e-6)
        scale = self.param("scale", init, (width,), self.options.param_dtype)
        y = y * scale.astype(y.dtype).reshape(1, 1, 1, width)
        # One value for each sample: dropping it drops the whole branch.
        keep = jnp.ones((x.shape[0], 1, 1, 1), y.dtype)
        return x + y * Dropout(self.drop, self.options.axis_name)(keep, train=train)


class Downsample(nn.Module):
    """A strided convolution and a LayerNorm; sizes round up.

    Attributes:
        width: channels.
        strides: of the convolution, and the side of its kernel.
        norm_first: whether the LayerNorm comes before the convolution or after.
        options: see `LayerOptions`.
    """

    width: int
    strides: int
    norm_first: bool
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / strides), ceil(W / strides), width]."""
        del train
        conv = Conv(
            self.width,
            (self.strides, self.strides),
            strides=self.strides,
            kernel_init=_init,
            **self.options.dtypes,
            name="conv",
        )
        norm = nn.LayerNorm(epsilon=1e-6, **self.options.dtypes, name="norm")
        return conv(norm(x)) if self.norm_first else norm(conv(x))


class ConvNeXt(nn.Module):
    """Four stages of blocks at strides 4, 8, 16 and 32.

    Attributes:
        widths: channels of each stage.
        depths: blocks in each stage.
        stochastic_depth: probability that a sample skips the last block in training; it
            increases linearly from 0 at the first block.
        options: see `LayerOptions`.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stochastic_depth: float = 0.1
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels, of strides 4, 8, 16 and 32."""
        deepest = max(sum(self.depths) - 1, 1)
        drops = (self.stochastic_depth * i / deepest for i in range(deepest + 1))
        x, maps = image, []
        for i, (width, depth) in enumerate(zip(self.widths, self.depths), start=1):
            down = Downsample(
                width,
                strides=4 if i == 1 else 2,
                norm_first=i > 1,
                options=self.options,
                name=f"downsample{i}",
            )
            x = run_stage(down, x, train=train, remat=self.options.remat)
            block = partial(Block, options=self.options)
            blocks = tuple(partial(block, drop) for drop in islice(drops, depth))
            stage = Stage(blocks, name=f"stage{i}")
            x = run_stage(stage, x, train=train, remat=self.options.remat)
            maps.append(x)
        return Features.without_pooling(maps, [4 * 2**i for i in range(len(maps))])


convnext_tiny = partial(ConvNeXt, widths=(96, 192, 384, 768), depths=(3, 3, 9, 3))
