import math

import numpy as np
import pytest

from jaxseg.metrics import Confusion, Trimap
from jaxseg.metrics.trimap import boundary_distance


def random_maps(seed, shape=(12, 15), num_classes=3):
    rng = np.random.default_rng(seed)
    label = np.repeat(np.repeat(rng.integers(0, num_classes, (3, 3)), 4, 0), 5, 1)
    label[rng.random(shape) < 0.05] = 255
    return rng.integers(0, num_classes, shape), label


def brute_force_distance(label):
    places = np.argwhere(np.ones(label.shape, bool))
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    other = label.ravel()[:, None] != label.ravel()[None]
    return np.where(other, apart, np.inf).min(axis=1).reshape(label.shape)


@pytest.mark.parametrize("seed", range(4))
def test_distance_equals_brute_force(seed):
    _, label = random_maps(seed)
    distance = boundary_distance(label)
    np.testing.assert_allclose(distance, brute_force_distance(label), rtol=1e-6)
    assert np.isinf(boundary_distance(np.zeros((3, 4), int))).all()


@pytest.mark.parametrize("seed", range(4))
def test_counts_equal_brute_force(seed):
    prediction, label = random_maps(seed)
    radii = (1, 1.5, 3, 5)
    counts = Trimap.of(prediction, label, 3, radii).counts
    distance = brute_force_distance(label)
    for radius, found in zip(radii, counts):
        expected = np.zeros((3, 3), int)
        for p, t, d in zip(prediction.flat, label.flat, distance.flat):
            if d <= radius and t != 255:
                expected[t, p] += 1
        np.testing.assert_array_equal(found, expected)


def test_by_hand():
    label = np.array([[0, 0, 0, 0, 1, 1, 1, 1]])
    prediction = np.array([[1, 0, 0, 0, 0, 1, 1, 1]])
    result = Trimap.of(prediction, label, 2, (1, 2, 4)).compute(["a", "b"])
    # Within 1: the two pixels at the boundary, one of them wrong.
    assert result[1]["iou"] == {"a": 1 / 2, "b": 0}
    assert result[2]["pixel_accuracy"] == 3 / 4
    assert result[4] == Confusion.of(prediction, label, 2).compute(["a", "b"])


def test_void_makes_a_boundary_and_is_not_counted():
    label = np.array([[0, 0, 0, 255, 255, 1, 1, 1]])
    counts = Trimap.of(np.zeros((1, 8), int), label, 2, (1,)).counts[0]
    assert counts.tolist() == [[1, 0], [1, 0]]


def test_radii_reach_the_whole_and_images_sum():
    maps = [random_maps(seed) for seed in range(3)]
    total = sum((Trimap.of(*m, 3, (1, 99)) for m in maps), Trimap.zeros(3, (1, 99)))
    prediction, label = (np.stack(part) for part in zip(*maps))
    whole = Confusion.of(prediction, label, 3)
    np.testing.assert_array_equal(total.counts[1], whole.counts)
    assert total.compute("abc")[99] == whole.compute("abc")
    assert total.counts[0].sum() < total.counts[1].sum()
    assert math.isnan(Trimap.zeros(3).compute("abc")[5]["miou"])


def test_bad_arguments():
    label = np.zeros((4, 4), int)
    for radii in ((), (0.5,), (2, 1), (3, 3)):
        with pytest.raises(ValueError, match="increasing"):
            Trimap.of(label, label, 2, radii)
    with pytest.raises(ValueError, match="must be equal"):
        Trimap.of(label[:2], label, 2)
    with pytest.raises(ValueError, match="cannot add"):
        Trimap.zeros(2) + Trimap.zeros(2, (1,))
