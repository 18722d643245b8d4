"""FC-ResNet: an encoder and a decoder of residual blocks, with skips between them.

Source: Drozdzal et al., https://arxiv.org/abs/1608.04117; layers are those of the
authors' fcn_maker.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.models.encoders import Features
from jaxseg.models.layers import Conv, Dropout, batch_norm, he_normal, run_stage
from jaxseg.models.options import LayerOptions
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.skips import Sum
from jaxseg.ops.pooling import max_pool_argmax


class PreActivation(nn.Module):
    """BatchNorm, ReLU, a change of size, then a convolution.

    Attributes:
        features: channels of the convolution.
        kernel: side of its kernel, in cells.
        strides: of the convolution.
        resize: function that is applied between the ReLU and the convolution; None for
            none.
        options: see `LayerOptions`.
    """

    features: int
    kernel: int
    strides: int = 1
    resize: Callable[[jax.Array], jax.Array] | None = None
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, h, w, features]."""
        x = batch_norm(
            use_running_average=not train,
            **self.options.norm_kwargs,
            name="bn",
        )(x)
        x = nn.relu(x)
        if self.resize is not None:
            x = self.resize(x)
        return Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=self.strides,
            padding=self.kernel // 2,
            kernel_init=he_normal,
            **self.options.dtypes,
            name="conv",
        )(x)


class Block(nn.Module):
    """A pre-activation block with a shortcut, which may halve or double the size.

    Attributes:
        width: channels inside; the output of a bottleneck has four times as many.
        bottleneck: whether the block is 1x1, 3x3 and 1x1 convolutions, the first of
            them strided, rather than one 3x3 convolution with a max pooling before it.
        down: whether the size is halved, rounding up.
        up: whether the size is doubled, by repeating each cell.
        short_skip: whether there is a shortcut.
        dropout: dropout rate after the last convolution.
        options: see `LayerOptions`.
    """

    width: int
    bottleneck: bool
    down: bool = False
    up: bool = False
    short_skip: bool = True
    dropout: float = 0.1
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, h, w, width or 4 width]."""
        conv = partial(PreActivation, options=self.options)
        dropout = Dropout(self.dropout, self.options.axis_name)
        if self.bottleneck:
            y = conv(self.width, 1, 2 if self.down else 1, name="conv1")(x, train=train)
            y = conv(self.width, 3, name="conv2")(y, train=train)
            resize = _repeat if self.up else None
            y = conv(4 * self.width, 1, resize=resize, name="conv3")(y, train=train)
            y = dropout(y, train=train)
        else:
            resize = _pool if self.down else None
            y = conv(self.width, 3, resize=resize, name="conv1")(x, train=train)
            y = dropout(y, train=train)
            y = _repeat(y) if self.up else y
        if not self.short_skip:
            return y
        x = lax.slice(x, (0,) * 4, x.shape, (1, 2, 2, 1)) if self.down else x
        if x.shape[-1] != y.shape[-1]:
            conv = Conv(
                y.shape[-1],
                (1, 1),
                kernel_init=he_normal,
                **self.options.dtypes,
                name="shortcut",
            )
            x = conv(x)
        return y + (_repeat(x) if self.up else x)


def _repeat(x):
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _pool(x):
    return max_pool_argmax(x)[0]


class Blocks(nn.Module):
    """A sequence of blocks; the first may halve the size, and the last double it.

    Attributes:
        block: class or function that makes a block, called with `down`, `up` and
            `name`.
        depth: number of blocks.
        down: whether the first halves the size.
        up: whether the last doubles it.
    """

    block: Callable[..., nn.Module]
    depth: int
    down: bool = False
    up: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to the output of the last block."""
        for i in range(1, self.depth + 1):
            block = self.block(
                down=self.down and i == 1,
                up=self.up and i == self.depth,
                name=f"block{i}",
            )
            x = block(x, train=train)
        return x


class Encoder(nn.Module):
    """A 3x3 convolution, then stages of blocks that each halve the size.

    Attributes:
        width: channels of the first convolution.
        stages: each called as `(map, train=...)`.
        options: see `LayerOptions`.
    """

    width: int
    stages: tuple[nn.Module, ...]
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels, of strides 1, 2, 4, ..."""
        conv = Conv(
            self.width,
            (3, 3),
            kernel_init=he_normal,
            **self.options.dtypes,
            name="conv",
        )
        maps = [conv(image)]
        for stage in self.stages:
            maps.append(
                run_stage(stage, maps[-1], train=train, remat=self.options.remat)
            )
        return Features.without_pooling(maps, [2**i for i in range(len(maps))])


class ResidualDecoder(nn.Module):
    """Stages that each double the size, and the encoder's maps added between them.

    Unlike in `Decoder`, there are no upsamplers: the blocks enlarge the maps.

    Attributes:
        stages: deepest first, each called as `(map, train=...)`.
        skips: deepest first, each called as `(x, level, train=...)`; None for none.
        last: called as `(map, train=...)` with the finest map.
        options: see `LayerOptions`.
    """

    stages: tuple[nn.Module, ...]
    skips: tuple[nn.Module, ...] | None
    last: nn.Module
    options: LayerOptions = LayerOptions()

    def __call__(self, features: Features, *, train: bool) -> jax.Array:
        """Maps an encoder's levels to one map of the finest level's size."""
        x = features.maps[-1]
        for i, stage in enumerate(self.stages):
            level = features.maps[-1 - i]
            x = run_stage(stage, x, train=train, remat=self.options.remat)
            x = x[:, : level.shape[1], : level.shape[2]]
            if self.skips is not None:
                x = self.skips[i](x, level, train=train)
        return run_stage(self.last, x, train=train, remat=self.options.remat)


def fc_resnet(
    num_classes: int,
    *,
    width: int = 32,
    depths: tuple[int, ...] = (3, 8, 10, 3),
    init_blocks: int = 2,
    short_skip: bool = True,
    long_skip: bool = True,
    dropout: float = 0.1,
    options: LayerOptions = LayerOptions(),
) -> Segmenter:
    """FC-ResNet, made to compare long and short skips.

    11,470,369 parameters with 1 channel and 1 class.

    Args:
        num_classes: K.
        width: channels of the first and the last convolution, and inside the
            bottlenecks of the first stage; each further stage has twice as many.
        depths: bottlenecks in each stage of the encoder, the last being the bottom; the
            decoder has the same in reverse.
        init_blocks: number of single convolutions with pooling before the bottlenecks.
        short_skip: whether blocks have shortcuts.
        long_skip: whether the encoder's maps are added to the decoder's.
        dropout: dropout rate at the end of every block.
        options: see `LayerOptions`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Raises:
        ValueError: if a stage has no bottleneck, or `init_blocks` is negative.
    """
    if not depths or min(depths) < 1 or init_blocks < 0:
        raise ValueError(
            f"depths={tuple(depths)}, init_blocks={init_blocks}: every stage needs at "
            "least one bottleneck, and init_blocks must not be negative."
        )
    block = partial(Block, short_skip=short_skip, dropout=dropout, options=options)
    init = partial(block, width, False)
    mains = [partial(block, width * 2**i, True) for i in range(len(depths))]
    stages = [(init, 1)] * init_blocks + list(zip(mains, depths))
    *paired, bottom = stages
    # The bottom halves the size and doubles it again, so it is the decoder's first.
    up = [Blocks(*bottom, down=True, up=True)]
    up += [Blocks(*stage, up=True) for stage in reversed(paired)]
    add = partial(Sum, project="map", kernel_init=he_normal, options=options)
    down = tuple(Blocks(*stage, down=True) for stage in paired)
    return Segmenter(
        Encoder(width, down, options),
        ResidualDecoder(
            tuple(up),
            tuple(add() for _ in up) if long_skip else None,
            PreActivation(width, 3, options=options),
            options,
        ),
        Conv(num_classes, (1, 1), kernel_init=he_normal, **options.dtypes),
    )
