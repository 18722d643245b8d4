"""Weights of torchvision's classifiers and segmentation models.

A classifier's file gives our classifier as a whole, or the encoder of any segmentation
model on it; to FCN, DeepLab on VGG16 and DeconvNet also fc6 and fc7, as convolutions.
"""

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from jaxseg.models.encoders import resnet, vgg
from jaxseg.models.encoders.mobilenet_v2 import DEPTHS as MOBILENET_DEPTHS
from jaxseg.ops.image_normalization import Normalization
from jaxseg.weights.layer_map import DENSE_AS_CONVOLUTIONS, FIXED_ENCODERS, SUBSAMPLED
from jaxseg.weights.mapping import IMAGENET, Mapping, Source
from jaxseg.weights.surgery import dense_from_chw, dense_to_conv, subsample_dense
from jaxseg.weights.torch_modules import COUNTERS, find_by_module, prefixed

HALVES = Normalization((127.5,) * 3, (127.5,) * 3)
"""To -1..1: what GoogLeNet's weights, which came from TensorFlow, were trained with.

torchvision's `transform_input` turns its usual normalization into this one inside the
network, where the file does not tell of it.
"""


@dataclass(frozen=True)
class Net:
    """One of torchvision's classifiers.

    Attributes:
        name: torchvision's.
        encoder: paths of our encoder's modules, and torchvision's names.
        head: likewise of the head; the layer that gives the classes' scores is last.
        special: sources of single variables of the encoder, by path.
        side: of the map that the first of the dense layers fc6, fc7 covers; None where
            there are none.
        normalization: that the published weights were trained with.
        ignored: globs of tensors that serve training alone.
    """

    name: str
    encoder: MappingType[str, str]
    head: MappingType[str, str]
    special: MappingType[str, Source] = field(default_factory=dict)
    side: int | None = None
    normalization: Normalization = field(default_factory=lambda: IMAGENET)
    ignored: tuple[str, ...] = COUNTERS


def _alexnet() -> Net:
    encoder = {
        "stage1/conv1": "features.0",
        "stage2/conv1": "features.3",
        "stage3/conv1": "features.6",
        "stage3/conv2": "features.8",
        "stage3/conv3": "features.10",
    }
    head = {"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"}
    return Net("alexnet", encoder, head, side=6)


def _vgg(name: str, *, norm: bool) -> Net:
    encoder, index = {}, 0
    for stage, depth in enumerate(vgg.DEPTHS, start=1):
        for i in range(1, depth + 1):
            encoder[f"stage{stage}/conv{i}"] = f"features.{index}"
            if norm:
                encoder[f"stage{stage}/bn{i}"] = f"features.{index + 1}"
            index += 3 if norm else 2  # the last of them a ReLU
        index += 1  # the pooling
    head = {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}
    return Net(name, encoder, head, side=7)


def _googlenet() -> Net:
    inside = {
        "conv1x1": "branch1",
        "reduce3x3": "branch2.0",
        "conv3x3": "branch2.1",
        "reduce5x5": "branch3.0",
        "conv5x5": "branch3.1",
        "project": "branch4.1",
    }
    blocks = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        blocks |= prefixed(f"inception{name}/", f"inception{name}.", inside)
    encoder = {
        f"{ours}/{layer}": f"{theirs}.{layer}"
        for ours, theirs in blocks.items()
        for layer in ("conv", "bn")
    }
    return Net(
        "googlenet",
        encoder,
        {"fc": "fc"},
        normalization=HALVES,
        ignored=(*COUNTERS, "aux1.*", "aux2.*"),
    )


def resnet_modules(depths: tuple[int, ...]) -> dict[str, str]:
    """Our modules of a ResNet and torchvision's, which others have taken over.

    Args:
        depths: blocks in each of the four stages.

    Returns:
        Names by paths; a shortcut's and a third convolution's also where a block has
        none.
    """
    modules = {"stem/conv": "conv1", "stem/bn": "bn1"}
    inside = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
    inside |= {f"{layer}{i}": f"{layer}{i}" for layer in ("conv", "bn") for i in "123"}
    for stage, depth in enumerate(depths, start=1):
        for i in range(depth):
            ours, theirs = f"stage{stage}/block{i + 1}/", f"layer{stage}.{i}."
            modules |= prefixed(ours, theirs, inside)
    return modules


RESNETS = {name: resnet_modules(depths) for name, depths in resnet.DEPTHS.items()}


def _resnet(name: str) -> Net:
    return Net(name, RESNETS[name], {"fc": "fc"})


def _mobilenet_v2() -> Net:
    encoder = prefixed("stem/", "features.0.", {"conv": "0", "bn": "1"})
    encoder |= prefixed("last/", "features.18.", {"conv": "0", "bn": "1"})
    # A layer that is activated is in a group of its own, the last one is not.
    expanded = {"expand/conv": "0.0", "expand/bn": "0.1"}
    expanded |= {"depthwise/conv": "1.0", "depthwise/bn": "1.1"}
    expanded |= {"project/conv": "2", "project/bn": "3"}
    first = {"depthwise/conv": "0.0", "depthwise/bn": "0.1"}
    first |= {"project/conv": "1", "project/bn": "2"}
    index = 1
    for stage, depth in enumerate(MOBILENET_DEPTHS, start=1):
        for i in range(1, depth + 1):
            inside = first if stage == 1 else expanded
            theirs = f"features.{index}.conv."
            encoder |= prefixed(f"stage{stage}/block{i}/", theirs, inside)
            index += 1
    return Net("mobilenet_v2", encoder, {"fc": "classifier.1"})


def _convnext_tiny() -> Net:
    encoder = prefixed("downsample1/", "features.0.", {"conv": "0", "norm": "1"})
    inside = {"depthwise": "0", "norm": "2", "expand": "3", "project": "5"}
    special = {}
    for stage, depth in enumerate((3, 3, 9, 3), start=1):
        if stage > 1:
            theirs = f"features.{2 * stage - 2}."
            encoder |= prefixed(
                f"downsample{stage}/", theirs, {"norm": "0", "conv": "1"}
            )
        for i in range(depth):
            ours, theirs = f"stage{stage}/block{i + 1}", f"features.{2 * stage - 1}.{i}"
            encoder |= prefixed(f"{ours}/", f"{theirs}.block.", inside)
            # [C, 1, 1] to [C].
            special[f"{ours}/scale"] = Source((f"{theirs}.layer_scale",), np.ravel)
    head = {"norm": "classifier.0", "fc": "classifier.2"}
    return Net("convnext_tiny", encoder, head, special)


CLASSIFIERS = {
    "alexnet_torchvision": _alexnet(),
    "convnext_tiny": _convnext_tiny(),
    "googlenet_bn": _googlenet(),
    "mobilenet_v2": _mobilenet_v2(),
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "resnet50": _resnet("resnet50"),
    "resnet101": _resnet("resnet101"),
    "vgg16": _vgg("vgg16", norm=False),
    "vgg16_bn": _vgg("vgg16_bn", norm=True),
}
"""By our encoders' names."""

_POINT = {"conv1": "0", "bn1": "1"}
_FCN_HEAD = {"neck/conv1": "0", "neck/bn1": "1", "head": "4"}
_DEEPLAB_HEAD = {
    **prefixed("neck/parts_0/point/", "0.convs.0.", _POINT),
    **prefixed("neck/parts_0/atrous1/", "0.convs.1.", _POINT),
    **prefixed("neck/parts_0/atrous2/", "0.convs.2.", _POINT),
    **prefixed("neck/parts_0/atrous3/", "0.convs.3.", _POINT),
    # Here the pooling comes first.
    **prefixed("neck/parts_0/pooled/", "0.convs.4.", {"conv1": "1", "bn1": "2"}),
    **prefixed("neck/parts_0/project/", "0.project.", _POINT),
    **prefixed("neck/parts_1/", "", {"conv1": "1", "bn1": "2"}),
    "head": "4",
}
_AUXILIARY = {
    "auxiliary_0/block/conv1": "0",
    "auxiliary_0/block/bn1": "1",
    "auxiliary_0/head": "4",
}
SEGMENTERS = {"deeplabv3_resnet50": _DEEPLAB_HEAD, "fcn_resnet50": _FCN_HEAD}
"""Our modules behind the encoder, and torchvision's in `classifier`."""


def mappings(model: MappingType[str, Any]) -> tuple[Mapping, ...]:
    """What torchvision's files can give to a model.

    Args:
        model: the arguments of `create_model`, with `name` and `encoder`; or
            "classifier" as the name for `create_classifier`.

    Returns:
        Mappings, those of whole models first; none if torchvision has nothing for it.
    """
    name = model["name"]
    net = CLASSIFIERS.get(FIXED_ENCODERS.get(name, model["encoder"]))
    if net is None:
        return ()
    if name == "classifier":
        return (_whole(net),)
    return (*_segmenters(name, model["encoder"]), _into_encoder(name, net))


def _whole(net: Net) -> Mapping:
    modules = prefixed("encoder/", "", net.encoder) | prefixed("head/", "", net.head)
    special = _in_encoder(net.special)
    if net.side is not None:
        special["head/fc6/kernel"] = Source(
            (f"{net.head['fc6']}.weight",), partial(dense_from_chw, side=net.side)
        )
    *_, last = net.head.values()
    return Mapping(
        name=f"torchvision {net.name}",
        find=find_by_module(modules, special),
        normalization=net.normalization,
        ignored=net.ignored,
        classes=f"{last}.bias",
    )


def _into_encoder(name: str, net: Net) -> Mapping:
    """From a classifier to the encoder of a model, and to its dense layers."""
    dense = {} if net.side is None else DENSE_AS_CONVOLUTIONS.get(name, {})
    modules = prefixed("encoder/", "", net.encoder)
    modules |= {ours: net.head[layer] for ours, layer in dense.items()}
    usual = find_by_module(modules, _in_encoder(net.special))

    def find(path: str, shape: tuple[int, ...]) -> Source | None:
        source = usual(path, shape)
        _, _, module = path.rpartition("/")[0].partition("/")
        if module not in dense:
            return source
        side = net.side if dense[module] == "fc6" else 1
        part = shape if name in SUBSAMPLED else None
        return replace(source, make=partial(_as_convolution, side=side, part=part))

    return Mapping(
        name=f"the encoder of torchvision {net.name}",
        find=find,
        normalization=net.normalization,
        dropped=tuple(f"{layer}.*" for layer in net.head.values()),
        ignored=net.ignored,
    )


def _as_convolution(
    tensor: np.ndarray, *, side: int, part: tuple[int, ...] | None
) -> np.ndarray:
    """A dense layer's kernel or bias as a convolution's, or a part of it."""
    if tensor.ndim == 2:
        tensor = dense_to_conv(tensor, side)
    return tensor if part is None else subsample_dense(tensor, part)


def _in_encoder(special: MappingType[str, Source]) -> dict[str, Source]:
    return {f"encoder/{path}": source for path, source in special.items()}


def _segmenters(name: str, encoder: str) -> tuple[Mapping, ...]:
    """A model of `torchvision.models.segmentation`, without and with auxiliary head."""
    if name not in SEGMENTERS:
        return ()
    modules = prefixed("encoder/", "backbone.", RESNETS[encoder])
    modules |= prefixed("", "classifier.", SEGMENTERS[name])
    plain = Mapping(
        name=f"torchvision {name.replace('resnet50', encoder)}",
        find=find_by_module(modules),
        normalization=IMAGENET,
        # Where the model has no such head, as it serves training alone.
        ignored=(*COUNTERS, "aux_classifier.*"),
        classes="classifier.4.bias",
    )
    auxiliary = replace(
        plain,
        name=f"{plain.name} with its auxiliary head",
        find=find_by_module(modules | prefixed("", "aux_classifier.", _AUXILIARY)),
        kwargs={"aux_weight": 0.5},
    )
    return (plain, auxiliary)
