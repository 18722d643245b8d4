"""Scores are compared with a count in numpy, pixel by pixel, of one image at a time."""

from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.inference import evaluator as evaluator_module
from jaxseg.inference.evaluator import Evaluator
from jaxseg.inference.network import NonFiniteScoresError
from jaxseg.inference.scorers import network
from jaxseg.parallel.mesh import create_parallel
from tests.helpers import NORMALIZATION, ConvNet, init_variables

K, VOID = 4, 255
SIZE = (24, 40)


class Records:
    """Images of given sizes in memory, each with a void corner."""

    def __init__(self, *sizes):
        rng = np.random.default_rng(0)
        self.sizes = sizes
        self.info = SimpleNamespace(channels=3)
        self._records = []
        for i, size in enumerate(sizes):
            label = rng.integers(0, K, size, np.uint8)
            label[:3, : 2 + i] = VOID
            image = rng.integers(0, 256, (*size, 3), np.uint8)
            self._records.append({"image": image, "label": label, "name": str(i)})

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return self._records[index]


def make(net=None, *, image_size=None, devices=1, backend="jit", batch_size=4):
    net = net or ConvNet(K)
    variables = init_variables(net, jnp.zeros((1, 8, 8, 3)))
    evaluate = Evaluator(
        network(net, NORMALIZATION),
        num_classes=K,
        batch_size=batch_size,
        parallel=create_parallel(backend, devices),
        image_size=image_size,
    )
    return evaluate, variables


def watched(evaluate, variables, records):
    """The confusion, and the predictions by record number; labels come along."""
    kept = {}

    def watch(index, prediction, label):
        np.testing.assert_array_equal(label, records[index]["label"])
        kept[index] = prediction

    confusion, _ = evaluate(variables, records, watch=watch)
    return confusion, dict(sorted(kept.items()))


def logits_of(net, variables, image):
    return np.asarray(net.apply(variables, NORMALIZATION(image[None]), train=False))[0]


def count(records, predictions):
    counts = np.zeros((K, K), np.int64)
    for record, prediction in zip(records, predictions, strict=True):
        for true, predicted in zip(record["label"].flat, prediction.flat, strict=True):
            if true != VOID:
                counts[true, predicted] += 1
    return counts


@pytest.fixture(scope="module")
def uniform():
    """Eleven images of one size: the last of three batches of four lacks one."""
    return Records(*[SIZE] * 11)


@pytest.fixture(scope="module")
def expected(uniform):
    _, variables = make()
    images = [record["image"] for record in uniform]
    return [logits_of(ConvNet(K), variables, image).argmax(-1) for image in images]


@pytest.mark.parametrize(
    "backend, devices",
    [("jit", 1), ("jit", 4), ("shard_map", 4), ("pmap", 1), ("pmap", 4)],
)
def test_counts_are_brute_force_on_any_devices(uniform, expected, backend, devices):
    evaluate, variables = make(backend=backend, devices=devices)
    confusion, kept = watched(evaluate, variables, uniform)
    counts = count(uniform, expected)
    assert (counts > 50).all()  # the comparison means something
    np.testing.assert_array_equal(confusion.counts, counts)
    assert list(kept) == list(range(11))
    for index, prediction in kept.items():
        assert prediction.dtype == np.uint8
        np.testing.assert_array_equal(prediction, expected[index])


def test_fillers_of_the_last_batch_and_void_are_not_counted(uniform):
    evaluate, variables = make()
    confusion, _ = evaluate(variables, uniform)
    valid = sum((record["label"] != VOID).sum() for record in uniform)
    assert valid < 11 * 24 * 40
    assert confusion.counts.sum() == valid


def test_resized_images_are_scored_at_the_size_of_their_labels():
    records = Records((40, 56), (40, 56), (70, 33))
    evaluate, variables = make(image_size=(16, 24))
    confusion, kept = watched(evaluate, variables, records)
    for index, prediction in kept.items():
        height, width = records.sizes[index]
        small = cv2.resize(
            records[index]["image"], (24, 16), interpolation=cv2.INTER_AREA
        )
        logits = cv2.resize(logits_of(ConvNet(K), variables, small), (width, height))
        assert prediction.shape == (height, width)
        # OpenCV interpolates in its own rounding, which may tip a tie.
        assert np.mean(prediction == logits.argmax(-1)) > 0.998
    np.testing.assert_array_equal(confusion.counts, count(records, kept.values()))


def test_mixed_sizes_are_scored_each_at_its_own():
    net = ConvNet(K, kernel=1)  # so that padding has no influence on pixels beside it
    records = Records((24, 40), (70, 33), (24, 41), (66, 40), (24, 40))
    evaluate, variables = make(net)
    confusion, kept = watched(evaluate, variables, records)
    predictions = [
        logits_of(net, variables, record["image"]).argmax(-1) for record in records
    ]
    np.testing.assert_array_equal(confusion.counts, count(records, predictions))
    for index, prediction in kept.items():
        np.testing.assert_array_equal(prediction, predictions[index])


@pytest.mark.parametrize("backend", ["jit", "shard_map", "pmap"])
def test_nothing_is_traced_again(uniform, monkeypatch, backend):
    traces = []
    step = evaluator_module.eval_step

    def counted(*args, **kwargs):
        traces.append(kwargs["axis_name"])
        return step(*args, **kwargs)

    monkeypatch.setattr(evaluator_module, "eval_step", counted)
    evaluate, variables = make(backend=backend, devices=4)
    first, _ = evaluate(variables, uniform)
    once = len(traces)
    changed = jax.tree.map(lambda x: -x, variables)
    placed = jax.device_put(changed, create_parallel(backend, 4).replicated)
    second, _ = evaluate(changed, uniform)
    third, _ = evaluate(placed, uniform)
    assert len(traces) == once
    assert not np.array_equal(first.counts, second.counts)
    np.testing.assert_array_equal(second.counts, third.counts)


def test_more_pixels_than_can_be_counted_are_refused(uniform, monkeypatch):
    monkeypatch.setattr(evaluator_module, "MAX_PIXELS", 4 * 24 * 40 - 1)
    evaluate, variables = make()
    with pytest.raises(ValueError, match=r"3840 pixels,.* smaller batch_size"):
        evaluate(variables, uniform)


def _nan_at(pixel):
    """A scorer whose scores are NaN where all channels have this value."""

    def score(variables, image):
        x = image.astype(jnp.float32)
        bad = jnp.all(image == pixel, axis=-1, keepdims=True)
        return jnp.where(bad, jnp.nan, jnp.concatenate([x, -x[..., :1]], -1))

    return score


@pytest.mark.parametrize("backend", ["jit", "shard_map", "pmap"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_scores_that_are_not_finite_name_their_image(backend, bad):
    records = Records((20, 30), (24, 40), (9, 9), (24, 40), (20, 30))
    for record in records:
        record["image"] = np.maximum(record["image"], 1)
    scorer = _nan_at(0)
    evaluate = Evaluator(
        lambda v, x: jnp.where(jnp.isnan(scorer(v, x)), bad, scorer(v, x)),
        num_classes=K,
        batch_size=4,
        parallel=create_parallel(backend, 2),
    )
    records.name = lambda index: f"street_{index}"
    evaluate({}, records)  # the padding, and the void records, are all zeros
    records[3]["image"][23, 39] = 0
    with pytest.raises(NonFiniteScoresError, match="street_3 are NaN or infinite"):
        evaluate({}, records)


def test_more_classes_than_label_maps_hold_are_refused():
    parallel = create_parallel(data=1)
    with pytest.raises(ValueError, match="256 classes do not fit"):
        Evaluator(_nan_at(0), num_classes=256, batch_size=1, parallel=parallel)


def test_batches_can_be_watched(uniform):
    seen = []

    def watch(batches):
        seen.append(len(batches))
        for batch in batches:
            seen.append(batch["index"].tolist())
            yield batch

    evaluate, variables = make()
    evaluate(variables, uniform, progress=watch)
    assert seen == [3, [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, -1]]


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch_size=6 .* 4 devices .* use 4 or"):
        make(devices=4, batch_size=6)
