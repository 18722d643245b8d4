"""GoogLeNet: nine inception blocks of parallel convolutions.

`googlenet` is the BVLC net, with biases and local response normalization.
`googlenet_bn` is torchvision's, with BatchNorm, 3x3 kernels where the paper has 5x5 (as
in TensorFlow's), and a 2x2 window in the last pooling. Neither has the auxiliary
classifiers.

Source: Szegedy et al., https://arxiv.org/abs/1409.4842; Caffe's bvlc_googlenet.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.encoders.features import Features
from jaxseg.models.encoders.geometry import ConvNorm, halving_max_pool
from jaxseg.models.layers import batch_norm, run_stage
from jaxseg.models.options import LayerOptions
from jaxseg.ops.normalization import local_response_norm
from jaxseg.ops.pooling import max_pool_indices

INCEPTIONS = (
    {"3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64)},
    {
        "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64),
        "4c": (128, 128, 256, 24, 64, 64),
        "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128),
    },
    {"5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128)},
)
"""The blocks between poolings, with the widths that `Inception` explains."""


class GoogLeNet(nn.Module):
    """Two convolutions and nine inception blocks, with max pooling after five stages.

    Attributes:
        width: channels of the first convolution, a multiple of 8; the others are in
            proportion, and 64 is the published width.
        norm: class or function that makes the normalization after each convolution;
            None for a bias instead.
        local_norm: function applied before and after the second stage's convolutions;
            None for none.
        largest_kernel: side of the largest kernel of an inception block, in cells.
        last_window: side of the last pooling's window, 2 or 3 cells.
        round_up: whether an odd number of rows n is pooled to (n + 1) / 2 rather than
            to (n - 1) / 2 as in Caffe and torchvision.
        options: see `LayerOptions`.
    """

    width: int = 64
    norm: Callable[..., nn.Module] | None = None
    local_norm: Callable[[jax.Array], jax.Array] | None = local_response_norm
    largest_kernel: int = 5
    last_window: int = 3
    round_up: bool = True
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels, of strides 2, 4, 8, 16 and 32."""
        conv = partial(ConvNorm, norm=self.norm, options=self.options)
        w = self.width

        def run(module, x):
            return run_stage(module, x, train=train, remat=self.options.remat)

        x = run(conv(w, 7, strides=2, name="conv1"), image)
        maps = [x]
        pooled: list[jax.Array | None] = [None]
        places: list[jax.Array | None] = [None]

        def pool(x, window=3):
            x, place = halving_max_pool(x, window, round_up=self.round_up)
            pooled.append(x)
            places.append(place)
            return x

        x = pool(x)
        if self.local_norm is not None:
            x = self.local_norm(x)
        x = run(conv(w, 1, name="conv2_reduce"), x)
        x = run(conv(3 * w, 3, name="conv2"), x)
        if self.local_norm is not None:
            x = self.local_norm(x)
        maps.append(x)
        for blocks, window in zip(INCEPTIONS, (3, 3, self.last_window)):
            x = pool(x, window)
            for name, widths in blocks.items():
                widths = tuple(n * w // 64 for n in widths)
                block = Inception(
                    widths,
                    self.largest_kernel,
                    norm=self.norm,
                    options=self.options,
                    name=f"inception{name}",
                )
                x = run(block, x)
            maps.append(x)
        return Features(tuple(maps), tuple(pooled), tuple(places), (2, 4, 8, 16, 32))


class Inception(nn.Module):
    """Four parallel branches: 1x1, 3x3, the largest kernel, and max pooling.

    Attributes:
        widths: channels of the 1x1 convolution, of the input and output of the 3x3, of
            the input and output of the largest kernel, and of the projection after the
            pooling.
        largest_kernel: side of the largest kernel, in cells.
        norm: see `GoogLeNet`.
        options: see `LayerOptions`.
    """

    widths: tuple[int, ...]
    largest_kernel: int = 5
    norm: Callable[..., nn.Module] | None = None
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, the sum of the branches' channels]."""

        def conv(x, features, kernel, name):
            layer = ConvNorm(
                features,
                kernel,
                norm=self.norm,
                options=self.options,
                name=name,
            )
            return layer(x, train=train)

        one, three_in, three, five_in, five, projected = self.widths
        pooled = max_pool_indices(x, 3, 1, padding=1)[0]
        branches = (
            conv(x, one, 1, "conv1x1"),
            conv(conv(x, three_in, 1, "reduce3x3"), three, 3, "conv3x3"),
            conv(
                conv(x, five_in, 1, "reduce5x5"), five, self.largest_kernel, "conv5x5"
            ),
            conv(pooled, projected, 1, "project"),
        )
        return jnp.concatenate(branches, axis=-1)


googlenet = GoogLeNet
googlenet_bn = partial(
    GoogLeNet,
    norm=partial(batch_norm, epsilon=1e-3),
    local_norm=None,
    largest_kernel=3,
    last_window=2,
)
