import numpy as np
import pytest

from jaxseg.metrics import BoundaryF1, Confusion, ImageIoU, paired_bootstrap


def run(seed, wrong, count=30, labels_seed=0, hard=0.0):
    """Images of two classes; a share of their pixels wrong, more so in later ones."""
    label = np.random.default_rng(labels_seed).integers(0, 2, (count, 10, 10))
    rng = np.random.default_rng(seed)
    share = np.linspace(wrong, wrong + hard, count)[:, None, None]
    prediction = np.where(rng.random(label.shape) < share, 1 - label, label)
    images = ImageIoU.zeros(2)
    for i in range(count):
        images += ImageIoU.of(i, Confusion.of(prediction[i], label[i], 2))
    return images


def test_difference_and_interval_equal_a_plain_loop():
    first, second = run(1, 0.3), run(2, 0.25)
    mean, by_class = paired_bootstrap(first, second, "ab", resamples=700, seed=5)

    def iou(images, chosen):
        truth, predicted, hit = images.counts[chosen].sum(axis=0).T
        by_class = hit / (truth + predicted - hit)
        return np.array([by_class.mean(), *by_class])

    rng = np.random.default_rng(5)
    draws = []
    for _ in range(700):
        chosen = np.repeat(np.arange(30), rng.multinomial(30, np.full(30, 1 / 30)))
        draws.append(iou(second, chosen) - iou(first, chosen))
    everything = np.arange(30)
    difference = iou(second, everything) - iou(first, everything)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(
        [mean, by_class["a"], by_class["b"]], np.stack([difference, low, high], axis=1)
    )


def test_interval_knows_chance_from_difference():
    mean, _ = paired_bootstrap(run(1, 0.3), run(2, 0.3), "ab", resamples=500)
    assert mean.low < 0 < mean.high
    mean, _ = paired_bootstrap(run(1, 0.3), run(2, 0.2), "ab", resamples=500)
    assert 0 < mean.low < mean.difference < mean.high
    back, _ = paired_bootstrap(run(2, 0.2), run(1, 0.3), "ab", resamples=500)
    np.testing.assert_allclose([back.low, back.high], [-mean.high, -mean.low])


def test_pairing_removes_what_is_hard_for_both():
    # The same images are hard for both, so single scores vary far more than differences.
    first, second = run(1, 0.05, hard=0.4), run(2, 0.02, hard=0.4)
    mean, _ = paired_bootstrap(first, second, "ab", resamples=500)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(30, np.full(30, 1 / 30), (2, 500))
    alone = second.figures(weights[1])[:, 0] - first.figures(weights[0])[:, 0]
    low, high = np.quantile(alone, [0.025, 0.975])
    assert mean.high - mean.low < 0.5 * (high - low)


def test_repeatable_and_wider_for_a_higher_level():
    runs = run(1, 0.3), run(2, 0.28)
    mean, _ = paired_bootstrap(*runs, "ab", resamples=300)
    assert paired_bootstrap(*runs, "ab", resamples=300)[0] == mean
    assert paired_bootstrap(*runs, "ab", resamples=300, seed=1)[0] != mean
    wide, _ = paired_bootstrap(*runs, "ab", resamples=300, level=0.99)
    assert wide.low < mean.low < mean.high < wide.high


def test_a_run_against_itself_and_absent_classes():
    prediction, label = np.zeros((2, 4, 5, 5), int)
    images = ImageIoU.zeros(2)
    for i in range(4):
        images += ImageIoU.of(i, Confusion.of(prediction[i], label[i], 2))
    mean, by_class = paired_bootstrap(images, images, "ab", resamples=50)
    assert mean == (0, 0, 0)
    assert by_class["a"] == (0, 0, 0)
    assert np.isnan(by_class["b"]).all()


def test_boundary_f1_is_compared_by_the_mean_over_images():
    def boundary(*matched):
        counts = [[[10, 10, m, m], [0, 0, 0, 0]] for m in matched]
        return BoundaryF1(np.arange(len(matched)), np.array(counts))

    first, second = boundary(5, 8, 2), boundary(6, 9, 3)
    mean, by_class = paired_bootstrap(first, second, "ab", resamples=50)
    # Every image is better by 0.1, and so is every draw.
    assert mean == pytest.approx((0.1, 0.1, 0.1))
    assert by_class["a"] == pytest.approx((0.1, 0.1, 0.1))


def test_only_the_same_data_compare():
    first = run(1, 0.3)
    with pytest.raises(ValueError, match="labels of image 0 differ"):
        paired_bootstrap(first, run(1, 0.3, labels_seed=9), "ab")
    with pytest.raises(ValueError, match="30 and 20 images, of which 20"):
        paired_bootstrap(first, ImageIoU(first.index[:20], first.counts[:20]), "ab")
    with pytest.raises(ValueError, match="2 and 3 classes"):
        paired_bootstrap(first, ImageIoU.zeros(3), "ab")
    with pytest.raises(ValueError, match="ImageIoU with BoundaryF1"):
        paired_bootstrap(first, BoundaryF1.zeros(2), "ab")
    with pytest.raises(ValueError, match="no images"):
        paired_bootstrap(ImageIoU.zeros(2), ImageIoU.zeros(2), "ab")
    with pytest.raises(ValueError, match="class names"):
        paired_bootstrap(first, first, "abc")
