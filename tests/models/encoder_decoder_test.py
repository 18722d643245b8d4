"""The grid of encoders, skips and upsamplers, and what cannot be combined."""

from functools import lru_cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import (
    create_model,
    list_blocks,
    list_encoders,
    list_skips,
    list_upsamplers,
)
from jaxseg.models.blocks import BLOCKS, ConvBlock
from jaxseg.models.components import max_pooling_encoders
from jaxseg.models.decoder import Decoder
from jaxseg.models.encoders import Features
from jaxseg.models.options import LayerOptions
from jaxseg.models.skips import SKIPS, Concat
from jaxseg.models.upsamplers import UPSAMPLERS, Bilinear, Transposed
from jaxseg.ops.pooling import max_pool_argmax
from tests.helpers import init_variables

RESNET = dict(width=4, depths=(1, 1, 1, 1))
VGG = dict(widths=(4, 4, 4, 4, 8), depths=(1, 1, 1, 1, 1))
NARROW = {
    "alexnet": dict(widths=(4, 4, 8, 4, 4)),
    "alexnet_torchvision": dict(widths=(4, 4, 8, 4, 4)),
    "convnext_tiny": dict(widths=(4, 8, 8, 8), depths=(1, 1, 1, 1)),
    "googlenet": dict(width=8),
    "googlenet_bn": dict(width=8),
    "mobilenet_v2": dict(widths=(4, 4, 4, 4, 4, 4, 4, 8, 8)),
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET | dict(output_stride=8),
    "segnet_basic": dict(widths=(4, 4, 4, 4)),
    "unet": VGG,
    "vgg16": VGG,
    "vgg16_bn": VGG,
}
MAX_POOLING = {
    "alexnet",
    "alexnet_torchvision",
    "googlenet",
    "googlenet_bn",
    "segnet_basic",
    "unet",
    "vgg16",
    "vgg16_bn",
}


def test_every_encoder_is_in_the_grid():
    assert NARROW.keys() == set(list_encoders())


def test_the_encoders_that_can_unpool_are_found():
    assert set(max_pooling_encoders()) == MAX_POOLING


@lru_cache
def _levels(encoder):
    """The shapes of an encoder's levels, traced once for all of its combinations."""
    model = create_model("encoder_decoder", 5, encoder=encoder, **_kwargs(encoder))
    image = jnp.zeros((2, 33, 47, 3))
    return jax.eval_shape(
        lambda: model.encoder.init_with_output(jax.random.key(0), image, train=False)[0]
    )


def _kwargs(encoder):
    return dict(encoder_kwargs=NARROW[encoder], depth=1)


@pytest.mark.parametrize("encoder", NARROW)
@pytest.mark.parametrize("skip", list_skips())
@pytest.mark.parametrize("upsampler", list_upsamplers())
def test_grid(encoder, skip, upsampler):
    """Each combination climbs to its encoder's finest level, or is refused."""
    build = partial(
        create_model,
        "encoder_decoder",
        5,
        encoder=encoder,
        skip=skip,
        upsampler=upsampler,
        **_kwargs(encoder),
    )
    if upsampler == "unpool" and encoder not in MAX_POOLING:
        with pytest.raises(ValueError, match="max-pools at every level"):
            build()
        return
    model, features = build(), _levels(encoder)
    x = jax.eval_shape(
        lambda features: model.decoder.init_with_output(
            jax.random.key(0), features, train=False
        )[0],
        features,
    )
    assert x.shape == (2, *features.sizes[0], features.maps[0].shape[-1])


@pytest.fixture(scope="module")
def features():
    """Three levels of odd sizes, as an encoder that max-pools gives them."""
    maps, places = [], [None]
    x = jax.random.normal(jax.random.key(0), (2, 9, 11, 6))
    for channels in (4, 6, 3):
        maps.append(x)
        x, place = max_pool_argmax(x)
        places.append(place)
        x = jnp.tile(x, channels)[..., : channels * 2]
    maps[2] = maps[2][..., :5]
    return Features(tuple(maps), (None,) * 3, (None, places[1], places[2]), (1, 2, 4))


def _gradients(decoder, features):
    variables = init_variables(decoder, features, seed=1)

    def loss(params, maps):
        x, _ = decoder.apply(
            variables | {"params": params},
            features.replace(maps=maps),
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean(jnp.square(x - 1))

    return jax.grad(loss, argnums=(0, 1))(variables.get("params", {}), features.maps)


@pytest.mark.parametrize("skip", list_skips())
@pytest.mark.parametrize("upsampler", list_upsamplers())
def test_every_parameter_and_every_skip_receives_gradient(features, skip, upsampler):
    decoder = Decoder(
        upsamplers=tuple(UPSAMPLERS[upsampler](features=3) for _ in range(2)),
        skips=tuple(SKIPS[skip]() for _ in range(2)),
        blocks=tuple(ConvBlock((3,)) for _ in range(2)),
    )
    params, maps = jax.jit(partial(_gradients, decoder))(features)
    for path, grad in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        # A bias before BatchNorm is subtracted again with the mean.
        if not path.endswith("conv1/bias"):
            assert np.any(np.abs(grad) > 1e-8), path
    assert np.any(maps[2] != 0)
    for level in (0, 1):
        assert np.any(maps[level] != 0) == (skip != "none")


@pytest.mark.parametrize("name", list_blocks())
def test_blocks(features, name):
    """Each gives the channels it is told, at the same size, with gradient to all."""
    block = BLOCKS[name](features=(4, 7))
    x = features.maps[0]
    variables = init_variables(block, x, seed=1)

    def loss(params):
        y, _ = block.apply(
            variables | {"params": params}, x, train=True, mutable=["batch_stats"]
        )
        assert y.shape == (*x.shape[:3], 7)
        return jnp.mean(jnp.square(y - 1))

    for path, grad in jax.tree_util.tree_leaves_with_path(
        jax.jit(jax.grad(loss))(variables["params"])
    ):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if name == "plain" or "conv" not in path or "bias" not in path:
            assert np.any(grad != 0), path


def test_residual_block_starts_from_its_input(features):
    """Without its convolutions, what is left is the input, activated."""
    x = features.maps[0]
    block = BLOCKS["residual"](features=(5, 6), norm=None)
    variables = init_variables(block, x, seed=1)
    nothing = jax.tree.map(jnp.zeros_like, variables)
    np.testing.assert_array_equal(block.apply(nothing, x, train=False), nn.relu(x))
    wider = BLOCKS["residual"](features=(5, 7), norm=None)
    assert "shortcut" in wider.init(jax.random.key(1), x, train=False)["params"]


def _shapes(model, size=(33, 47)):
    image = jnp.zeros((1, *size, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))


class Doubled(nn.Module):
    """An upsampler of somebody else's."""

    features: int
    options: LayerOptions

    def __call__(self, x, places, size):
        del places
        return 2 * Bilinear()(x, None, size)


def test_components_may_be_objects():
    """A class, a partial of one or a module: none of them registered anywhere."""
    build = partial(create_model, "encoder_decoder", 5, **_kwargs("vgg16"))
    wide = build(upsampler=partial(Transposed, kernel=8), skip=Concat)
    kernel = _shapes(wide)["params"]["decoder"]["upsamplers_1"]["conv"]["kernel"]
    assert kernel.shape == (8, 8, 8, 4)
    assert isinstance(build(upsampler=Doubled).decoder.upsamplers[0], Doubled)
    own = build(upsampler=Bilinear(align_corners=True), block=ConvBlock((3,), kernel=5))
    params = _shapes(own)["params"]["decoder"]
    # Each level has a copy of its own.
    assert {f"blocks_{i}" for i in range(5)} <= params.keys()
    encoder = build().encoder
    model = create_model("encoder_decoder", 5, encoder=encoder, depth=1)
    assert len(model.decoder.blocks) == 5


def test_default_widths_are_the_encoders_within_bounds():
    model = create_model("encoder_decoder", 5, encoder="resnet50")
    widths = [block.features for block in model.decoder.blocks]
    assert widths == [(256, 256), (256, 256), (256, 256), (64, 64)]
    told = create_model("encoder_decoder", 5, encoder="resnet50", widths=(8, 4, 4, 2))
    assert [b.features[0] for b in told.decoder.blocks] == [8, 4, 4, 2]


def test_the_image_can_be_a_level_without_a_skip():
    model = create_model(
        "encoder_decoder",
        5,
        encoder="resnet18",
        encoder_kwargs=RESNET,
        image_level=True,
        head_kernel=3,
    )
    assert [block.features[0] for block in model.decoder.blocks] == [16, 8, 4, 4, 4]
    variables = _shapes(model)
    assert variables["params"]["decoder"]["blocks_4"]["conv1"]["kernel"].shape[2] == 4
    assert variables["params"]["head"]["kernel"].shape == (3, 3, 4, 5)
    _, seen = jax.eval_shape(
        lambda v: model.apply(
            v, jnp.zeros((1, 33, 47, 3)), train=False, capture_intermediates=True
        ),
        variables,
    )
    (finest,) = seen["intermediates"]["decoder"]["blocks_4"]["__call__"]
    assert finest.shape == (1, 33, 47, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(encoder="resnet51"), "Unknown encoder 'resnet51'; did you mean"),
        (dict(skip="sums"), "did you mean 'sum'. Known: concat, gated, none, sum"),
        (dict(upsampler="x"), "Unknown upsampler 'x'. Known: bilinear, "),
        (dict(block="residul"), "did you mean 'residual'"),
        (dict(widths=(4, 4)), "needs 5 positive widths"),
        (dict(widths=(4, 4, 4, 4, 0)), "5 positive widths"),
        (dict(image_level=True), "already has one"),
        (dict(encoder="resnet18", upsampler="unpool"), "not at stride 8, 16, 32"),
        (
            dict(upsampler="transposed", upsampler_kwargs=dict(strides=4)),
            "enlarges maps 4 times, .* differ by factors of 2. Set",
        ),
        (dict(skip_kwargs=dict(scales=1)), "The skip cannot be built: .*scales"),
        (dict(encoder_kwargs=dict(remat=True)), "which the whole network shares"),
        (dict(skpi="sum"), "did you mean 'skip'"),
    ],
)
def test_what_cannot_be_built_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("encoder_decoder", 5, **kwargs)


def test_kwargs_may_come_from_json_where_tuples_are_lists():
    model = create_model(
        "encoder_decoder",
        3,
        encoder_kwargs={"widths": [2, 2], "depths": [1, 1]},
        widths=[2, 2],
    )
    same = create_model(
        "encoder_decoder",
        3,
        encoder_kwargs={"widths": (2, 2), "depths": (1, 1)},
        widths=(2, 2),
    )
    assert hash(model.encoder) == hash(same.encoder)


class Deepest(nn.Module):
    """A decoder that ignores all levels but the deepest."""

    channels: int
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, features, *, train):
        del train
        return nn.Conv(self.channels, (1, 1))(features.maps[-1])


def test_a_decoder_and_a_head_of_ones_own():
    """They are called with the encoder's levels and the classes, and replace ours."""
    seen = []

    def decoder(features, options, factor):
        seen.append(features.strides)
        return Deepest(factor * features.maps[-1].shape[-1], options)

    model = create_model(
        "encoder_decoder",
        5,
        encoder="resnet18",
        decoder=decoder,
        decoder_kwargs={"factor": 3},
        head=lambda num_classes, options: nn.Conv(num_classes, (1, 1), use_bias=False),
        **_kwargs("resnet18"),
    )
    image = jnp.zeros((1, 33, 47, 3))
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), image, train=False)
    )
    assert logits.shape == (1, 33, 47, 5)
    assert seen == [(2, 4, 8, 16, 32)]
    deepest = _levels("resnet18").maps[-1].shape[-1]
    params = variables["params"]
    assert params["decoder"]["Conv_0"]["kernel"].shape == (1, 1, deepest, 3 * deepest)
    assert params["head"].keys() == {"kernel"}
    with pytest.raises(ValueError, match="Unknown decoder 'fpn'"):
        create_model("encoder_decoder", 5, encoder="segnet_basic", decoder="fpn")
