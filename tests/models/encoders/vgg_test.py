"""VGG16 against torchvision's, narrow: all its layers, an eighth of its weights."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg.models.classifier import Classifier, DenseHead
from jaxseg.models.encoders import vgg16, vgg16_bn


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

    names = {f"classifier.{3 * i}": f"head/fc{6 + i}" for i in range(3)}
    stage = index = 1
    for i, layer in enumerate(layers):
        kind = type(layer).__name__
        if kind == "MaxPool2d":
            stage, index = stage + 1, 0
        elif kind == "Conv2d":
            names[f"features.{i}"] = f"encoder/stage{stage}/conv{index}"
        elif kind == "BatchNorm2d":
            names[f"features.{i}"] = f"encoder/stage{stage}/bn{index}"
        index += kind in ("MaxPool2d", "ReLU")

    encoder = (vgg16_bn if norm else vgg16)(widths=(8, 16, 32, 64, 64))
    model = Classifier(encoder, DenseHead(10, hidden=(32, 24)))
    assert_equals_torch(model, reference, names.__getitem__, 224, side=7)


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
