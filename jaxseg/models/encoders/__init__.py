"""Encoders: an image in, `Features` out."""

from jaxseg.models.encoders.alexnet import alexnet, alexnet_torchvision
from jaxseg.models.encoders.convnext import convnext_tiny
from jaxseg.models.encoders.features import Features
from jaxseg.models.encoders.googlenet import googlenet, googlenet_bn
from jaxseg.models.encoders.mobilenet_v2 import mobilenet_v2
from jaxseg.models.encoders.resnet import resnet18, resnet34, resnet50, resnet101
from jaxseg.models.encoders.segnet_basic import segnet_basic
from jaxseg.models.encoders.stack import ConvPoolStack
from jaxseg.models.encoders.unet import unet
from jaxseg.models.encoders.vgg import vgg16, vgg16_bn

ENCODERS = {
    "alexnet": alexnet,
    "alexnet_torchvision": alexnet_torchvision,
    "convnext_tiny": convnext_tiny,
    "googlenet": googlenet,
    "googlenet_bn": googlenet_bn,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "segnet_basic": segnet_basic,
    "unet": unet,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
}

__all__ = [
    "ENCODERS",
    "ConvPoolStack",
    "Features",
    "alexnet",
    "alexnet_torchvision",
    "convnext_tiny",
    "googlenet",
    "googlenet_bn",
    "mobilenet_v2",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "segnet_basic",
    "unet",
    "vgg16",
    "vgg16_bn",
]
