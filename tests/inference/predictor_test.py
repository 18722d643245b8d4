import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.inference.evaluator import Evaluator
from jaxseg.inference.network import NonFiniteScoresError
from jaxseg.inference.predictor import Predictor
from jaxseg.inference.scorers import network
from jaxseg.inference.tiled import TiledPredictor
from jaxseg.models import create_model
from jaxseg.models.variables import initial_variables
from jaxseg.ops.crf import PRESETS, dense_crf
from jaxseg.ops.resize import resize_bilinear
from jaxseg.parallel.mesh import create_parallel
from tests.helpers import (
    NORMALIZATION,
    ConvNet,
    draw_image,
    init_variables,
    make_metadata,
)

BUMP = np.linspace(-2, 2, 16, dtype=np.float32).reshape(1, 1, 16, 1)


def make(image_size=None, channels=3):
    net = ConvNet()
    shape = (1, 8, 8, channels)
    variables = init_variables(net, jnp.zeros(shape), seed=1)
    metadata = make_metadata(channels=channels, image_size=image_size)
    return Predictor(net, variables, metadata), variables


def scores(variables, image):
    normalized = (image[None].astype(np.float32) - 120) / 60
    return np.asarray(ConvNet().apply(variables, normalized, train=False))[0]


def expect(variables, image):
    return scores(variables, image).argmax(-1)


def test_predicts_the_network_s_best_class_of_every_pixel():
    predict, variables = make()
    image = draw_image(24, 40)
    classes = predict(image)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, expect(variables, image))
    assert set(np.unique(classes)) == {0, 1, 2}


@pytest.mark.parametrize("size", [(1, 1), (37, 51), (7, 64)])
def test_other_sizes_continue_their_last_row_and_column(size):
    predict, variables = make()
    image = draw_image(*size)
    height, width = size
    padded = np.pad(image, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    classes = predict(image)
    assert classes.shape == size
    np.testing.assert_array_equal(classes, expect(variables, padded)[:height, :width])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_an_error(bad):
    def scorer(variables, image):
        x = image.astype(jnp.float32)
        return jnp.where(jnp.arange(image.shape[1])[:, None, None] >= variables, bad, x)

    image = draw_image(5, 7)  # padded to 8 rows
    assert Predictor(scorer, 5, make_metadata())(image).shape == (5, 7)
    for predict in (
        Predictor(scorer, 4, make_metadata()),
        Predictor(scorer, 4, make_metadata()).with_entropy,
        TiledPredictor(scorer, 4, make_metadata(), (8, 8)),
    ):
        with pytest.raises(NonFiniteScoresError, match="NaN or infinite"):
            predict(image)


def test_more_classes_than_predictions_hold_are_refused():
    many = Predictor(lambda v, x: jnp.zeros((*x.shape[:3], 256)), {}, make_metadata())
    with pytest.raises(ValueError, match="256 classes do not fit"):
        many(draw_image(8, 8))


def test_images_of_similar_sizes_share_a_program():
    _, variables = make()
    traces = []

    def counted(variables, image):
        traces.append(image.shape)
        return network(ConvNet(), NORMALIZATION)(variables, image)

    predict = Predictor(counted, variables, make_metadata())
    for height in range(33, 41):
        assert predict(draw_image(height, 88 - height)).shape == (height, 88 - height)
    assert traces == [(1, 40, 56, 3), (1, 40, 48, 3)]
    predict = Predictor(counted, variables, make_metadata(image_size=(16, 16)))
    for height in range(33, 41):
        assert predict(draw_image(height, 88 - height)).shape == (height, 88 - height)
    assert traces[2:] == [(1, 16, 16, 3)]


@pytest.mark.parametrize("image_size", [[16, 24], [64, 64]])
def test_a_net_of_another_size_predicts_as_it_is_scored(image_size):
    predict, variables = make(image_size)
    image = draw_image(40, 52)

    class One(list):
        sizes = ((40, 52),)

    label = np.zeros((40, 52), np.uint8)
    evaluate = Evaluator(
        network(ConvNet(), NORMALIZATION),
        num_classes=3,
        batch_size=1,
        parallel=create_parallel(data=1),
        image_size=tuple(image_size),
    )
    record = {"image": image, "label": label, "name": "one"}
    kept = []
    evaluate(
        variables, One([record]), watch=lambda _, classes, label: kept.append(classes)
    )
    np.testing.assert_array_equal(predict(image), kept[0])
    assert not np.array_equal(kept[0], expect(variables, image))


@pytest.mark.parametrize("image_size", [None, [16, 24]])
def test_entropy_is_that_of_the_probabilities(image_size):
    """Taken by numpy of the scores at the image's size, over log 3."""
    predict, variables = make(image_size)
    image = draw_image(20, 28)
    classes, entropy = predict.with_entropy(image)
    np.testing.assert_array_equal(classes, predict(image))
    assert entropy.shape == (20, 28) and entropy.dtype == np.float16
    if image_size is not None:
        assert 0 <= entropy.min() < entropy.max() <= 1
        return
    padded = np.pad(image, ((0, 4), (0, 4), (0, 0)), mode="edge")
    p = np.asarray(jax.nn.softmax(scores(variables, padded)))[:20, :28]
    expected = -(p * np.log(p)).sum(axis=-1) / np.log(3)
    np.testing.assert_allclose(entropy, expected, atol=1e-3)


def test_refinement_sees_the_image_at_its_own_size():
    """The CRF of the whole image, though the network is fed a smaller one."""
    _, variables = make()
    crf = dict(PRESETS["deeplab"]) | {"iterations": 2}

    def refine(probabilities, image, size):
        assert image.shape == (1, 64, 64, 3)
        inside = np.zeros((1, 64, 64), bool)
        inside[:, :20, :28] = True
        return dense_crf(probabilities, image, valid=inside, **crf)

    def constant(variables, image):
        del variables
        assert image.shape == (1, 16, 16, 3)
        return jnp.broadcast_to(jnp.array([0.0, 1.0, 0.9]), (1, 16, 16, 3)) * BUMP

    metadata = make_metadata(image_size=(16, 16))
    image = draw_image(20, 28)
    got = Predictor(constant, variables, metadata, refine)(image)
    logits = resize_bilinear(constant(None, np.zeros((1, 16, 16, 3))), (20, 28))
    expected = dense_crf(jax.nn.softmax(logits), image[None], **crf)
    np.testing.assert_array_equal(got, np.argmax(expected[0], axis=-1))


@pytest.mark.parametrize(
    "image, message",
    [
        (
            np.zeros((8, 8, 3), np.float32),
            r"float32 \[8, 8, 3\].*expects uint8 \[H, W, 3\]",
        ),
        (np.zeros((8, 8, 1), np.uint8), r"is uint8 \[8, 8, 1\]"),
        (np.zeros((8, 8), np.uint8), r"read_image\(path, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
    ],
)
def test_other_arrays_are_refused(image, message):
    predict, _ = make()
    with pytest.raises(ValueError, match=message):
        predict(image)


def test_an_image_shared_by_four_devices_is_predicted_alike():
    model = create_model("segnet", 3, width=4, depths=(1, 1, 1))
    variables = initial_variables(model, jax.random.key(0))
    image = draw_image(67, 40)
    whole = Predictor(model, variables, make_metadata()).with_entropy(image)
    shared = Predictor(model, variables, make_metadata(), space=4)
    for got, expected in zip(shared.with_entropy(image), whole):
        np.testing.assert_allclose(got, expected, atol=1e-3)
    with pytest.raises(ValueError, match="8 rows are too small for space=4"):
        shared(draw_image(8, 40))
