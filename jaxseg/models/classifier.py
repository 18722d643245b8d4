"""Image classifiers: the encoders with their published heads.

Pretrained weights come from image classification. A file of weights is checked against
these models, and their dense layers are those that FCN, DeconvNet and DeepLab turn into
convolutions.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.components import check_classes, create_component
from jaxseg.models.heads import DENSE_SIDES
from jaxseg.models.layers import Dropout, he_normal
from jaxseg.models.options import LayerOptions
from jaxseg.utils.names import suggest_name


class DenseHead(nn.Module):
    """Dense layers `fc6`, `fc7`, ... over the whole map: AlexNet's and VGG's head.

    The map is flattened in the order row, column, channel, so that a kernel
    [side * side * C, n] reshaped to [side, side, C, n] is the same convolution. Each
    hidden layer is followed by a ReLU and dropout, as in Caffe's nets. (torchvision's
    AlexNet has dropout before them.)

    Attributes:
        num_classes: K.
        side: height and width of the map that the first layer covers, in cells.
        hidden: widths of the layers before the last.
        dropout: dropout rate after each hidden layer.
        options: see `LayerOptions`.
    """

    num_classes: int
    side: int = 7
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, side, side, C] to [B, K].

        Raises:
            ValueError: if the map has another size.
        """
        if x.shape[1:3] != (self.side, self.side):
            raise ValueError(
                f"The dense layers need a map of {self.side}x{self.side} cells, and "
                f"the map of this image has {x.shape[1]}x{x.shape[2]}. Use an image of "
                "the published size (227x227 for Caffe's AlexNet, 224x224 for the "
                "others), or a fully convolutional net."
            )
        x = x.reshape(x.shape[0], -1)
        layer = partial(
            nn.Dense,
            kernel_init=he_normal,
            **self.options.dtypes,
        )
        for i, width in enumerate(self.hidden, start=6):
            x = nn.relu(layer(width, name=f"fc{i}")(x))
            x = Dropout(self.dropout, self.options.axis_name)(x, train=train)
        return layer(self.num_classes, name=f"fc{6 + len(self.hidden)}")(x)


class PooledHead(nn.Module):
    """The mean over the map, then one dense layer `fc`, for images of any size.

    Attributes:
        num_classes: K.
        dropout: dropout rate before the dense layer.
        norm: whether a LayerNorm precedes it, as in ConvNeXt.
        options: see `LayerOptions`.
    """

    num_classes: int
    dropout: float = 0.0
    norm: bool = False
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, K]."""
        dtypes = self.options.dtypes
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if self.norm:
            x = nn.LayerNorm(epsilon=1e-6, **dtypes, name="norm")(x)
        x = Dropout(self.dropout, self.options.axis_name)(x, train=train)
        return nn.Dense(self.num_classes, **dtypes, name="fc")(x)


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


_alexnet_head = partial(DenseHead, side=DENSE_SIDES["alexnet"])
CLASSIFIERS = {
    "alexnet": ({"first_padding": 0, "round_up": False}, _alexnet_head),
    "alexnet_torchvision": ({"first_padding": 2, "round_up": False}, _alexnet_head),
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
"""The arguments that give each encoder its published geometry, and its head.

U-Net's and SegNet-Basic's encoders were never classifiers; they have the simplest head.
"""


def create_classifier(
    name: str,
    num_classes: int = 1000,
    *,
    options: LayerOptions = LayerOptions(),
    **encoder,
) -> Classifier:
    """Creates an encoder with its published head, in its published geometry.

    Args:
        name: one of `jaxseg.models.list_encoders()`.
        num_classes: K, at least 1.
        options: see `LayerOptions`.
        **encoder: further keyword arguments of the encoder, such as `widths` or `norm`.

    Returns:
        A module from an image [B, H, W, C] to logits [B, K]. AlexNet and VGG16 accept
        only images of their published size, 227x227 (224x224 in torchvision's form)
        and 224x224.

    Raises:
        ValueError: if the name is unknown, or `num_classes` is below 1.
    """
    if name not in CLASSIFIERS:
        known = tuple(sorted(CLASSIFIERS))
        raise ValueError(f"Unknown classifier {name!r}{suggest_name(name, known)}")
    check_classes(num_classes)
    geometry, head = CLASSIFIERS[name]
    return Classifier(
        create_component("encoder", name, options=options, **geometry | encoder),
        head(num_classes, options=options),
    )
