"""Classifiers: the published numbers of parameters, and what their heads refuse."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.classifier import (
    CLASSIFIERS,
    Classifier,
    DenseHead,
    PooledHead,
    create_classifier,
)
from jaxseg.models.encoders import ENCODERS, Features
from jaxseg.models.options import LayerOptions
from tests.helpers import init_variables


class _Through(nn.Module):
    """An encoder that has one level, the image."""

    @nn.compact
    def __call__(self, image, *, train):
        del train
        return Features((image,), (None,), (None,), (1,))


def _count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "num_classes", "side", "parameters", "encoder"),
    [
        ("alexnet", 1000, 227, 60_965_224, 2_334_080),
        # FCN's classes: its dense layers, made convolutions, hold as many.
        ("alexnet", 21, 227, 56_954_261, 2_334_080),
        ("alexnet_torchvision", 1000, 224, 61_100_840, 2_469_696),
        ("vgg16", 1000, 224, 138_357_544, 14_714_688),
        ("vgg16", 21, 224, 134_346_581, 14_714_688),
        ("vgg16_bn", 1000, 224, 138_365_992, 14_723_136),
        ("googlenet", 1000, 224, 6_998_552, 5_973_552),
        ("googlenet", 21, 224, 5_995_077, 5_973_552),
        ("googlenet_bn", 1000, 64, 6_624_904, 5_599_904),
        ("resnet18", 1000, 64, 11_689_512, 11_176_512),
        ("resnet34", 1000, 64, 21_797_672, 21_284_672),
        ("resnet50", 1000, 64, 25_557_032, 23_508_032),
        ("resnet101", 1000, 64, 44_549_160, 42_500_160),
        ("mobilenet_v2", 1000, 64, 3_504_872, 2_223_872),
        ("convnext_tiny", 1000, 64, 28_589_128, 27_818_592),
    ],
)
def test_parameter_counts(name, num_classes, side, parameters, encoder):
    model = create_classifier(name, num_classes)
    image = jnp.zeros((1, side, side, 3))
    params = jax.eval_shape(
        lambda: model.init(jax.random.key(0), image, train=False)["params"]
    )
    assert _count(params) == parameters
    assert _count(params["encoder"]) == encoder


def test_every_encoder_is_a_classifier():
    assert CLASSIFIERS.keys() == ENCODERS.keys()


def test_the_first_dense_layer_is_a_convolution_over_the_whole_map():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    head = DenseHead(5, side=3, hidden=())
    logits, variables = head.init_with_output(jax.random.key(1), x, train=False)
    kernel = variables["params"]["fc6"]["kernel"].reshape(3, 3, 4, 5)
    np.testing.assert_allclose(
        logits, jnp.einsum("bijc,ijck->bk", x, kernel), rtol=1e-4, atol=1e-5
    )


def test_heads_return_float32_and_drop_in_training_alone():
    x = jax.random.normal(jax.random.key(0), (2, 7, 7, 4))
    for head in (DenseHead(5, hidden=(16,)), PooledHead(5, dropout=0.5)):
        model = Classifier(_Through(), head.clone(options=LayerOptions("bfloat16")))
        variables = init_variables(model, x, seed=1)
        quiet = model.apply(variables, x, train=False)
        noisy = model.apply(
            variables, x, train=True, rngs={"dropout": jax.random.key(2)}
        )
        assert quiet.shape == (2, 5) and quiet.dtype == jnp.float32
        assert not np.allclose(quiet, noisy)


def test_dense_layers_refuse_other_sizes_of_image():
    model = create_classifier("vgg16", 10, widths=(2, 2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"7x7 cells, and .* has 8x7"):
        jax.eval_shape(
            lambda: model.init(
                jax.random.key(0), jnp.zeros((1, 256, 224, 3)), train=False
            )
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("resnet51",), "Known: alexnet, .*resnet50"), (("resnet50", 0), "at least 1")],
)
def test_unknown_classifiers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_classifier(*arguments)
