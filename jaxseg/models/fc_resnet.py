"""FC-ResNet: residual blocks down and up, short skips inside them and long ones across.

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
from jaxseg.models.layers import Conv, Dropout, Dtype, batch_norm, he_normal, run_stage
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.skips import Sum
from jaxseg.ops.pooling import max_pool_argmax


class PreActivation(nn.Module):
    """BatchNorm, ReLU, and what changes the size, then a convolution.

    Attributes:
        features: channels of the convolution.
        kernel: side of its kernel, in cells.
        strides: of the convolution.
        resize: function between the ReLU and the convolution; None for none.
        dtype: of the computation.
        param_dtype: of the parameters.
        axis_name: mapped axis for cross-replica statistics, under pmap or shard_map.
    """

    features: int
    kernel: int
    strides: int = 1
    resize: Callable[[jax.Array], jax.Array] | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, h, w, features]."""
        x = batch_norm(
            use_running_average=not train,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            axis_name=self.axis_name,
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
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)


class Block(nn.Module):
    """A pre-activation block beside its shortcut, which may halving_max_pool or double the size.

    Attributes:
        width: channels inside; at the end, of a bottleneck, four times as many.
        bottleneck: 1x1, 3x3 and 1x1 convolutions, the first with the stride; or one
            3x3 convolution, with a max pooling before it.
        down: whether the size is halved, rounding up.
        up: whether each cell is repeated twice in both directions at the end.
        short_skip: whether there is a shortcut.
        dropout: rate behind the last convolution.
        dtype: of the computation.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.
    """

    width: int
    bottleneck: bool
    down: bool = False
    up: bool = False
    short_skip: bool = True
    dropout: float = 0.1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, h, w, width or 4 width]."""
        layers = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = partial(PreActivation, axis_name=self.axis_name, **layers)
        dropout = Dropout(self.dropout, axis_name=self.axis_name)
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
                y.shape[-1], (1, 1), kernel_init=he_normal, **layers, name="shortcut"
            )
            x = conv(x)
        return y + (_repeat(x) if self.up else x)


def _repeat(x):
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _pool(x):
    return max_pool_argmax(x)[0]


class Blocks(nn.Module):
    """Blocks in a row, of which the first may halving_max_pool the size and the last double it.

    Attributes:
        block: makes one, called with `down`, `up` and `name`.
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
        """Maps [B, H, W, C] to what the last block gives."""
        for i in range(1, self.depth + 1):
            block = self.block(
                down=self.down and i == 1,
                up=self.up and i == self.depth,
                name=f"block{i}",
            )
            x = block(x, train=train)
        return x


class Encoder(nn.Module):
    """A 3x3 convolution, then stages of blocks that each halving_max_pool the size.

    Attributes:
        width: channels of the first convolution.
        stages: each called as `(map, train=...)`.
        remat: compute each stage's activations again for the gradient.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    width: int
    stages: tuple[nn.Module, ...]
    remat: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels, of strides 1, 2, 4, ..."""
        conv = Conv(
            self.width,
            (3, 3),
            kernel_init=he_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )
        maps = [conv(image)]
        for stage in self.stages:
            maps.append(run_stage(stage, maps[-1], train=train, remat=self.remat))
        nothing = (None,) * len(maps)
        return Features(
            tuple(maps), nothing, nothing, tuple(2**i for i in range(len(maps)))
        )


class Climb(nn.Module):
    """Stages that each double the size, and the encoder's maps added between them.

    Unlike `Decoder`'s upsamplers, blocks here grow maps inside of themselves.

    Attributes:
        stages: deepest first, each called as `(map, train=...)`.
        skips: likewise, each called as `(x, level, train=...)`; None for no long ones.
        last: called as `(map, train=...)` with the finest map.
        remat: compute each stage's activations again for the gradient.
    """

    stages: tuple[nn.Module, ...]
    skips: tuple[nn.Module, ...] | None
    last: nn.Module
    remat: bool = False

    def __call__(self, features: Features, *, train: bool) -> jax.Array:
        """Maps an encoder's levels to one map of the finest level's size."""
        x = features.maps[-1]
        for i, stage in enumerate(self.stages):
            level = features.maps[-1 - i]
            x = run_stage(stage, x, train=train, remat=self.remat)
            x = x[:, : level.shape[1], : level.shape[2]]
            if self.skips is not None:
                x = self.skips[i](x, level, train=train)
        return run_stage(self.last, x, train=train, remat=self.remat)


def fc_resnet(
    num_classes: int,
    *,
    width: int = 32,
    depths: tuple[int, ...] = (3, 8, 10, 3),
    init_blocks: int = 2,
    short_skip: bool = True,
    long_skip: bool = True,
    dropout: float = 0.1,
    remat: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Segmenter:
    """FC-ResNet: the net with which long and short skips were told apart.

    11,470,369 parameters with 1 channel and 1 class.

    Args:
        num_classes: K.
        width: channels of the first and the last convolution; bottlenecks have it
            inside in the first stage, and twice as many in every stage below.
        depths: bottlenecks in each stage, the last being the bottom; those on the way
            up are the same in reverse.
        init_blocks: single convolutions with pooling above the bottlenecks.
        short_skip: whether blocks have shortcuts.
        long_skip: whether the encoder's maps are added on the way up.
        dropout: rate at the end of every block.
        remat: compute the activations of every stage again for the gradient.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.

    Returns:
        A module from an image [B, H, W, C] to logits [B, H, W, K].

    Raises:
        ValueError: if a stage has no block.
    """
    if not depths or min(depths) < 1 or init_blocks < 0:
        raise ValueError(
            f"depths={tuple(depths)}, init_blocks={init_blocks}: give at least one "
            "bottleneck in each stage, the last being the bottom."
        )
    layers = dict(dtype=dtype, param_dtype=param_dtype)
    block = partial(
        Block, short_skip=short_skip, dropout=dropout, axis_name=axis_name, **layers
    )
    init = partial(block, width, False)
    mains = [partial(block, width * 2**i, True) for i in range(len(depths))]
    plan = [(init, 1)] * init_blocks + list(zip(mains, depths))
    *paired, bottom = plan
    # The bottom goes down and up again, so that it is the first stage of the climb.
    up = [Blocks(*bottom, down=True, up=True)]
    up += [Blocks(*stage, up=True) for stage in reversed(paired)]
    skips = None
    if long_skip:
        skips = tuple(Sum(project="map", kernel_init=he_normal, **layers) for _ in up)
    encoder = Encoder(
        width,
        tuple(Blocks(*stage, down=True) for stage in paired),
        remat=remat,
        **layers,
    )
    last = PreActivation(width, 3, axis_name=axis_name, **layers)
    decoder = Climb(tuple(up), skips, last, remat=remat)
    head = Conv(num_classes, (1, 1), kernel_init=he_normal, **layers)
    return Segmenter(encoder, decoder, head)
