"""GoogLeNet: torchvision's by its weights, BVLC's by a net written for the test."""

import jax
import numpy as np
import pytest

from jaxseg.models.classifier import create_classifier
from jaxseg.models.encoders import googlenet
from jaxseg.weights.torchvision import mappings


def test_equals_torchvision(torchvision, assert_equals_torch):
    reference = torchvision.models.googlenet(aux_logits=False, init_weights=False)
    (mapping,) = mappings({"name": "classifier", "encoder": "googlenet_bn"})
    assert_equals_torch(create_classifier("googlenet_bn"), reference, mapping, 64)


def test_equals_bvlc_in_pytorch(random_variables):
    """At sizes that the published geometry rounds down."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    encoder = googlenet(width=8, round_up=False)
    image = 255 * jax.random.uniform(jax.random.key(1), (2, 41, 61, 3))
    variables = random_variables(encoder, image)
    features = jax.jit(lambda v, x: encoder.apply(v, x, train=False))(variables, image)
    params = variables["params"]

    def conv(x, layer, **kwargs):
        kernel = torch.tensor(layer["conv"]["kernel"].transpose(3, 2, 0, 1))
        return f.relu(
            f.conv2d(x, kernel, torch.tensor(layer["conv"]["bias"]), **kwargs)
        )

    def pool(x):
        return f.max_pool2d(x, 3, 2, ceil_mode=True)

    def normalize(x):
        return f.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def inception(x, name):
        p = params[f"inception{name}"]
        return torch.cat(
            [
                conv(x, p["conv1x1"]),
                conv(conv(x, p["reduce3x3"]), p["conv3x3"], padding=1),
                conv(conv(x, p["reduce5x5"]), p["conv5x5"], padding=2),
                conv(f.max_pool2d(x, 3, 1, padding=1), p["project"]),
            ],
            dim=1,
        )

    x = torch.tensor(np.array(image).transpose(0, 3, 1, 2))
    x = conv(x, params["conv1"], stride=2, padding=3)
    maps = [x]
    x = conv(normalize(pool(x)), params["conv2_reduce"])
    maps.append(normalize(conv(x, params["conv2"], padding=1)))
    for names in (("3a", "3b"), ("4a", "4b", "4c", "4d", "4e"), ("5a", "5b")):
        x = pool(maps[-1])
        for name in names:
            x = inception(x, name)
        maps.append(x)
    for ours, theirs in zip(features.maps, maps, strict=True):
        theirs = theirs.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.max())
