"""AlexNet: five convolutions, in the forms of CaffeNet and torchvision.

`alexnet` is CaffeNet, the net of FCN-AlexNet: grouped convolutions, and local response
normalization after the first two poolings. `alexnet_torchvision` is another net:
Krizhevsky's later one, without groups and normalization and with other widths.

The defaults are for dense prediction: n pixels become ceil(n / stride) cells at every
level. The published geometries are `first_padding=0` (Caffe), 2 (torchvision) and 100
(FCN), each with `round_up=False`. (torchvision's poolings round down where Caffe's
round up; at 224 pixels it makes no difference.)

XLA partitions grouped convolutions badly: if the batch is split over devices under jit,
it gathers the whole batch on each of them (openxla/xla#47945). Prefer the shard_map or
pmap backend for `alexnet` on many devices.

Source: Krizhevsky et al., NeurIPS 2012; Caffe's bvlc_reference_caffenet;
Krizhevsky, https://arxiv.org/abs/1404.5997; FCN, https://arxiv.org/abs/1411.4038.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from jaxseg.models.encoders.features import Features
from jaxseg.models.encoders.geometry import convolution, halving_max_pool
from jaxseg.models.layers import run_stage
from jaxseg.models.options import LayerOptions
from jaxseg.ops.normalization import local_response_norm


class AlexNet(nn.Module):
    """Three stages of convolutions, each followed by a 3x3 max pooling with stride 2.

    Attributes:
        widths: channels of the five convolutions.
        groups: groups of each convolution.
        local_norm: function applied after the first two poolings; None for none.
        first_padding: zeros around the image for the 11x11 convolution with stride 4.
        round_up: whether an odd number of rows n is pooled to (n + 1) / 2 rather than
            to (n - 1) / 2 as in Caffe.
        options: see `LayerOptions`.
    """

    widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    groups: tuple[int, int, int, int, int] = (1, 2, 1, 2, 2)
    local_norm: Callable[[jax.Array], jax.Array] | None = local_response_norm
    first_padding: int = 5
    round_up: bool = True
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Features:
        """Maps an image [B, H, W, C] to its levels, of strides 4, 8, 16 and 32."""
        stage = partial(Stage, options=self.options)
        w, g = self.widths, self.groups
        stages = (
            partial(stage, w[:1], g[:1], 11, strides=4, padding=self.first_padding),
            partial(stage, w[1:2], g[1:2], 5),
            partial(stage, w[2:], g[2:], 3),
        )
        x, maps = image, []
        pooled: list[jax.Array | None] = [None]
        places: list[jax.Array | None] = [None]
        for i, stage in enumerate(stages, start=1):
            x = run_stage(
                stage(name=f"stage{i}"), x, train=train, remat=self.options.remat
            )
            maps.append(x)
            x, place = halving_max_pool(x, round_up=self.round_up)
            pooled.append(x)
            places.append(place)
            if i < 3 and self.local_norm is not None:
                x = self.local_norm(x)
        return Features((*maps, x), tuple(pooled), tuple(places), (4, 8, 16, 32))


class Stage(nn.Module):
    """A sequence of convolutions, each with a ReLU.

    Attributes:
        features: output channels of each convolution.
        groups: groups of each.
        kernel: side of the kernels, in cells.
        strides: of each convolution.
        padding: zeros on every side; None to keep the size.
        options: see `LayerOptions`.
    """

    features: tuple[int, ...]
    groups: tuple[int, ...]
    kernel: int
    strides: int = 1
    padding: int | None = None
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, h, w, features[-1]]."""
        del train
        for i, (features, groups) in enumerate(zip(self.features, self.groups), 1):
            conv = convolution(
                features,
                self.kernel,
                strides=self.strides,
                groups=groups,
                padding=self.padding,
                **self.options.dtypes,
                name=f"conv{i}",
            )
            x = nn.relu(conv(x))
        return x


alexnet = AlexNet
alexnet_torchvision = partial(
    AlexNet,
    widths=(64, 192, 384, 256, 256),
    groups=(1, 1, 1, 1, 1),
    local_norm=None,
)
