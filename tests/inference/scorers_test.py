"""Averages of scores against the same taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.inference import scorers
from jaxseg.models.unet import valid_size
from jaxseg.ops.image_normalization import Normalization
from jaxseg.ops.resize import resize_bilinear
from tests.helpers import init_variables

NORMALIZATION = Normalization((0.0,), (255.0,))
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (2, 12, 18, 3), np.uint8)
KERNEL = RNG.normal(size=(3, 3, 3, 4)).astype(np.float32)


def convolution(variables, image):
    """A scorer that sees one pixel around, and zeros around the image."""
    x = image.astype(jnp.float32) / 255 - 0.5
    return jax.lax.conv_general_dilated(
        x, variables, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def softmax(scores):
    return np.asarray(jax.nn.softmax(scores))


def test_views_average_probabilities():
    scorer = scorers.test_time_augmentation(convolution, scales=(1.0, 0.5), flip=True)
    small = resize_bilinear(IMAGE.astype(np.float32), (6, 9))
    expected = 0
    for view in (IMAGE.astype(np.float32), small):
        for turn in (slice(None), slice(None, None, -1)):
            scores = convolution(KERNEL, view[:, :, turn])[:, :, turn]
            expected += softmax(resize_bilinear(scores, (12, 18))) / 4
    np.testing.assert_allclose(softmax(scorer(KERNEL, IMAGE)), expected, atol=1e-6)


def test_a_mirrored_image_has_mirrored_views():
    scorer = scorers.test_time_augmentation(convolution, scales=(1.0,))
    straight = scorer(KERNEL, IMAGE)
    mirrored = scorer(KERNEL, IMAGE[:, :, ::-1])[:, :, ::-1]
    np.testing.assert_allclose(straight, mirrored, atol=1e-5)


@pytest.mark.parametrize("scales", [(), (1.0, 0.0)])
def test_views_need_scales(scales):
    with pytest.raises(ValueError, match="all positive"):
        scorers.test_time_augmentation(convolution, scales)


def test_tiles_give_the_whole_where_they_cover_the_receptive_field():
    scorer = scorers.tiles(convolution, (8, 8), overlap=0.3, margin=1)
    whole = jax.nn.log_softmax(convolution(KERNEL, IMAGE))
    np.testing.assert_allclose(scorer(KERNEL, IMAGE), whole, atol=1e-5)
    # Without the margin each tile sees zeros where the image goes on.
    off = scorers.tiles(convolution, (8, 8), overlap=0.3)(KERNEL, IMAGE)
    assert np.abs(off - whole).max() > 1e-3


def test_an_image_smaller_than_a_tile_is_continued_to_it():
    size = IMAGE.shape[1] + 5, 8
    below = np.pad(IMAGE, ((0, 0), (0, 5), (0, 0), (0, 0)), mode="edge")
    expected = scorers.tiles(convolution, size)(KERNEL, below)
    scores = scorers.tiles(convolution, size)(KERNEL, IMAGE)
    np.testing.assert_allclose(scores, expected[:, : IMAGE.shape[1]], atol=1e-5)


def test_tiles_are_weighed_by_their_gaussian():
    """Two tiles with one constant each, so that the blend is that of the weights."""

    def by_tile(variables, image):
        left = image[:, :1, :1, :1] == 0
        return jnp.broadcast_to(
            jnp.where(left, jnp.log(jnp.array([3.0, 1.0])), 0.0), (*image.shape[:3], 2)
        )

    image = np.zeros((1, 4, 6, 1), np.uint8)
    image[..., 2:, :] = 1
    scorer = scorers.tiles(by_tile, (4, 4), overlap=0.5)
    gauss = np.exp(-32 * ((np.arange(4) + 0.5) / 4 - 0.5) ** 2)
    expected = np.full(6, 0.75)
    expected[2:4] = (0.75 * gauss[2:] + 0.5 * gauss[:2]) / (gauss[2:] + gauss[:2])
    expected[4:] = 0.5
    got = softmax(scorer(None, image))[0, :, :, 0]
    np.testing.assert_allclose(got, np.tile(expected, (4, 1)), rtol=1e-5)


def test_ensembles_average_probabilities():
    other = -2 * KERNEL
    scorer = scorers.ensemble(convolution)
    expected = softmax(convolution(KERNEL, IMAGE)) + softmax(convolution(other, IMAGE))
    got = softmax(scorer(scorers.stack([KERNEL, other]), IMAGE))
    np.testing.assert_allclose(got, expected / 2, atol=1e-6)


@pytest.fixture(scope="module")
def bayesian():
    model = jaxseg.create_model("segnet", 3, width=2, depths=(1, 1, 1), dropout=0.5)
    variables = init_variables(model, jnp.zeros((1, 8, 8, 3)))
    # Statistics unlike the batch's own, so that taking the wrong ones is seen.
    stats = jax.tree.map(lambda x: x / 9, variables["batch_stats"])
    return model, dict(variables) | {"batch_stats": stats}


def test_dropout_is_sampled_with_the_statistics_of_inference(bayesian):
    """Masks that drop nothing leave what inference gives; others average out."""
    model, variables = bayesian
    rare = jaxseg.create_model("segnet", 3, width=2, depths=(1, 1, 1), dropout=1e-9)
    plain = scorers.network(rare, NORMALIZATION)(variables, IMAGE)
    kept = scorers.dropout_samples(rare, NORMALIZATION, 2)(variables, IMAGE)
    np.testing.assert_allclose(softmax(kept), softmax(plain), atol=1e-4)

    def sampled(samples, seed):
        scorer = scorers.dropout_samples(model, NORMALIZATION, samples, seed)
        return softmax(jax.jit(scorer)(variables, IMAGE))

    def distance(samples):
        return np.abs(sampled(samples, 0) - sampled(samples, 1)).mean()

    assert 0 < distance(64) < distance(1) / 2


def test_a_model_without_dropout_has_nothing_to_sample(bayesian):
    model = jaxseg.create_model("segnet", 3, width=2, depths=(1, 1, 1))
    scorer = scorers.dropout_samples(model, NORMALIZATION)
    with pytest.raises(ValueError, match="no dropout to sample"):
        scorer(bayesian[1], IMAGE)


def test_entropy_is_none_for_the_certain_and_log_k_for_the_undecided():
    scores = jnp.array([[0.0, 0.0, 0.0, 0.0], [90.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(scorers.entropy(scores), [np.log(4), 0], atol=1e-6)


def test_tiles_may_be_refined_one_by_one():
    """Refinement sees each tile's own pixels, size and probabilities."""

    def refine(probabilities, image, size):
        assert image.shape[1:3] == (12, 18)
        np.testing.assert_array_equal(size, [[12, 18], [12, 18]])
        bright = image[..., :1].astype(jnp.float32) / 255
        return probabilities * bright + (1 - bright) / 4

    got = softmax(scorers.refined(convolution, refine)(KERNEL, IMAGE))
    bright = IMAGE[..., :1] / 255
    expected = softmax(convolution(KERNEL, IMAGE)) * bright + (1 - bright) / 4
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.fixture(scope="module")
def valid():
    """U-Net without padding, of three levels: it loses 20 pixels on every side."""
    model = jaxseg.create_model("unet_valid", 3, width=2, levels=3, dropout=0.5)
    variables = init_variables(model, jnp.zeros((1, 44, 44, 3)), seed=3)
    return model, dict(variables) | {"batch_stats": {}}


def run_on_mirrored(valid, image):
    """The network on an image of which numpy has made what it needs."""
    model, variables = valid
    sides = [(20, valid_size(n, 3)[0] - n - 20) for n in image.shape[1:3]]
    fed = np.pad(image, ((0, 0), *sides, (0, 0)), mode="reflect")
    logits = model.apply(variables, NORMALIZATION(fed), train=False)
    return np.asarray(logits)[:, : image.shape[1], : image.shape[2]]


@pytest.mark.parametrize("size", [(12, 18), (1, 3)])
def test_a_network_without_padding_sees_images_mirrored(valid, size):
    image = RNG.integers(0, 256, (2, *size, 3), np.uint8)
    scores = scorers.network(valid[0], NORMALIZATION)(valid[1], image)
    assert scores.shape == (2, *size, 3)
    np.testing.assert_allclose(scores, run_on_mirrored(valid, image), atol=1e-5)


def test_tiles_beyond_their_context_are_the_whole_mirrored_image(valid):
    model, variables = valid
    assert scorers.context(model) == 20
    image = RNG.integers(0, 256, (1, 140, 108, 3), np.uint8)
    scorer = scorers.tiles(
        scorers.network(model, NORMALIZATION), (76, 76), 0.55, margin=20
    )
    whole = jax.nn.log_softmax(run_on_mirrored(valid, image))
    np.testing.assert_allclose(scorer(variables, image), whole, atol=1e-4)


def test_dropout_is_sampled_in_a_network_without_padding(valid):
    image = RNG.integers(0, 256, (1, 9, 12, 3), np.uint8)
    scorer = scorers.dropout_samples(valid[0], NORMALIZATION, 2)
    assert scorer(valid[1], image).shape == (1, 9, 12, 3)


def test_a_network_that_pads_sees_no_context(bayesian):
    assert scorers.context(bayesian[0]) == 0
