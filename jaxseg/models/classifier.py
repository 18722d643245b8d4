"""Encoders as the classifiers that they were published as.

Their weights come from image classification, so this is where a weight file can be
checked, and where the dense layers live that FCN, DeconvNet and DeepLab turn into
convolutions.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.encoders import ENCODERS
from jaxseg.models.layers import Dropout, Dtype, he_normal


class DenseHead(nn.Module):
    """Dense layers `fc6`, `fc7`, ... over the whole map: AlexNet's and VGG's head.

    The map is flattened row by row, then column, then channel, so that a kernel
    [side * side * C, n] reshaped to [side, side, C, n] is the same convolution. Each
    hidden layer has a ReLU and dropout behind it, as in Caffe's nets. (torchvision's
    AlexNet drops before them.)

    Attributes:
        num_classes: K.
        side: height and width of the map that the first layer covers, in cells.
        hidden: widths of the layers before the last.
        dropout: rate behind each hidden layer.
        dtype: of the computation.
        param_dtype: of the parameters.
        axis_name: mapped axis over which the batch is split, under pmap or shard_map.
    """

    num_classes: int
    side: int = 7
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, side, side, C] to [B, K].

        Raises:
            ValueError: if the map has another size.
        """
        if x.shape[1:3] != (self.side, self.side):
            raise ValueError(
                f"The dense layers cover a map of {self.side}x{self.side} cells, and "
                f"this image gives {x.shape[1]}x{x.shape[2]}. Give an image of the "
                "published size (227x227 for Caffe's AlexNet, 224x224 for the others), "
                "or make the layers convolutions, as fully convolutional nets do."
            )
        x = x.reshape(x.shape[0], -1)
        layer = partial(
            nn.Dense,
            kernel_init=he_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        for i, width in enumerate(self.hidden, start=6):
            x = nn.relu(layer(width, name=f"fc{i}")(x))
            x = Dropout(self.dropout, axis_name=self.axis_name)(x, train=train)
        return layer(self.num_classes, name=f"fc{6 + len(self.hidden)}")(x)


class PooledHead(nn.Module):
    """The mean over the map, then one dense layer `fc`: any size of image.

    Attributes:
        num_classes: K.
        dropout: rate before the dense layer.
        norm: whether a LayerNorm comes before it, as in ConvNeXt.
        dtype: of the computation.
        param_dtype: of the parameters.
        axis_name: mapped axis over which the batch is split, under pmap or shard_map.
    """

    num_classes: int
    dropout: float = 0.0
    norm: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, K]."""
        layers = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if self.norm:
            x = nn.LayerNorm(epsilon=1e-6, **layers, name="norm")(x)
        x = Dropout(self.dropout, axis_name=self.axis_name)(x, train=train)
        return nn.Dense(self.num_classes, **layers, name="fc")(x)


class Classifier(nn.Module):
    """Logits for the whole image, from an encoder's deepest level.

    Attributes:
        encoder: called as `(image, train=...)`, returns `Features`.
        head: called as `(map, train=...)`, returns scores, [B, K].
    """

    encoder: nn.Module
    head: nn.Module

    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Maps an image [B, H, W, C] to float32 logits [B, K]."""
        features = self.encoder(image, train=train)
        return self.head(features.maps[-1], train=train).astype(jnp.float32)


# What makes each encoder the published classifier, and its head. U-Net's and
# SegNet-Basic's encoders were never classifiers; they get the plainest head.
_caffe = dict(first_padding=0, round_up=False)
CLASSIFIERS = {
    "alexnet": (_caffe, partial(DenseHead, side=6)),
    "alexnet_torchvision": (_caffe | {"first_padding": 2}, partial(DenseHead, side=6)),
    "convnext_tiny": ({}, partial(PooledHead, norm=True)),
    "googlenet": ({"round_up": False}, partial(PooledHead, dropout=0.4)),
    "googlenet_bn": ({"round_up": False}, partial(PooledHead, dropout=0.2)),
    "mobilenet_v2": ({}, partial(PooledHead, dropout=0.2)),
    "resnet18": ({}, PooledHead),
    "resnet34": ({}, PooledHead),
    "resnet50": ({}, PooledHead),
    "resnet101": ({}, PooledHead),
    "segnet_basic": ({}, PooledHead),
    "unet": ({}, PooledHead),
    "vgg16": ({}, DenseHead),
    "vgg16_bn": ({}, DenseHead),
}


def create_classifier(
    name: str,
    num_classes: int = 1000,
    *,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
    **encoder,
) -> Classifier:
    """Builds an encoder with its published head, in its published geometry.

    Args:
        name: one of `jaxseg.models.list_encoders()`.
        num_classes: K, at least 1.
        dtype: of the computation; the logits are float32.
        param_dtype: of the parameters.
        axis_name: mapped axis of the batch, under pmap or shard_map.
        **encoder: what else the encoder takes, such as `remat` or `norm`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, K]. AlexNet and VGG16 take
        images of their published size alone, 227x227 (224x224 in torchvision's form)
        and 224x224.

    Raises:
        ValueError: if the name is unknown, or `num_classes` is below 1.
    """
    if name not in CLASSIFIERS:
        known = ", ".join(sorted(CLASSIFIERS))
        raise ValueError(f"Unknown encoder {name!r}. Known: {known}.")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: a model needs at least 1 class.")
    layers = dict(dtype=dtype, param_dtype=param_dtype, axis_name=axis_name)
    geometry, head = CLASSIFIERS[name]
    return Classifier(
        ENCODERS[name](**geometry | layers | encoder), head(num_classes, **layers)
    )
