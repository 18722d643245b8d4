import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment

from jaxseg.metrics import BoundaryF1
from jaxseg.metrics.boundary import boundary_pixels


def blobs(seed, shape=(14, 17), num_classes=3, void=0.1):
    """Prediction and label: rectangles over each other, then some pixels flipped."""
    rng = np.random.default_rng(seed)
    both = np.zeros((2, *shape), np.uint8)
    for _ in range(6):
        top, left = rng.integers(0, shape)
        number, jitter = rng.integers(0, num_classes), rng.integers(0, 3)
        both[0, top : top + 6, left : left + 7] = number
        both[1, top + jitter : top + 6, left + jitter : left + 8] = number
    prediction, label = both
    noisy = rng.random(shape) < 0.05
    prediction[noisy] = rng.integers(0, num_classes, noisy.sum())
    label[rng.random(shape) < void / 2] = 255
    label[: int(shape[0] * void)] = 255
    return prediction, label


def seg2bdry(seg):
    """BSDS's seg2bdry(seg, 'imageSize'), line by line, on a grid of double size."""
    height, width = seg.shape
    edgels_v = np.zeros(seg.shape, bool)
    edgels_h = np.zeros(seg.shape, bool)
    edgels_v[:-1] = seg[:-1] != seg[1:]
    edgels_h[:, :-1] = seg[:, :-1] != seg[:, 1:]
    double = np.zeros((2 * height + 1, 2 * width + 1), bool)
    double[2::2, 1::2] = edgels_v
    double[1::2, 2::2] = edgels_h
    double[2:-1:2, 2:-1:2] = (
        edgels_h[:-1, :-1] | edgels_h[1:, :-1] | edgels_v[:-1, :-1] | edgels_v[:-1, 1:]
    )
    double[0], double[:, 0] = double[1], double[:, 1]
    double[-1] = double[-2]
    double[:, -1] = double[:, -2]
    return double[2::2, 2::2]


def correspond_pixels(truth, predicted, radius):
    """BSDS's correspondPixels: least total distance, 100 radii for a pair not made."""
    a, b = np.argwhere(truth), np.argwhere(predicted)
    distance = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
    cost = np.where(distance <= radius, distance, 100 * radius)
    pairs = linear_sum_assignment(cost)
    return int((distance[pairs] <= radius).sum())


@pytest.mark.parametrize("seed", range(5))
def test_boundary_is_that_of_bsds(seed):
    region = np.random.default_rng(seed).random((6, 9)) < 0.3
    np.testing.assert_array_equal(boundary_pixels(region), seg2bdry(region))
    assert not boundary_pixels(np.ones((4, 5), bool)).any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tolerance", [0.05, 0.1, 0.2])
def test_matching_is_that_of_correspond_pixels(seed, tolerance):
    prediction, label = blobs(seed)
    counts = BoundaryF1.of(0, prediction, label, 3, tolerance=tolerance).counts[0]
    radius = tolerance * math.hypot(14, 17)
    for number in range(3):
        truth, predicted = (seg2bdry(m == number) for m in (label, prediction))
        pairs = correspond_pixels(truth, predicted, radius)
        expected = [truth.sum(), predicted.sum(), pairs, pairs]
        assert counts[number].tolist() == expected


def test_each_pixel_serves_once():
    label = np.array([[0, 0, 0, 1, 1, 1, 1]] * 6)  # its boundary: column 2
    prediction = np.array([[0, 0, 0, 1, 0, 1, 1]] * 6)  # columns 2, 3 and 4
    options = {"tolerance": 2.1 / math.hypot(6, 7)}
    one = BoundaryF1.of(0, prediction, label, 2, **options)
    assert one.counts[0].tolist() == [[6, 18, 6, 6]] * 2
    near = BoundaryF1.of(0, prediction, label, 2, matching="nearest", **options)
    assert near.counts[0].tolist() == [[6, 18, 6, 18]] * 2
    assert one.f1()[0, 0] == pytest.approx(1 / 2)  # precision 1/3, recall 1
    assert near.f1()[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(6))
def test_nearest_is_the_distance_transform_and_bounds_the_matching(seed):
    prediction, label = blobs(seed)
    exact = BoundaryF1.of(0, prediction, label, 3, tolerance=0.1)
    near = BoundaryF1.of(0, prediction, label, 3, tolerance=0.1, matching="nearest")
    radius = 0.1 * math.hypot(14, 17)
    for number in range(3):
        truth, predicted = (seg2bdry(m == number) for m in (label, prediction))
        expected = [
            np.count_nonzero(distance_transform_edt(~theirs)[ours] <= radius)
            for ours, theirs in ((truth, predicted), (predicted, truth))
        ]
        assert near.counts[0, number, 2:].tolist() == expected
    assert (near.counts >= exact.counts).all()
    assert (near.counts > exact.counts).any()
    assert (near.f1() >= exact.f1()).all()


def test_tolerance_is_a_fraction_of_the_diagonal_and_reaches_its_end():
    label = np.zeros((30, 40), np.uint8)  # diagonal 50
    label[:, 20:] = 1
    prediction = np.zeros_like(label)
    prediction[:, 24:] = 1  # four pixels off
    found = BoundaryF1.of(0, prediction, label, 2, tolerance=4 / 50)
    missed = BoundaryF1.of(0, prediction, label, 2, tolerance=3.99 / 50)
    np.testing.assert_array_equal(found.f1(), [[1, 1]])
    np.testing.assert_array_equal(missed.f1(), [[0, 0]])
    # 0.75 % of 50 is less than a pixel.
    assert BoundaryF1.of(0, label, label, 2).f1().tolist() == [[1, 1]]
    assert BoundaryF1.of(0, np.roll(label, 1), label, 2).f1().max() < 0.1


def image(index, *rows):
    """Counts of one image, [truth, predicted, matched] by class."""
    return BoundaryF1(np.array([index]), np.array([[[t, p, m, m] for t, p, m in rows]]))


def test_scores_by_hand():
    # F1: 2 * (1/2 * 3/4) / (1/2 + 3/4) = 0.6; class 1 is drawn but not there; 2 nowhere.
    first = image(0, (4, 6, 3), (0, 5, 0), (0, 0, 0))
    second = image(1, (8, 8, 8), (2, 0, 0), (4, 6, 3))  # 1, 0 (missed), 0.6
    np.testing.assert_allclose(first.f1(), [[0.6, 0, np.nan]])
    boundary = second + first
    np.testing.assert_allclose(boundary.scores(), [0.3, 1.6 / 3])
    np.testing.assert_allclose(boundary.scores("truth"), [0.6, 1.6 / 3])
    either, truth = boundary.compute("abc"), boundary.compute("abc", present="truth")
    assert either["boundary_f1"] == pytest.approx((0.3 + 1.6 / 3) / 2)
    assert truth["boundary_f1"] == pytest.approx((0.6 + 1.6 / 3) / 2)
    assert either["by_class"] == pytest.approx({"a": 0.8, "b": 0, "c": 0.6})
    assert truth["by_class"] == pytest.approx({"a": 0.8, "b": 0, "c": 0.6})


def test_images_without_a_boundary_are_left_out():
    flat = BoundaryF1.of(7, np.zeros((5, 5), int), np.zeros((5, 5), int), 3)
    assert math.isnan(flat.compute("abc")["boundary_f1"])
    drawn = image(1, (4, 6, 3), (0, 0, 0), (0, 0, 0))
    assert (flat + drawn).compute("abc")["boundary_f1"] == pytest.approx(0.6)
    nothing = BoundaryF1.zeros(3).compute("abc")
    assert math.isnan(nothing["boundary_f1"])
    assert all(math.isnan(value) for value in nothing["by_class"].values())


def test_void_is_not_the_class_unless_ignored():
    label = np.zeros((8, 8), np.uint8)
    label[:, 4:] = 255
    prediction = np.zeros_like(label)
    # The truth's class ends where void begins; the prediction fills the image.
    as_script = BoundaryF1.of(0, prediction, label, 2)
    assert as_script.counts[0].tolist() == [[8, 0, 0, 0], [0, 0, 0, 0]]
    ignored = BoundaryF1.of(0, prediction, label, 2, ignore_void=True)
    assert ignored.counts[0].tolist() == [[8, 8, 8, 8], [0, 0, 0, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_predictions_on_ignored_void_change_nothing(seed):
    prediction, label = blobs(seed, void=0.4)
    other = np.where(label == 255, 2 - prediction, prediction)

    def counts(maps, **options):
        return BoundaryF1.of(0, maps, label, 3, tolerance=0.1, **options).counts

    assert (
        counts(prediction, ignore_void=True) == counts(other, ignore_void=True)
    ).all()
    assert (counts(prediction) != counts(other)).any()


def test_ragged_maps_take_no_time():
    """Where scipy's own bipartite matching takes a quarter of a minute."""
    label, prediction = np.random.default_rng(0).integers(0, 11, (2, 80, 80))
    counts = BoundaryF1.of(0, prediction, label, 11, tolerance=0.04).counts[0]
    assert (counts[:, 2] > 1000).all()


def test_bad_arguments():
    label = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="must be equal"):
        BoundaryF1.of(0, label[:3], label, 2)
    with pytest.raises(ValueError, match="known: one_to_one, nearest"):
        BoundaryF1.of(0, label, label, 2, matching="any")
    with pytest.raises(ValueError, match="known: either, truth"):
        BoundaryF1.zeros(2).compute("ab", present="both")
    with pytest.raises(ValueError, match="1 class names for 2"):
        BoundaryF1.zeros(2).compute("a")
    with pytest.raises(ValueError, match="2 and 3 classes"):
        BoundaryF1.zeros(2) + BoundaryF1.zeros(3)
