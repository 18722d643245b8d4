"""ResNet against torchvision's, dilated too, and the two rules of dilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.classifier import Classifier, PooledHead, create_classifier
from jaxseg.models.encoders import resnet18, resnet50
from jaxseg.weights.torchvision import mappings


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_equals_torchvision(torchvision, assert_equals_torch, name):
    reference = getattr(torchvision.models, name)()
    (mapping,) = mappings({"name": "classifier", "encoder": name})
    assert_equals_torch(create_classifier(name), reference, mapping, 64)


@pytest.mark.parametrize(
    ("output_stride", "replace"), [(16, (False, False, True)), (8, (False, True, True))]
)
def test_dilated_equals_torchvision(
    torchvision, assert_equals_torch, output_stride, replace
):
    reference = torchvision.models.resnet50(
        replace_stride_with_dilation=replace, num_classes=10
    )
    model = Classifier(resnet50(output_stride=output_stride), PooledHead(10))
    (mapping,) = mappings({"name": "classifier", "encoder": "resnet50"})
    assert_equals_torch(model, reference, mapping, 64)


def _dilations(encoder, image):
    """The dilation of every 3x3 convolution from stage 3 on, as the program has it."""
    jaxpr = jax.make_jaxpr(
        lambda: encoder.init_with_output(jax.random.key(0), image, train=False)[0]
    )()
    convs = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    return [
        e.params["rhs_dilation"][0]
        for e in convs
        if e.invars[1].aval.shape[0] == 3 and e.invars[1].aval.shape[3] >= 4 * 4
    ]


@pytest.mark.parametrize(
    ("kwargs", "dilations"),
    [
        (dict(), [1] * 6 + [1] * 3),
        (dict(output_stride=16), [1] * 6 + [1, 2, 2]),
        (dict(output_stride=8), [1, 2, 2, 2, 2, 2] + [2, 4, 4]),
        (dict(output_stride=16, dilate_first=True), [1] * 6 + [2] * 3),
        (dict(output_stride=8, dilate_first=True), [2] * 6 + [4] * 3),
        (
            dict(output_stride=16, dilate_first=True, multi_grid=(1, 2, 4)),
            [1] * 6 + [2, 4, 8],
        ),
    ],
)
def test_dilations(kwargs, dilations):
    encoder = resnet50(width=4, **kwargs)
    assert _dilations(encoder, jnp.zeros((1, 33, 33, 3))) == dilations


@pytest.mark.parametrize(
    ("output_stride", "strides", "merged"),
    [
        (32, (2, 4, 8, 16, 32), (2, 4, 8, 16, 32)),
        (16, (2, 4, 8, 16, 16), (2, 4, 8, 16)),
        (8, (2, 4, 8, 8, 8), (2, 4, 8)),
    ],
)
def test_levels_that_share_a_stride_merge(
    random_variables, output_stride, strides, merged
):
    encoder = resnet18(width=2, output_stride=output_stride)
    image = jnp.ones((1, 33, 47, 3))
    variables = random_variables(encoder, image)
    features = jax.jit(lambda v, x: encoder.apply(v, x, train=False))(variables, image)
    assert features.strides == strides
    assert features.sizes == tuple((-(-33 // s), -(-47 // s)) for s in strides)
    fewer = features.merged()
    assert fewer.strides == merged
    assert fewer.sizes == tuple((-(-33 // s), -(-47 // s)) for s in merged)
    np.testing.assert_array_equal(fewer.maps[-1], features.maps[-1])
    np.testing.assert_array_equal(fewer.places[1], features.places[1])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(output_stride=4), "use 8, 16 or 32"),
        (dict(multi_grid=(1, 2)), "2 factors, but .* 3 blocks"),
    ],
)
def test_impossible_dilations_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        resnet50(**kwargs)
