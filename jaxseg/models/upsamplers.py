"""Upsamplers, which enlarge a decoder's map to the size of the next finer level."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.layers import Activation, Conv, ConvTranspose
from jaxseg.models.options import LayerOptions
from jaxseg.ops.convolution import bilinear_kernel
from jaxseg.ops.indexed_pooling import max_unpool_indices
from jaxseg.ops.pooling import max_unpool
from jaxseg.ops.resize import resize_bilinear, resize_nearest


class Upsampler(nn.Module):
    """The base class of upsamplers, which are called as `(x, places, size)`.

    The arguments are the coarse map [B, h, w, C], the places of the encoder's pooling
    [B, h, w, D] or None, and the height and width of the result, [B, *size, features].

    Attributes:
        features: channels of the result; None for those of the map. Upsamplers without
            parameters, or with one kernel per channel, ignore it.
        options: see `LayerOptions`.
    """

    features: int | None = None
    options: LayerOptions = LayerOptions()


class Nearest(Upsampler):
    """Nearest-neighbor interpolation."""

    @nn.compact
    def __call__(
        self, x: jax.Array, places: jax.Array | None, size: tuple[int, int]
    ) -> jax.Array:
        """Maps [B, h, w, C] to [B, *size, C]."""
        del places
        return resize_nearest(x, size)


class Bilinear(Upsampler):
    """Bilinear interpolation.

    Attributes:
        align_corners: whether the centers of the corner cells are aligned (Caffe's
            Interp, DeepLab) rather than the corners themselves.
    """

    align_corners: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, places: jax.Array | None, size: tuple[int, int]
    ) -> jax.Array:
        """Maps [B, h, w, C] to [B, *size, C]."""
        del places
        return resize_bilinear(x, size, self.align_corners)


def bilinear_init(strides: int) -> nn.initializers.Initializer:
    """Initializer with which a transposed convolution interpolates bilinearly.

    Kernels [kh, kw, C] interpolate each channel separately, and so do [kh, kw, C, C],
    which are zero off the diagonal. Other kernels, [kh, kw, C, D], interpolate random
    mixtures of the channels. Kernels larger than twice the stride are padded with
    zeros; smaller ones are scaled to keep the mean.

    Args:
        strides: of the transposed convolution.

    Returns:
        An initializer, called as `(key, shape, dtype)`.

    Source: FCN, `surgery.py`, which also fills only the diagonal.
    """

    def init(key, shape, dtype=jnp.float32):
        side = min(shape[0], 2 * strides - strides % 2)
        kernel = bilinear_kernel(side)
        kernel = kernel * strides**2 / jnp.sum(kernel)
        before = (shape[0] - side) // 2
        kernel = jnp.pad(kernel, ((before, shape[0] - side - before),) * 2)
        if len(shape) == 3:
            mixture = jnp.ones((1, 1, shape[2]))
        elif shape[2] == shape[3]:
            mixture = jnp.eye(shape[2]).reshape(1, 1, *shape[2:])
        else:
            mixture = nn.initializers.lecun_normal()(key, (1, 1, *shape[2:]))
        kernel = kernel.reshape(*shape[:2], *(1,) * (len(shape) - 2))
        return (kernel * mixture).astype(dtype)

    return init


class Transposed(Upsampler):
    """A transposed convolution, initialized to interpolate bilinearly.

    Attributes:
        kernel: side of the kernel, in cells of the result.
        strides: factor by which the map is enlarged.
        per_channel: whether each channel is convolved separately.
        fixed: whether the kernel is constant, as in FCN's released nets.
        use_bias: whether a bias is added.
        kernel_init: initializer of the kernel; None for bilinear interpolation.
        activation: after the convolution; None for none.
        fit: whether the result is cropped to the requested size. Nets with unpadded
            convolutions use the whole result, and crop their skips to it.

    Source: FCN, sec. 3.3, https://arxiv.org/abs/1411.4038.
    """

    kernel: int = 4
    strides: int = 2
    per_channel: bool = False
    fixed: bool = False
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer | None = None
    activation: Activation | None = None
    fit: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, places: jax.Array | None, size: tuple[int, int]
    ) -> jax.Array:
        """Maps [B, h, w, C] to [B, *size, features].

        Raises:
            ValueError: if the requested size is not `strides` times the map's.
        """
        del places
        channels = x.shape[-1]
        x = ConvTranspose(
            channels if self.per_channel else self.features or channels,
            (self.kernel, self.kernel),
            strides=self.strides,
            padding="SAME" if self.fit else "VALID",
            per_channel=self.per_channel,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init or bilinear_init(self.strides),
            fixed=self.fixed,
            **self.options.dtypes,
            name="conv",
        )(x)
        if self.activation is not None:
            x = self.activation(x)
        return _fitted(x, size, self.strides) if self.fit else x


class PixelShuffle(Upsampler):
    """A 1x1 convolution to strides**2 times as many channels, rearranged into cells.

    Attributes:
        strides: factor by which the map is enlarged.

    Source: Shi et al., https://arxiv.org/abs/1609.05158.
    """

    strides: int = 2

    @nn.compact
    def __call__(
        self, x: jax.Array, places: jax.Array | None, size: tuple[int, int]
    ) -> jax.Array:
        """Maps [B, h, w, C] to [B, *size, features].

        Raises:
            ValueError: if the requested size is not `strides` times the map's.
        """
        del places
        b, h, w, channels = x.shape
        features, s = self.features or channels, self.strides
        conv = Conv(
            features * s**2,
            (1, 1),
            **self.options.dtypes,
            name="conv",
        )
        x = conv(x).reshape(b, h, w, s, s, features)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * s, w * s, features)
        return _fitted(x, size, s)


class Unpool(Upsampler):
    """Max unpooling: each value at the position of the encoder's maximum, zeros elsewhere.

    Attributes:
        project: whether a 1x1 convolution adapts the number of channels to that of the
            places if they differ.

    Source: SegNet, sec. 3, https://arxiv.org/abs/1511.00561.
    """

    project: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, places: jax.Array | None, size: tuple[int, int]
    ) -> jax.Array:
        """Maps [B, h, w, C] to [B, *size, C].

        Args:
            x: the coarse map.
            places: from the encoder's pooling, [B, h, w, C]: uint8 for disjoint
                windows, or int32 indices into the plane.
            size: height and width of the result, those of the map before pooling.

        Raises:
            ValueError: if the encoder has no max pooling here, or the numbers of
                channels differ and `project` is off.
        """
        if places is None:
            raise ValueError(
                "Unpooling needs the places of an encoder's max pooling, and this "
                "encoder has none at this level; use another upsampler, or an encoder "
                "that max-pools at every level, such as vgg16_bn."
            )
        if places.shape[-1] != x.shape[-1]:
            if not self.project:
                raise ValueError(
                    "Unpooling needs as many channels as the encoder has, but the "
                    f"decoder has {x.shape[-1]} channels at a level of "
                    f"{places.shape[-1]}; let the decoder block before it have "
                    f"{places.shape[-1]} channels, or set project=True."
                )
            x = Conv(
                places.shape[-1],
                (1, 1),
                **self.options.dtypes,
                name="project",
            )(x)
        if places.dtype == jnp.uint8:
            return max_unpool(x, places, size)
        return max_unpool_indices(x, places, size)


def _fitted(x, size, strides):
    """Crops a map to a finer level of odd size."""
    for n, wanted in zip(x.shape[1:3], size):
        if not n - strides < wanted <= n:
            raise ValueError(
                f"With strides={strides} the map has {x.shape[1]}x{x.shape[2]} cells, "
                f"and the level has {size[0]}x{size[1]}; set strides to the factor "
                "between the two levels, or use an upsampler for any size, such as "
                "bilinear."
            )
    return x[:, : size[0], : size[1]]


UPSAMPLERS = {
    "bilinear": Bilinear,
    "bilinear_align_corners": partial(Bilinear, align_corners=True),
    "nearest": Nearest,
    "pixel_shuffle": PixelShuffle,
    "transposed": Transposed,
    "transposed_fixed": partial(Transposed, per_channel=True, fixed=True),
    "unpool": partial(Unpool, project=True),
}
