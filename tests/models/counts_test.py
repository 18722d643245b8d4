"""Numbers of parameters, as published or counted from the authors' own files."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg.models import create_model


def _params(model, channels=3, size=(64, 64)):
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda k, x: model.init(k, x, train=False), key, image)[
        "params"
    ]


def _count(params):
    return sum(x.size for x in jax.tree.leaves(params))


R101 = dict(encoder="resnet101")
WIDE = dict(kernel=4, dilation=4, hidden=4096)


@pytest.mark.parametrize(
    ("name", "num_classes", "kwargs", "parameters"),
    [
        ("fcn32s", 21, dict(encoder="alexnet"), 56_954_261),
        ("fcn32s", 21, dict(encoder="alexnet", geometry="released"), 56_954_261),
        ("fcn32s", 21, dict(encoder="googlenet"), 5_995_077),
        ("fcn32s", 21, dict(), 134_346_581),
        ("fcn16s", 21, dict(), 134_357_354),
        ("fcn8s", 21, dict(), 134_362_751),
        ("fcn8s", 21, dict(geometry="released"), 134_362_751),
        ("fcn8s_atonce", 21, dict(), 134_362_751),
        ("fcn8s", 11, dict(), 134_314_081),
        ("fcn8s", 12, dict(), 134_318_948),
        # Two dense 4x4 kernels across 21 classes more, as Caffe stores them.
        ("fcn8s", 21, dict(learned=True), 134_362_751 + 2 * 4 * 4 * 21 * 21),
        ("deconvnet", 21, dict(), 251_805_653),
        ("deeplab_largefov", 21, dict(), 20_505_429),
        ("deeplab_largefov", 11, dict(), 20_495_179),
        ("deeplab_largefov", 21, WIDE, 65_140_565),
        ("deeplab_largefov", 21, WIDE | dict(kernel=7), 134_346_581),
        ("deeplab_v2", 21, dict(encoder="vgg16"), 37_877_652),
        ("deeplab_v2", 21, dict(), 44_048_532),
        ("deeplab_v3", 21, dict(), 39_048_533),
        ("deeplab_v3", 21, R101, 58_040_661),
        ("deeplab_v3plus", 21, dict(), 40_352_181),
        ("deeplab_v3plus", 21, R101, 59_344_309),
        ("deeplabv3_resnet50", 21, dict(), 39_638_869),
        ("deeplabv3_resnet50", 21, dict(aux_weight=0.5), 42_004_074),
        ("deeplabv3_resnet50", 21, R101, 58_630_997),
        ("deeplabv3_resnet50", 21, R101 | dict(aux_weight=0.5), 60_996_202),
        ("fcn_resnet50", 21, dict(), 32_957_013),
        ("fcn_resnet50", 21, dict(aux_weight=0.5), 35_322_218),
        ("fcn_resnet50", 21, R101, 51_949_141),
        ("fcn_resnet50", 21, R101 | dict(aux_weight=0.5), 54_314_346),
    ],
)
def test_parameter_counts(name, num_classes, kwargs, parameters):
    size = (193, 193) if name == "deconvnet" else (64, 64)
    assert _count(_params(create_model(name, num_classes, **kwargs), 3, size)) == (
        parameters
    )


@pytest.mark.parametrize(
    ("channels", "num_classes", "parameters"),
    [
        (1, 2, 31_030_658),
        (1, 1, 31_030_593),
        (3, 11, 31_032_395),
        (3, 12, 31_032_460),
        (3, 21, 31_033_045),
    ],
)
def test_unet(channels, num_classes, parameters):
    assert _count(_params(create_model("unet", num_classes), channels)) == parameters


def test_unet_in_other_forms():
    released = create_model("unet", 2, release=True)
    assert _count(_params(released, 1)) == 31_100_354
    valid = create_model("unet_valid", 2)
    assert _count(_params(valid, 1, (572, 572))) == 31_030_658


def test_fc_resnet():
    assert _count(_params(create_model("fc_resnet", 1), 1)) == 11_470_369


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("bilinear_interpolation", 612_224),
        ("segnet_basic", 1_415_040),
        ("segnet_basic_encoder_addition", 1_415_040),
        ("segnet_basic_single_channel", 624_768),
        ("fcn_basic", 645_312),
        ("fcn_basic_no_addition", 643_200),
        ("fcn_basic_no_dim_reduction", 1_660_800),
        ("fcn_basic_no_addition_no_dim_reduction", 1_660_800),
    ],
)
def test_decoder_variants_of_segnet_basic(name, weights):
    """Kernels alone: the paper's column leaves out biases and BatchNorm."""
    params = _params(create_model(name, 11))
    assert _count([x for x in jax.tree.leaves(params) if x.ndim == 4]) == weights
