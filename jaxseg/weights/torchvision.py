"""Name mappings of torchvision's classifiers and segmentation models.

The file of a classifier can be loaded into our classifier, or into the encoder of any
segmentation model; into FCN, DeepLab on VGG16 and DeconvNet also fc6 and fc7, as
convolutions.
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

SYMMETRIC = Normalization((127.5,) * 3, (127.5,) * 3)
"""Normalization to -1..1, for GoogLeNet, whose weights come from TensorFlow.

torchvision converts its usual normalization to this one inside the network, by
`transform_input`, which cannot be seen in the file.
"""


@dataclass(frozen=True)
class Net:
    """One of torchvision's classifiers.

    Attributes:
        name: in torchvision.
        encoder: torchvision's names by the paths of modules in our encoder.
        head: torchvision's names by the paths of modules in our head; the last one
            gives the scores.
        special: sources of variables of the encoder with another layout, by path.
        side: of the map under fc6, in cells; None if there is no fc6.
        normalization: that the published weights were trained with.
        ignored: globs of tensors that are used in training only.
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
        normalization=SYMMETRIC,
        ignored=(*COUNTERS, "aux1.*", "aux2.*"),
    )


def resnet_modules(depths: tuple[int, ...]) -> dict[str, str]:
    """torchvision's names of the modules of a ResNet, which other libraries use, too.

    Args:
        depths: number of blocks in each of the four stages.

    Returns:
        Names by the paths of our modules, including a shortcut and a third convolution
        for blocks without them.
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
    # A layer with an activation is in its own group; the last layer is not.
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
"""By the names of our encoders."""

_POINT = {"conv1": "0", "bn1": "1"}
_FCN_HEAD = {"neck/conv1": "0", "neck/bn1": "1", "head": "4"}
_DEEPLAB_HEAD = {
    **prefixed("neck/parts_0/point/", "0.convs.0.", _POINT),
    **prefixed("neck/parts_0/atrous1/", "0.convs.1.", _POINT),
    **prefixed("neck/parts_0/atrous2/", "0.convs.2.", _POINT),
    **prefixed("neck/parts_0/atrous3/", "0.convs.3.", _POINT),
    # The pooling is module 0 here.
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
"""Our modules after the encoder, and torchvision's in `classifier`."""


def mappings(model: MappingType[str, Any]) -> tuple[Mapping, ...]:
    """The mappings from torchvision's files to a model.

    Args:
        model: keyword arguments of `create_model`, with `name` and `encoder`; or with
            the name "classifier" for `create_classifier`.

    Returns:
        Mappings, those of whole models first; none if there are no such files.
    """
    name = model["name"]
    net = CLASSIFIERS.get(FIXED_ENCODERS.get(name, model["encoder"]) or "")
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
        if source is None or net.side is None or module not in dense:
            return source
        side = net.side if dense[module] == "fc6" else 1
        target = shape if name in SUBSAMPLED else None
        make = partial(_as_convolution, side=side, shape=target)
        return replace(source, make=make)

    return Mapping(
        name=f"the encoder of torchvision {net.name}",
        find=find,
        normalization=net.normalization,
        dropped=tuple(f"{layer}.*" for layer in net.head.values()),
        ignored=net.ignored,
    )


def _as_convolution(
    tensor: np.ndarray, *, side: int, shape: tuple[int, ...] | None
) -> np.ndarray:
    """The kernel or bias of a dense layer as a convolution, subsampled to a shape."""
    if tensor.ndim == 2:
        tensor = dense_to_conv(tensor, side)
    return tensor if shape is None else subsample_dense(tensor, shape)


def _in_encoder(special: MappingType[str, Source]) -> dict[str, Source]:
    return {f"encoder/{path}": source for path, source in special.items()}


def _segmenters(name: str, encoder: str) -> tuple[Mapping, ...]:
    """Models of `torchvision.models.segmentation`, without and with auxiliary head."""
    if name not in SEGMENTERS:
        return ()
    modules = prefixed("encoder/", "backbone.", RESNETS[encoder])
    modules |= prefixed("", "classifier.", SEGMENTERS[name])
    plain = Mapping(
        name=f"torchvision {name.replace('resnet50', encoder)}",
        find=find_by_module(modules),
        normalization=IMAGENET,
        # For models without auxiliary head, which is used in training only.
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
