"""What every encoder must do: sizes, places, gradients, precision, batches in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.encoders import ENCODERS
from jaxseg.models.options import LayerOptions
from jaxseg.ops.pooling import places_to_indices

RESNET = dict(width=4, depths=(1, 2, 1, 1))
NARROW = {
    "alexnet": dict(widths=(4, 4, 8, 4, 4)),
    "alexnet_torchvision": dict(widths=(4, 4, 8, 4, 4)),
    "convnext_tiny": dict(widths=(4, 8, 8, 8), depths=(1, 1, 2, 1)),
    "googlenet": dict(width=8),
    "googlenet_bn": dict(width=8),
    "mobilenet_v2": dict(widths=(4, 4, 4, 4, 4, 4, 4, 8, 8)),
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "segnet_basic": dict(widths=(4, 4, 4, 4)),
    "unet": dict(widths=(4, 4, 4, 4, 8)),
    "vgg16": dict(widths=(4, 4, 4, 4, 8)),
    "vgg16_bn": dict(widths=(4, 4, 4, 4, 8)),
}
# One of each structure, for what has to be compiled.
KINDS = (
    "alexnet",
    "convnext_tiny",
    "googlenet_bn",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "unet",
)


def test_every_encoder_is_tested():
    assert NARROW.keys() == ENCODERS.keys()


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", [(33, 47), (64, 96), (1, 35)])
def test_every_level_rounds_up(name, size):
    encoder = _build(name, dtype=jnp.bfloat16)
    features, variables = jax.eval_shape(
        lambda: encoder.init_with_output(
            jax.random.key(0), jnp.zeros((2, *size, 3)), train=False
        )
    )
    first = {"unet": 1, "segnet_basic": 1, "vgg16": 1, "vgg16_bn": 1}
    first |= {"alexnet": 4, "alexnet_torchvision": 4, "convnext_tiny": 4}
    levels = len(features.maps)
    assert features.strides == tuple(first.get(name, 2) * 2**i for i in range(levels))
    assert features.sizes == tuple(
        tuple(-(-n // stride) for n in size) for stride in features.strides
    )
    assert len(features.pooled) == len(features.places) == levels
    for level in range(levels):
        pooled, places = features.pooled[level], features.places[level]
        assert (pooled is None) == (places is None)
        if pooled is not None:
            assert pooled.shape[1:3] == features.sizes[level]
            assert pooled.shape[3] == features.maps[level - 1].shape[3]
            assert places.shape == pooled.shape
    assert {x.dtype for x in features.maps} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def _build(name, **options):
    return ENCODERS[name](**NARROW[name], options=LayerOptions(**options))


def _evaluate(encoder, variables, image):
    return jax.jit(lambda v, x: encoder.apply(v, x, train=False))(variables, image)


@pytest.fixture(scope="module", params=KINDS)
def narrow(request, random_variables):
    """Name of an encoder, its variables, an image of odd sizes and its features."""
    image = 10 * jax.random.normal(jax.random.key(1), (4, 33, 47, 3))
    encoder = _build(request.param)
    variables = random_variables(encoder, image)
    return request.param, variables, image, _evaluate(encoder, variables, image)


def test_places_tell_where_the_maxima_stood(narrow):
    *_, features = narrow
    for level in range(1, len(features.maps)):
        places, above = features.places[level], features.maps[level - 1]
        if places is None:
            continue
        if places.dtype == jnp.uint8:
            places = places_to_indices(places, above.shape[1:3])
        flat = above.reshape(4, -1, above.shape[3])
        found = jnp.take_along_axis(flat, places.reshape(4, -1, flat.shape[2]), axis=1)
        np.testing.assert_array_equal(
            found.reshape(places.shape), features.pooled[level]
        )


def _loss(encoder, variables, image):
    def loss(params):
        features, _ = encoder.apply(
            variables | {"params": params},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )
        return jnp.mean(jnp.square(features.maps[-1] - 1))

    return loss


def test_every_parameter_receives_gradient(narrow):
    name, variables, image, _ = narrow
    gradient = jax.jit(jax.grad(_loss(_build(name), variables, image)))
    for path, value in jax.tree_util.tree_leaves_with_path(
        gradient(variables["params"])
    ):
        assert np.any(value != 0), f"{name}: {jax.tree_util.keystr(path)}"


def test_remat_covers_every_convolution(narrow):
    """All the work of the forward pass lies in stages that are computed again."""
    name, variables, image, _ = narrow

    def convolutions(remat):
        loss = _loss(_build(name, remat=remat), variables, image)
        outside = jax.make_jaxpr(loss)(variables["params"]).eqns
        return sum(e.primitive.name == "conv_general_dilated" for e in outside)

    assert convolutions(remat=False) > 0
    assert convolutions(remat=True) == 0


def test_remat_changes_nothing(random_variables):
    image = jax.random.normal(jax.random.key(1), (2, 33, 47, 3))
    variables = random_variables(_build("resnet18"), image)
    plain, remat = (
        jax.jit(jax.grad(_loss(_build("resnet18", remat=remat), variables, image)))
        for remat in (False, True)
    )
    params = variables["params"]
    for a, b in zip(jax.tree.leaves(plain(params)), jax.tree.leaves(remat(params))):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.max(np.abs(a)))


def test_bfloat16_stays_near_float32(narrow):
    name, variables, image, features = narrow
    rounded = _evaluate(_build(name, dtype=jnp.bfloat16), variables, image)
    for exact, near in zip(features.maps, rounded.maps):
        error = jnp.linalg.norm(exact - near.astype(jnp.float32))
        assert error < 0.1 * jnp.linalg.norm(exact)


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenet_v2", "resnet50", "unet"])
def test_a_batch_in_parts_is_one_batch(name, random_variables):
    """With an axis name, statistics and dropout are those of the whole batch."""
    image = jax.random.normal(jax.random.key(1), (4, 33, 33, 3))
    variables = random_variables(_build(name), image)

    def apply(encoder, image):
        features, _ = encoder.apply(
            variables,
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )
        return features.maps[-1]

    whole = jax.jit(lambda x: apply(_build(name), x))(image)
    part = jax.vmap(
        lambda x: apply(_build(name, axis_name="data"), x), axis_name="data"
    )
    parts = jax.jit(part)(image.reshape(2, 2, 33, 33, 3)).reshape(whole.shape)
    np.testing.assert_allclose(
        whole, parts, rtol=1e-3, atol=1e-4 * np.max(np.abs(whole))
    )
