"""VGG16: thirteen 3x3 convolutions in five stages, without and with BatchNorm.

Source: Simonyan & Zisserman, configuration D, https://arxiv.org/abs/1409.1556.
"""

from functools import partial

from jaxseg.models.encoders.stack import ConvPoolStack
from jaxseg.models.layers import batch_norm

vgg16_bn = partial(
    ConvPoolStack,
    widths=(64, 128, 256, 512, 512),
    depths=(2, 2, 3, 3, 3),
    norm=batch_norm,
)
vgg16 = partial(vgg16_bn, norm=None)
