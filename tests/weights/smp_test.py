"""SMP's Unet: the same weights, the same logits."""

import pytest

from jaxseg.models import create_model
from jaxseg.weights.smp import mappings


def test_unet_equals_smp(torchvision, assert_equals_torch):
    smp = pytest.importorskip("segmentation_models_pytorch")
    reference = smp.Unet("resnet18", encoder_weights=None, classes=3)
    (mapping,) = mappings({"name": "encoder_decoder", "encoder": "resnet18"})
    model = create_model("encoder_decoder", 3, encoder="resnet18", **mapping.kwargs)
    assert_equals_torch(model, reference, mapping, 64)


def test_other_models_have_no_mapping():
    assert mappings({"name": "encoder_decoder", "encoder": "vgg16_bn"}) == ()
    assert mappings({"name": "deeplab_v3plus", "encoder": "resnet50"}) == ()
