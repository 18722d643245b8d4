"""Name mappings of Caffe's networks.

The networks expect BGR. Their first kernels are reversed, so that ours expect RGB.

Two things cannot be seen in a file. BVLC's AlexNet has the same tensors as CaffeNet, but
normalizes before its poolings instead of after them, as ours does. And SegNet's
BatchNorm consists of a scale and a shift, which are those of inference only if the file
was written by the authors' compute_bn_statistics.py.

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
from jaxseg.weights.layer_map import (
    DENSE_AS_CONVOLUTIONS,
    FCN_UPSCORES,
    FIXED_ENCODERS,
    SUBSAMPLED,
    VGG16,
)
from jaxseg.weights.mapping import (
    CAFFE,
    Mapping,
    Source,
    WeightsError,
    conv,
    conv_bgr,
    conv_transpose,
    dense,
)
from jaxseg.weights.surgery import dense_from_chw, dense_to_conv, subsample_dense

Sources = dict[str, Source]
Make = Callable[..., np.ndarray]


def _minus(red: float, green: float, blue: float) -> Normalization:
    return Normalization((red, green, blue), (1.0, 1.0, 1.0))


RAW = _minus(0.0, 0.0, 0.0)
"""SegNet's networks do not normalize images."""

DEEPLAB = _minus(122.675, 116.669, 104.008)

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
"""Convolutions, by their paths in our encoders; the first one is applied to images."""


@dataclass(frozen=True)
class Net:
    """A classifier.

    Attributes:
        name: for messages.
        encoder: names of layers by the paths of our encoder's convolutions.
        head: names of layers by the paths in our head; the last one gives the scores.
        normalization: that the weights were trained with.
        side: of the map under fc6, in cells; 1 if there is no fc6.
        ignored: globs of tensors that are used in training only.
    """

    name: str
    encoder: dict[str, str]
    head: dict[str, str]
    normalization: Normalization
    side: int = 1
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
"""By the names of our encoders. VGG16 has no BatchNorm; it keeps its initial values."""

SCALES = {"score_pool4": ("scale_pool4", 0.01), "score_pool3": ("scale_pool3", 0.0001)}
"""Layers before the scores of FCN-8s-atonce, and their constants."""


def mappings(model: MappingType[str, Any]) -> tuple[Mapping, ...]:
    """The mappings from Caffe's files to a model.

    Args:
        model: keyword arguments of `create_model`, with `name` and `encoder`; or with
            the name "classifier" for `create_classifier`.

    Returns:
        Mappings, those of whole models first; none if there are no such files.
    """
    name, encoder = model["name"], model["encoder"]
    net = CLASSIFIERS.get(FIXED_ENCODERS.get(name, encoder) or "")
    if name == "classifier":
        # There is no VGG16 with BatchNorm.
        return (_whole(net),) if net and encoder != "vgg16_bn" else ()
    whole: tuple[Mapping, ...] = ()
    is_fcn = name in FCN_UPSCORES and encoder == "vgg16"
    if net and (is_fcn or (name, encoder) == ("fcn32s", "alexnet")):
        whole = (_fcn(name, net, learned=bool(model.get("learned"))),)
    elif name == "segnet":
        whole = (_segnet(),)
    elif name == "segnet_basic":
        # The names in the tutorial, and in the trained model that comes with it.
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
    for ours, theirs in DENSE_AS_CONVOLUTIONS.get(name, {}).items():
        if theirs in net.head:
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
    """The kernel of a dense layer, which is a convolution already in some files."""
    return conv(kernel) if kernel.ndim == 4 else dense_to_conv(kernel, side)


def _fcn(name: str, net: Net, *, learned: bool) -> Mapping:
    """A released FCN. Its file contains tensors for what is constant in our model."""
    upscores = FCN_UPSCORES[name]
    skips = len(upscores) - 1
    sources = _encoder(net)
    for layer in ("fc6", "fc7"):
        sources |= _layer(f"neck/block/{layer}", layer)
    scores = {"neck/score": "score_fr"}
    scores |= {f"decoder/skips_{i}/project": f"score_pool{4 - i}" for i in range(skips)}
    for i, ((ours, theirs), upscore) in enumerate(zip(scores.items(), upscores)):
        constants: dict[str, Make] = {}
        if learned and i < skips:
            path = f"params/decoder/upsamplers_{i}/conv/kernel"
            sources[path] = Source((f"{upscore}/0",), conv_transpose)
        else:
            constants[upscore] = _bilinear
        if name == "fcn8s_atonce" and theirs in SCALES:
            layer, value = SCALES[theirs]
            constants[layer] = partial(np.full_like, fill_value=value)
        sources |= _layer(ours, theirs)
        # The constants are checked together with the scores, so that both are needed,
        # or neither with a new head.
        sources[f"params/{ours}/kernel"] = Source(
            (f"{theirs}/0", *(f"{layer}/0" for layer in constants)),
            partial(_checked, constants),
        )
    title = f"FCN-{name.removeprefix('fcn').replace('_', '-')} on {net.name}"
    return replace(
        _mapping(title, sources, CAFFE, "score_fr"), kwargs={"geometry": "released"}
    )


def _checked(
    constants: dict[str, Make], kernel: np.ndarray, *tensors: np.ndarray
) -> np.ndarray:
    """The kernel of a convolution, if the other tensors equal our constants."""
    for (layer, expected), tensor in zip(constants.items(), tensors):
        if not np.allclose(tensor, expected(tensor), rtol=1e-5, atol=1e-8):
            raise WeightsError(
                f"{layer} is fixed in this model (a bilinear interpolation or a "
                "constant factor), but differs in the file; with learned=True, the "
                "upsampling kernels before skips are read from the file"
            )
    return conv(kernel)


def _bilinear(kernel: np.ndarray) -> np.ndarray:
    """The kernel [C, C, k, k] that interpolates each channel bilinearly."""
    channels, _, side, _ = kernel.shape
    return np.multiply.outer(np.eye(channels), bilinear_kernel(side))


def _segnet() -> Mapping:
    layers = {f"encoder/{ours}": theirs for ours, theirs in VGG16.items()}
    for block, depth in enumerate(reversed(DEPTHS)):
        for i in range(depth):
            theirs = f"conv{len(DEPTHS) - block}_{depth - i}_D"
            layers[f"decoder/blocks_{block}/conv{i + 1}"] = theirs
    # The last layer gives the scores, and has no BatchNorm.
    _, scores = layers.popitem()
    return _normalized("SegNet", layers, scores)


def _segnet_basic(scores: str) -> Mapping:
    layers = {f"encoder/stage{i}/conv1": f"conv{i}" for i in (1, 2, 3, 4)}
    for i in (4, 3, 2, 1):
        layers[f"decoder/blocks_{4 - i}/conv1"] = f"conv_decode{i}"
    return _normalized("SegNet-Basic", layers, scores)


def _normalized(title: str, layers: dict[str, str], scores: str) -> Mapping:
    """A network of convolutions with BatchNorm, and a last one without."""
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
"""The variance whose sum with epsilon is 1, also in float32."""


def _largefov(scores: str) -> Mapping:
    sources = _encoder(_VGG16) | _layer("neck/score", scores)
    for layer in ("fc6", "fc7"):
        sources |= _layer(f"neck/block/{layer}", layer)
    return _mapping("DeepLab-LargeFOV", sources, DEEPLAB, scores)


def _mapping(
    title: str, sources: Sources, normalization: Normalization, scores: str
) -> Mapping:
    return Mapping(
        name=f"Caffe's {title}",
        find=lambda path, shape: sources.get(path),
        normalization=normalization,
        classes=f"{scores}/0",
    )


def _encoder(net: Net) -> Sources:
    return _convolutions({f"encoder/{k}": v for k, v in net.encoder.items()})


def _convolutions(layers: dict[str, str]) -> Sources:
    """Sources of convolutions by their paths; the first one is applied to images."""
    sources: Sources = {}
    for ours, theirs in layers.items():
        sources |= _layer(ours, theirs, conv if sources else conv_bgr)
    return sources


def _layer(ours: str, theirs: str, make: Make = conv) -> Sources:
    """Sources of a kernel and a bias."""
    return {
        f"params/{ours}/kernel": Source((f"{theirs}/0",), make),
        f"params/{ours}/bias": Source((f"{theirs}/1",), _vector),
    }


def _vector(tensor: np.ndarray) -> np.ndarray:
    """A vector [C], from [1, C, 1, 1] or similar shapes."""
    return tensor.reshape(max(tensor.shape))


def _filled(value: float, tensor: np.ndarray) -> np.ndarray:
    return np.full_like(_vector(tensor), value)
