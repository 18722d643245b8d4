"""Where our models keep what comes from classifiers."""

FIXED_ENCODERS = {
    "deconvnet": "vgg16_bn",
    "deeplab_largefov": "vgg16",
    "segnet": "vgg16_bn",
}
"""Of models that have no choice of it."""

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
"""Where models have the classifier's dense layers, if it has any."""

SUBSAMPLED = ("deeplab_largefov", "deeplab_v2")
"""Models that have only a part of these layers' taps and units."""
