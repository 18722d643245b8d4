"""Layers of published networks, and the layers of our models that correspond to them."""

from jaxseg.models.encoders.vgg import DEPTHS

VGG16 = {
    f"stage{stage}/conv{i}": f"conv{stage}_{i}"
    for stage, depth in enumerate(DEPTHS, start=1)
    for i in range(1, depth + 1)
}
"""Paths in our VGG16 encoder, and the names of its authors."""

FIXED_ENCODERS = {
    "deconvnet": "vgg16_bn",
    "deeplab_largefov": "vgg16",
    "segnet": "vgg16_bn",
}
"""Encoders of the models that have no argument `encoder`."""

_FC6_FC7 = {"neck/block/fc6": "fc6", "neck/block/fc7": "fc7"}
_IN_BRANCHES = {
    f"neck/branches_{i}/block/{name}": name for i in range(4) for name in ("fc6", "fc7")
}
DENSE_AS_CONVOLUTIONS = {
    "deconvnet": {"neck/parts_0/conv1": "fc6", "neck/parts_1/conv1": "fc7"},
    "deeplab_largefov": _FC6_FC7,
    "deeplab_v2": _IN_BRANCHES,
    "fcn16s": _FC6_FC7,
    "fcn32s": _FC6_FC7,
    "fcn8s": _FC6_FC7,
    "fcn8s_atonce": _FC6_FC7,
}
"""Convolutions of our models that correspond to dense layers of the classifier."""

SUBSAMPLED = ("deeplab_largefov", "deeplab_v2")
"""Models whose convolutions have only some of the taps and units of the dense layers."""

_FCN8S_UPSCORES = ("upscore2", "upscore_pool4", "upscore8")
FCN_UPSCORES = {
    "fcn32s": ("upscore",),
    "fcn16s": ("upscore2", "upscore16"),
    "fcn8s": _FCN8S_UPSCORES,
    "fcn8s_atonce": _FCN8S_UPSCORES,
}
"""The upsampling layers of the published FCNs, from coarse to fine. The last one is
fixed in our models."""
