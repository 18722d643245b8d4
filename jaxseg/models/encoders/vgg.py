"""VGG16: thirteen 3x3 convolutions in five stages, without and with BatchNorm.

Source: Simonyan & Zisserman, configuration D, https://arxiv.org/abs/1409.1556.
"""

from functools import partial

from jaxseg.models.encoders.stack import ConvPoolStack
from jaxseg.models.layers import batch_norm

DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions in each stage."""


def stage_widths(width: int = 64) -> tuple[int, ...]:
    """Channels of each stage.

    Args:
        width: channels of the first stage.
    """
    return tuple(width * factor for factor in (1, 2, 4, 8, 8))


vgg16_bn = partial(ConvPoolStack, widths=stage_widths(), depths=DEPTHS, norm=batch_norm)
vgg16 = partial(vgg16_bn, norm=None)
