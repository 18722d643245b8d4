"""Encoders: an image in, `Features` out."""

from jaxseg.models.encoders.features import Features
from jaxseg.models.encoders.segnet_basic import segnet_basic
from jaxseg.models.encoders.stack import ConvPoolStack
from jaxseg.models.encoders.vgg import vgg16, vgg16_bn

ENCODERS = {"segnet_basic": segnet_basic, "vgg16": vgg16, "vgg16_bn": vgg16_bn}

__all__ = ["ENCODERS", "ConvPoolStack", "Features", "segnet_basic", "vgg16", "vgg16_bn"]
