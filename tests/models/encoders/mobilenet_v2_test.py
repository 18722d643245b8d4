"""MobileNetV2 against torchvision's."""

import re

from jaxseg.models.classifier import create_classifier

DEPTHS = (1, 2, 3, 4, 3, 3, 1)
INSIDE = ("expand", "depthwise", "project")


def _rename(name):
    if name == "classifier.1":
        return "head/fc"
    outer = {"features.0": "stem", "features.18": "last"}
    place, _, part = name.rpartition(".")
    if place in outer:
        return f"encoder/{outer[place]}/{('conv', 'bn')[int(part)]}"
    index, inner = re.fullmatch(r"features\.(\d+)\.conv\.(.+)", name).groups()
    block, stage = int(index), 1
    while block > DEPTHS[stage - 1]:
        block, stage = block - DEPTHS[stage - 1], stage + 1
    # The first block has no expanding convolution.
    layers = ["depthwise", "project"] if index == "1" else list(INSIDE)
    *activated, linear = layers
    names = {f"{len(activated)}": f"{linear}/conv", f"{len(layers)}": f"{linear}/bn"}
    for i, layer in enumerate(activated):
        names |= {f"{i}.0": f"{layer}/conv", f"{i}.1": f"{layer}/bn"}
    return f"encoder/stage{stage}/block{block}/{names[inner]}"


def test_equals_torchvision(torchvision, assert_equals_torch):
    import torch

    reference = torchvision.models.mobilenet_v2()
    for layer in reference.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.groups > 1:
            # Large enough for ReLU6 to cut off.
            torch.nn.init.normal_(layer.weight, std=0.4)
    assert_equals_torch(create_classifier("mobilenet_v2"), reference, _rename, 64)
