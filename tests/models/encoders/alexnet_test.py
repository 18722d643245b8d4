"""AlexNet's two forms, and its published geometries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.classifier import create_classifier
from jaxseg.models.encoders import alexnet
from jaxseg.weights.torchvision import mappings


def test_equals_torchvision(torchvision, assert_equals_torch):
    reference = torchvision.models.alexnet()
    model = create_classifier("alexnet_torchvision")
    (mapping,) = mappings({"name": "classifier", "encoder": "alexnet_torchvision"})
    assert_equals_torch(model, reference, mapping, 224)


def _sizes(encoder, size):
    init = encoder.init_with_output
    features, _ = jax.eval_shape(
        lambda: init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
    )
    return [height for height, _ in features.sizes]


@pytest.mark.parametrize(
    ("first_padding", "size", "sizes"),
    [
        (100, 500, [173, 86, 43, 21]),  # FCN-AlexNet
        (0, 227, [55, 27, 13, 6]),  # CaffeNet
        (2, 224, [55, 27, 13, 6]),  # torchvision
    ],
)
def test_published_sizes(first_padding, size, sizes):
    encoder = alexnet(
        widths=(2, 2, 2, 2, 2), first_padding=first_padding, round_up=False
    )
    assert _sizes(encoder, size) == sizes


def test_equals_caffenet_in_pytorch(random_variables):
    """Groups, and the normalization after the poolings, at FCN's padding."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    encoder = alexnet(widths=(4, 6, 8, 4, 6), first_padding=100, round_up=False)
    image = 255 * jax.random.uniform(jax.random.key(1), (2, 41, 60, 3))
    variables = random_variables(encoder, image)
    features = jax.jit(lambda v, x: encoder.apply(v, x, train=False))(variables, image)

    def conv(x, path, **kwargs):
        stage, name = path.split("/")
        layer = variables["params"][stage][name]
        kernel = torch.tensor(layer["kernel"].transpose(3, 2, 0, 1))
        return f.relu(f.conv2d(x, kernel, torch.tensor(layer["bias"]), **kwargs))

    def pool(x):
        return f.max_pool2d(x, 3, 2, ceil_mode=True)

    def normalize(x):
        return f.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    x = torch.tensor(np.array(image).transpose(0, 3, 1, 2))
    x1 = conv(x, "stage1/conv1", stride=4, padding=100)
    x2 = conv(normalize(pool(x1)), "stage2/conv1", padding=2, groups=2)
    x3 = conv(normalize(pool(x2)), "stage3/conv1", padding=1)
    x3 = conv(x3, "stage3/conv2", padding=1, groups=2)
    x3 = conv(x3, "stage3/conv3", padding=1, groups=2)
    for ours, theirs in zip(features.maps, (x1, x2, x3, pool(x3)), strict=True):
        theirs = theirs.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.max())
