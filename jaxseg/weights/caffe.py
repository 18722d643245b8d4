"""Caffe's nets: which of their tensors each of our variables is made of.

The nets see BGR. Their first kernels are reversed, so that ours see RGB.

Two things are not in a file. BVLC's AlexNet has CaffeNet's tensors, but normalizes
before its poolings, and ours after. And SegNet's BatchNorm is a scale and a shift, those
of inference only if the authors' compute_bn_statistics.py wrote the file.

Source: the prototxts of BVLC/caffe (bvlc_reference_caffenet, bvlc_googlenet),
VGG_ILSVRC_16_layers, shelhamer/fcn.berkeleyvision.org, alexgkendall/SegNet-Tutorial and
DeepLab's vgg128_noup.
"""

from collections.abc import Callable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from jaxseg.models.encoders.vgg import DEPTHS
from jaxseg.models.layers import batch_norm
from jaxseg.ops.convolution import bilinear_kernel
from jaxseg.ops.image_normalization import Normalization
from jaxseg.weights.layer_map import DENSE_AS_CONVOLUTIONS, FIXED_ENCODERS, SUBSAMPLED
from jaxseg.weights.mapping import (
    CAFFE,
    Mapping,
    Source,
    WeightsError,
    conv,
    conv_bgr,
    dense,
)
from jaxseg.weights.surgery import dense_from_chw, dense_to_conv, subsample_dense

Sources = dict[str, Source]
Make = Callable[..., np.ndarray]


def _minus(red: float, green: float, blue: float) -> dict[str, tuple[float, ...]]:
    return {"mean": (red, green, blue), "std": (1.0, 1.0, 1.0)}


RAW = _minus(0.0, 0.0, 0.0)
"""SegNet's nets take pixels as they are."""

DEEPLAB = _minus(122.675, 116.669, 104.008)

VGG16 = {
    f"stage{stage}/conv{i}": f"conv{stage}_{i}"
    for stage, depth in enumerate(DEPTHS, start=1)
    for i in range(1, depth + 1)
}
CAFFENET = {
    "stage1/conv1": "conv1",
    "stage2/conv1": "conv2",
    "stage3/conv1": "conv3",
    "stage3/conv2": "conv4",
    "stage3/conv3": "conv5",
}
GOOGLENET = {
    "conv1/conv": "conv1/7x7_s2",
    "conv2_reduce/conv": "conv2/3x3_reduce",
    "conv2/conv": "conv2/3x3",
} | {
    f"inception{block}/{ours}/conv": f"inception_{block}/{theirs}"
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    for ours, theirs in {
        "conv1x1": "1x1",
        "reduce3x3": "3x3_reduce",
        "conv3x3": "3x3",
        "reduce5x5": "5x5_reduce",
        "conv5x5": "5x5",
        "project": "pool_proj",
    }.items()
}
"""Convolutions, by their paths in our encoders; the first sees the image."""


@dataclass(frozen=True)
class Net:
    """A classifier.

    Attributes:
        name: for messages.
        encoder: layers by the paths of our encoder's convolutions.
        head: layers by the paths of our head's; the one that gives the scores is last.
        normalization: that the weights were trained with.
        side: of the map that fc6 covers, in cells; None where there is none.
        ignored: globs of tensors that serve training alone.
    """

    name: str
    encoder: dict[str, str]
    head: dict[str, str]
    normalization: Normalization
    side: int | None = None
    ignored: tuple[str, ...] = ()


_DENSE = {"fc6": "fc6", "fc7": "fc7", "fc8": "fc8"}
_VGG16 = Net("VGG16", VGG16, _DENSE, _minus(123.68, 116.779, 103.939), side=7)
CLASSIFIERS = {
    "alexnet": Net("CaffeNet", CAFFENET, _DENSE, CAFFE, side=6),
    "googlenet": Net(
        "BVLC GoogLeNet",
        GOOGLENET,
        {"fc": "loss3/classifier"},
        _minus(123.0, 117.0, 104.0),
        ignored=("loss1/*", "loss2/*"),
    ),
    "vgg16": _VGG16,
    "vgg16_bn": _VGG16,
}
"""By our encoders' names. VGG16 has no BatchNorm to give; that stays as it starts."""

SKIPS = {"fcn32s": 0, "fcn16s": 1, "fcn8s": 2, "fcn8s_atonce": 2}
UPSCORES = (
    ("upscore",),
    ("upscore2", "upscore16"),
    ("upscore2", "upscore_pool4", "upscore8"),
)
"""FCN's enlargements, deepest first, by the number of skips."""

SCALES = {"score_pool4": ("scale_pool4", 0.01), "score_pool3": ("scale_pool3", 0.0001)}
"""Layers before the scores of FCN-8s-atonce, and their constants."""


def mappings(model: MappingType[str, Any]) -> tuple[Mapping, ...]:
    """What files of Caffe can give to a model.

    Args:
        model: the arguments of `create_model`, with `name` and `encoder`; or
            "classifier" as the name for `create_classifier`.

    Returns:
        Mappings, those of whole models first; none if Caffe has nothing for it.
    """
    name, encoder = model["name"], model["encoder"]
    net = CLASSIFIERS.get(FIXED_ENCODERS.get(name, encoder))
    if name == "classifier":
        # There is no VGG16 with BatchNorm.
        return (_whole(net),) if net and encoder != "vgg16_bn" else ()
    whole: tuple[Mapping, ...] = ()
    if name in SKIPS and (
        encoder == "vgg16" or (name, encoder) == ("fcn32s", "alexnet")
    ):
        whole = (_fcn(name, net, learned=bool(model.get("learned"))),)
    elif name == "segnet":
        whole = (_segnet(),)
    elif name == "segnet_basic":
        # In the tutorial, and in the trained model that comes with it.
        scores = ("conv_classifier", "dense_softmax_inner_prod")
        whole = tuple(map(_segnet_basic, scores))
    elif name == "deeplab_largefov":
        whole = tuple(map(_largefov, ("fc8_pascal", "fc8_voc12")))
    return (*whole, _into_encoder(name, net)) if net else whole


def _whole(net: Net) -> Mapping:
    sources = _encoder(net)
    for ours, theirs in net.head.items():
        make = partial(dense_from_chw, side=net.side) if ours == "fc6" else dense
        sources |= _layer(f"head/{ours}", theirs, make)
    *_, scores = net.head.values()
    return replace(
        _mapping(net.name, sources, net.normalization, scores), ignored=net.ignored
    )


def _into_encoder(name: str, net: Net) -> Mapping:
    """From a classifier to the encoder of a model, and to its dense layers."""
    sources = _encoder(net)
    if net.side is not None:
        for ours, theirs in DENSE_AS_CONVOLUTIONS.get(name, {}).items():
            side = net.side if theirs == "fc6" else 1
            sources |= _layer(ours, theirs, partial(_as_convolution, side=side))

    def find(path: str, shape: tuple[int, ...]) -> Source | None:
        source = sources.get(path)
        if source is None or name not in SUBSAMPLED or "/neck/" not in path:
            return source
        return Source(source.names, lambda x: subsample_dense(source.make(x), shape))

    return Mapping(
        name=f"the encoder of Caffe's {net.name}",
        find=find,
        normalization=net.normalization,
        dropped=tuple(f"{layer}/*" for layer in net.head.values()),
        ignored=net.ignored,
    )


def _as_convolution(kernel: np.ndarray, side: int) -> np.ndarray:
    """A dense layer's kernel, which some files have as a convolution's already."""
    return conv(kernel) if kernel.ndim == 4 else dense_to_conv(kernel, side)


def _fcn(name: str, net: Net, *, learned: bool) -> Mapping:
    """A released FCN. What is constant in ours, its file has as tensors."""
    skips = SKIPS[name]
    sources = _encoder(net)
    for layer in ("fc6", "fc7"):
        sources |= _layer(f"neck/block/{layer}", layer)
    scores = {"neck/score": "score_fr"}
    scores |= {f"decoder/skips_{i}/project": f"score_pool{4 - i}" for i in range(skips)}
    upscores = UPSCORES[skips]
    for i, ((ours, theirs), upscore) in enumerate(zip(scores.items(), upscores)):
        constants: dict[str, Make] = {}
        if learned and i < skips:
            path = f"params/decoder/upsamplers_{i}/conv/kernel"
            sources[path] = Source((f"{upscore}/0",), _transposed)
        else:
            constants[upscore] = _bilinear
        if name == "fcn8s_atonce" and theirs in SCALES:
            layer, value = SCALES[theirs]
            constants[layer] = partial(np.full_like, fill_value=value)
        sources |= _layer(ours, theirs)
        # The scores answer for the constants around them, so that both are needed or
        # both start afresh.
        sources[f"params/{ours}/kernel"] = Source(
            (f"{theirs}/0", *(f"{layer}/0" for layer in constants)),
            partial(_among, constants),
        )
    title = f"FCN-{name.removeprefix('fcn').replace('_', '-')} on {net.name}"
    return replace(
        _mapping(title, sources, CAFFE, "score_fr"), kwargs={"geometry": "released"}
    )


def _among(
    constants: dict[str, Make], kernel: np.ndarray, *tensors: np.ndarray
) -> np.ndarray:
    """A convolution's kernel, once the other tensors are found to be as in our net."""
    for (layer, expected), tensor in zip(constants.items(), tensors):
        if not np.allclose(tensor, expected(tensor), rtol=1e-5, atol=1e-8):
            raise WeightsError(
                f"{layer} is fixed in this model, a bilinear interpolation or a "
                "constant factor, and differs in the file (with learned=True, kernels "
                "between skips are taken as they are)"
            )
    return conv(kernel)


def _bilinear(kernel: np.ndarray) -> np.ndarray:
    """The kernel of this shape, [C, C, k, k], that interpolates each channel alone."""
    channels, _, side, _ = kernel.shape
    return np.multiply.outer(np.eye(channels), bilinear_kernel(side))


def _transposed(kernel: np.ndarray) -> np.ndarray:
    """[Cin, Cout, kh, kw] of Caffe's deconvolution to [kh, kw, Cin, Cout]."""
    return kernel.transpose(2, 3, 0, 1)


def _segnet() -> Mapping:
    layers = {f"encoder/{ours}": theirs for ours, theirs in VGG16.items()}
    for block, depth in enumerate(reversed(DEPTHS)):
        for i in range(depth):
            theirs = f"conv{len(DEPTHS) - block}_{depth - i}_D"
            layers[f"decoder/blocks_{block}/conv{i + 1}"] = theirs
    # The very last has no BatchNorm, and gives the scores.
    _, scores = layers.popitem()
    return _normalized("SegNet", layers, scores)


def _segnet_basic(scores: str) -> Mapping:
    layers = {f"encoder/stage{i}/conv1": f"conv{i}" for i in (1, 2, 3, 4)}
    for i in (4, 3, 2, 1):
        layers[f"decoder/blocks_{4 - i}/conv1"] = f"conv_decode{i}"
    return _normalized("SegNet-Basic", layers, scores)


def _normalized(title: str, layers: dict[str, str], scores: str) -> Mapping:
    """A net of convolutions that each have a BatchNorm, and one that has none."""
    sources = _convolutions(layers) | _layer("head", scores)
    for ours, theirs in layers.items():
        scale, shift = f"{theirs}_bn/0", f"{theirs}_bn/1"
        ours = ours.replace("conv", "bn")
        sources[f"params/{ours}/scale"] = Source((scale,), _vector)
        sources[f"params/{ours}/bias"] = Source((shift,), _vector)
        sources[f"batch_stats/{ours}/mean"] = Source((scale,), partial(_filled, 0.0))
        sources[f"batch_stats/{ours}/var"] = Source((scale,), partial(_filled, UNIT))
    return _mapping(title, sources, RAW, scores)


UNIT = 1.0 - batch_norm.keywords["epsilon"]
"""The variance for which BatchNorm divides by 1: its sum with epsilon, in float32 too."""


def _largefov(scores: str) -> Mapping:
    sources = _encoder(_VGG16) | _layer("neck/score", scores)
    for layer in ("fc6", "fc7"):
        sources |= _layer(f"neck/block/{layer}", layer)
    return _mapping("DeepLab-LargeFOV", sources, DEEPLAB, scores)


def _mapping(title: str, sources: Sources, normalization, scores: str) -> Mapping:
    return Mapping(
        name=f"Caffe's {title}",
        find=lambda path, shape: sources.get(path),
        normalization=normalization,
        classes=f"{scores}/0",
    )


def _encoder(net: Net) -> Sources:
    return _convolutions({f"encoder/{k}": v for k, v in net.encoder.items()})


def _convolutions(layers: dict[str, str]) -> Sources:
    """Of layers by their paths, of which the first sees the image."""
    sources: Sources = {}
    for ours, theirs in layers.items():
        sources |= _layer(ours, theirs, conv if sources else conv_bgr)
    return sources


def _layer(ours: str, theirs: str, make: Make = conv) -> Sources:
    """Kernel and bias."""
    return {
        f"params/{ours}/kernel": Source((f"{theirs}/0",), make),
        f"params/{ours}/bias": Source((f"{theirs}/1",), _vector),
    }


def _vector(tensor: np.ndarray) -> np.ndarray:
    """[C] from [1, C, 1, 1], and the like."""
    return tensor.reshape(max(tensor.shape))


def _filled(value: float, tensor: np.ndarray) -> np.ndarray:
    return np.full_like(_vector(tensor), value)
