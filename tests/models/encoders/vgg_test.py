"""VGG16 against torchvision's, narrow: all its layers, an eighth of its weights."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg.models.classifier import Classifier, DenseHead
from jaxseg.models.encoders import vgg16, vgg16_bn
from jaxseg.weights.torchvision import mappings


@pytest.mark.parametrize("norm", [False, True])
def test_equals_torchvision(torchvision, assert_equals_torch, norm):
    import torch

    plan = torchvision.models.vgg.cfgs["D"]
    plan = [n if n == "M" else n // 8 for n in plan]
    layers = torchvision.models.vgg.make_layers(plan, batch_norm=norm)
    reference = torchvision.models.VGG(layers, num_classes=10)
    reference.classifier[0] = torch.nn.Linear(64 * 7 * 7, 32)
    reference.classifier[3] = torch.nn.Linear(32, 24)
    reference.classifier[6] = torch.nn.Linear(24, 10)

    name, encoder = ("vgg16_bn", vgg16_bn) if norm else ("vgg16", vgg16)
    model = Classifier(
        encoder(widths=(8, 16, 32, 64, 64)), DenseHead(10, hidden=(32, 24))
    )
    (mapping,) = mappings({"name": "classifier", "encoder": name})
    assert_equals_torch(model, reference, mapping, 224)


def test_fcn_pads_the_first_convolution_by_100():
    encoder = vgg16(widths=(2, 2, 2, 2, 2), margin=99)
    features, _ = jax.eval_shape(
        lambda: encoder.init_with_output(
            jax.random.key(0), jnp.zeros((1, 500, 1, 3)), train=False
        )
    )
    rows, columns = zip(*features.sizes)
    assert rows == (698, 349, 175, 88, 44, 22)
    assert columns == (199, 100, 50, 25, 13, 7)
