"""What each paper's file decides: rates, crops, starts, names, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import create_model
from jaxseg.models.heads import ASPP
from jaxseg.models.layers import Dropout
from jaxseg.models.unet import valid_size
from jaxseg.weights.mapping import IMAGENET, Mapping
from jaxseg.weights.torch_modules import COUNTERS, find_by_module, prefixed
from tests.helpers import init_variables

VGG = dict(widths=(4, 4, 4, 4, 4), depths=(1, 1, 1, 1, 1))
FCN = dict(encoder_kwargs=VGG, hidden=8, dropout=0.0)


def _params(model, size=(33, 47)):
    image = jnp.zeros((1, *size, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))[
        "params"
    ]


def test_aspp_equals_torchvision(torchvision, assert_equals_torch):
    """On a map that is larger than its largest rate, where rates matter."""
    reference = torchvision.models.segmentation.deeplabv3.ASPP(3, (12, 24, 36), 8)
    point = {"conv1": "0", "bn1": "1"}
    modules = prefixed("pooled/", "convs.4.", {"conv1": "1", "bn1": "2"})
    modules |= prefixed("project/", "project.", point)
    for i, branch in enumerate(("point", "atrous1", "atrous2", "atrous3")):
        modules |= prefixed(f"{branch}/", f"convs.{i}.", point)
    mapping = Mapping("ASPP", find_by_module(modules), IMAGENET, ignored=COUNTERS)
    assert_equals_torch(ASPP((12, 24, 36), 8), reference, mapping, 43)


def test_rates_are_in_proportion_to_the_output_stride():
    for name in ("deeplab_v3", "deeplab_v3plus"):
        for stride, rates in ((16, (6, 12, 18)), (8, (12, 24, 36))):
            model = create_model(name, 21, output_stride=stride)
            assert model.neck.rates == rates
            assert model.encoder.output_stride == stride
            assert model.encoder.multi_grid == (1, 2, 4)
            small = create_model(name, 21, encoder="resnet18")
            assert small.encoder.multi_grid == (1, 2)  # a block has two
            assert model.encoder.dilate_first
    torchvision = create_model("deeplabv3_resnet50", 21)
    assert torchvision.neck.parts[0].rates == (12, 24, 36)
    assert torchvision.encoder.multi_grid is None
    assert not torchvision.encoder.dilate_first


def test_v3plus_has_one_skip_at_stride_4():
    image = jnp.zeros((1, 65, 81, 3))
    for kwargs in ({}, {"separable": True}, {"output_stride": 8}):
        model = create_model(
            "deeplab_v3plus",
            5,
            encoder_kwargs=dict(width=4, depths=(1, 1, 1, 1)),
            multi_grid=None,
            width=8,
            low_level=2,
            **kwargs,
        )

        def decode(model, image):
            features = model.encoder(image, train=False)
            x = model.neck(features.maps[-1], train=False)
            features = features.replace(maps=(*features.maps[:-1], x))
            return model.decoder(features, train=False)

        x, _ = jax.eval_shape(
            partial(model.init_with_output, method=decode), jax.random.key(0), image
        )
        assert x.shape == (1, 17, 21, 8)
    with pytest.raises(ValueError, match="cannot be dilated; use one of resnet101"):
        create_model("deeplab_v3", 5, encoder="vgg16")


def test_fcn_starts_from_zero_scores_and_then_learns():
    """At the first step the scores alone receive gradient; after it, everything."""
    model = create_model("fcn8s", 5, learned=True, **FCN)
    image = jax.random.normal(jax.random.key(1), (2, 33, 47, 3))

    @jax.jit
    def gradients(params):
        def loss(params):
            logits = model.apply({"params": params}, image, train=False)
            return jnp.mean(jnp.square(logits - jnp.arange(5.0).reshape(1, 1, 1, 5)))

        logits = model.apply({"params": params}, image, train=False)
        return jax.grad(loss)(params), logits

    params = init_variables(model, image)
    grads, logits = gradients(params["params"])
    assert not np.any(logits)
    moving = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if np.any(grad)
    }
    assert moving == {
        f"{name}/{leaf}"
        for name in ("neck/score", "decoder/skips_0/project", "decoder/skips_1/project")
        for leaf in ("kernel", "bias")
    }
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params["params"], grads)
    assert all(np.any(g) for g in jax.tree.leaves(gradients(moved)[0]))


def test_fcn_stages_share_their_names():
    """What 32s has, 16s has, and what 16s has, 8s has: so a stage starts another."""
    shapes = [
        jax.tree_util.tree_leaves_with_path(
            jax.tree.map(
                jnp.shape, _params(create_model(name, 5, **FCN)), is_leaf=None
            ),
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for name in ("fcn32s", "fcn16s", "fcn8s")
    ]
    coarse, middle, fine = (
        {jax.tree_util.keystr(path): shape for path, shape in tree} for tree in shapes
    )
    assert coarse.items() < middle.items() < fine.items()
    assert set(fine) - set(middle) == {
        f"['decoder']['skips_1']['project']['{leaf}']" for leaf in ("kernel", "bias")
    }


def test_fcn_takes_any_encoder_with_its_strides():
    for encoder, kwargs in (
        ("resnet18", dict(width=4, depths=(1, 1, 1, 1))),
        ("googlenet", dict(width=8)),
        ("convnext_tiny", dict(widths=(4, 4, 4, 4), depths=(1, 1, 1, 1))),
        ("alexnet", dict(widths=(4, 4, 4, 4, 4))),
    ):
        model = create_model(
            "fcn8s", 5, encoder=encoder, encoder_kwargs=kwargs, hidden=8
        )
        logits = jax.eval_shape(
            lambda model=model: model.init_with_output(
                jax.random.key(0), jnp.zeros((1, 33, 47, 3)), train=False
            )[0]
        )
        assert logits.shape == (1, 33, 47, 5)
    dilated = dict(encoder="resnet18", encoder_kwargs=dict(output_stride=8))
    assert create_model("fcn32s", 5, **dilated).head.strides == 8


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("fcn8s", dict(geometry="caffe"), '"same" or "released"'),
        ("fcn8s", dict(geometry="released", encoder="resnet50"), "known for vgg16"),
        ("fcn8s", dict(geometry="released", encoder="alexnet"), "with 2 skips"),
        ("fcn8s", dict(skips=1), "no argument 'skips'"),
        ("unet", dict(levels=1), "at least two"),
        ("unet", dict(skip="concta"), "did you mean 'concat'"),
        ("fc_resnet", dict(depths=(1, 0)), "at least one bottleneck"),
        ("deeplab_v3", dict(output_stride=4), "8, 16 or 32"),
        ("deeplab_v3", dict(encoder="resnet34", multi_grid=(1, 2)), "multi_grid"),
        ("deeplab_v3plus", dict(encoder="convnext_tiny"), "cannot be dilated"),
        ("deeplab_v2", dict(encoder="vgg16_bn"), "cannot be dilated"),
        ("fcn_resnet50", dict(encoder="mobilenet_v2"), "cannot be dilated"),
        ("deconvnet", dict(depth=1), "no argument 'depth'"),
        ("segnet", dict(width=0), "all at least 1"),
        ("encoder_decoder", dict(encoder_kwargs=dict(widths=(8, 16))), "one of each"),
    ],
)
def test_what_a_paper_cannot_have_is_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, 5, **kwargs)


@pytest.mark.parametrize("num_classes", [2.5, "11", True])
def test_classes_are_counted_in_whole_numbers(num_classes):
    with pytest.raises(ValueError, match="whole number"):
        create_model("unet", num_classes)


def test_an_image_needs_a_batch_axis():
    with pytest.raises(ValueError, match=r"must be \[B, H, W, C\], not \[33, 47"):
        jax.eval_shape(
            lambda: create_model("unet", 3).init(
                jax.random.key(0), jnp.zeros((33, 47, 3)), train=False
            )
        )


def test_dropout_is_a_share():
    with pytest.raises(ValueError, match=r"dropout=1.0"):
        Dropout(1.0)


def _trace(model, size, channels=3):
    return jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), jnp.zeros((1, *size, channels)), train=False
        )
    )


def test_valid_unet_says_what_it_takes_and_gives():
    assert valid_size(388) == (572, 388)
    assert valid_size(1) == (188, 4)
    assert valid_size(389) == (588, 404)
    for k in range(8, 40):
        assert valid_size(16 * k - 124 - 15) == (16 * k + 60, 16 * k - 124)
    model = create_model("unet_valid", 2, width=2)
    assert _trace(model, (188, 572))[0].shape == (1, 4, 388, 2)
    with pytest.raises(
        ValueError, match=r"width of 188, 204, .* not 571.* 572 pixels.* 388"
    ):
        _trace(model, (572, 571))
    with pytest.raises(ValueError, match=r"height of 188, .* not 100"):
        _trace(model, (100, 572))


def test_deconvnet_says_the_least_size():
    model = create_model("deconvnet", 5, width=2, hidden=4)
    assert _trace(model, (193, 193))[0].shape == (1, 193, 193, 5)
    with pytest.raises(ValueError, match=r"at least 193x193 .* by 1 rows and 0 col"):
        _trace(model, (192, 193))


def test_images_with_other_channels_than_the_variables_are_refused():
    model = create_model("unet", 2, width=2, levels=2)
    _, variables = _trace(model, (33, 47), channels=1)
    with pytest.raises(ValueError, match="The image has 3 channels, but the variables"):
        jax.eval_shape(
            lambda v: model.apply(v, jnp.zeros((1, 33, 47, 3)), train=False), variables
        )


def test_encoder_addition_adds_each_level_behind_its_block(random_variables):
    """Without what the decoder's convolutions give, the finest map comes through."""
    model = create_model("segnet_basic_encoder_addition", 5, width=4)
    image = jax.random.uniform(jax.random.key(0), (1, 33, 47, 3), maxval=255.0)
    variables = random_variables(model, image)
    silent = jax.tree.map(jnp.zeros_like, variables["params"]["decoder"])
    stats = variables["batch_stats"]
    params = variables["params"] | {"decoder": silent}

    def decoded(model, image):
        features = model.encoder(image, train=False)
        return model.decoder(features, train=False), features.maps[0]

    x, finest = jax.jit(
        lambda: model.apply(
            {"params": params, "batch_stats": stats}, image, method=decoded
        )
    )()
    np.testing.assert_allclose(x, finest, rtol=1e-5)


def test_fcn_basic_starts_by_interpolating():
    """The mean of scores survives four 8x8 transposed convolutions of stride 2."""
    model = create_model("fcn_basic_no_addition", 5, width=4)
    image = jax.random.uniform(jax.random.key(0), (1, 64, 96, 3), maxval=255.0)
    variables = init_variables(model, image, seed=1)

    def scored(model, image):
        return model.neck(model.encoder(image, train=False).maps[-1], train=False)

    coarse, fine = jax.jit(
        lambda: (
            model.apply(variables, image, method=scored),
            model.apply(variables, image, train=False),
        )
    )()
    # Each value is spread over its 16x16 pixels; less is lost beyond the border.
    assert 0.6 < np.linalg.norm(fine) / (16 * np.linalg.norm(coarse)) < 1.01
