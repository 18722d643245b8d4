"""MobileNetV2 against torchvision's."""

from jaxseg.models.classifier import create_classifier
from jaxseg.weights.torchvision import mappings


def test_equals_torchvision(torchvision, assert_equals_torch):
    import torch

    reference = torchvision.models.mobilenet_v2()
    for layer in reference.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.groups > 1:
            # Large enough for ReLU6 to cut off.
            torch.nn.init.normal_(layer.weight, std=0.4)
    (mapping,) = mappings({"name": "classifier", "encoder": "mobilenet_v2"})
    assert_equals_torch(create_classifier("mobilenet_v2"), reference, mapping, 64)
