import math

import numpy as np
import pytest

from jaxseg.metrics import Confusion, ImageIoU


def random_images(count=4, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    prediction, label = rng.integers(0, num_classes, (2, count, 5, 6))
    label[rng.random(label.shape) < 0.2] = 255
    return prediction, label


def overlaps(prediction, label, num_classes=3):
    total = ImageIoU.zeros(num_classes)
    # Not in order, as images of several sizes or processes come.
    for i in reversed(range(len(label))):
        total += ImageIoU.of(i, Confusion.of(prediction[i], label[i], num_classes))
    return total


def test_images_sum_to_the_set():
    prediction, label = random_images()
    images = overlaps(prediction, label)
    assert images.index.tolist() == [0, 1, 2, 3]
    whole = Confusion.of(prediction, label, 3).compute("abc")
    mean, *by_class = images.figures(np.ones((1, 4)))[0]
    assert mean == pytest.approx(whole["miou"])
    assert by_class == pytest.approx(list(whole["iou"].values()))
    # Image 2 twice, 0 and 3 not at all.
    weights = np.array([[0, 1, 2, 0]])
    drawn = Confusion.of(prediction[[1, 2, 2]], label[[1, 2, 2]], 3).compute("abc")
    assert images.figures(weights)[0, 0] == pytest.approx(drawn["miou"])


def test_miou_of_each_image_is_its_own():
    prediction, label = random_images()
    label[1], prediction[1] = 0, 1  # of which both have IoU 0, and class 2 none
    label[3] = 255
    expected = [
        Confusion.of(p, t, 3).compute("abc")["miou"] for p, t in zip(prediction, label)
    ]
    assert expected[1] == 0 and math.isnan(expected[3])
    images = overlaps(prediction, label)
    np.testing.assert_allclose(images.miou(), expected)
    spread = images.compute()
    assert spread["mean"] == pytest.approx(np.mean(expected[:3]))
    assert spread["std"] == pytest.approx(np.std(expected[:3]))
    assert spread["median"] == pytest.approx(np.median(expected[:3]))
    assert (spread["min"], spread["max"]) == (0, pytest.approx(max(expected[:3])))
    assert not math.isclose(
        spread["mean"], Confusion.of(prediction, label, 3).compute("abc")["miou"]
    )


def test_no_images_have_no_spread():
    assert all(math.isnan(value) for value in ImageIoU.zeros(3).compute().values())
    assert np.isnan(ImageIoU.zeros(3).figures(np.ones((1, 0)))).all()


def test_bad_arguments():
    one = overlaps(*random_images(1))
    with pytest.raises(ValueError, match="image 0 is counted twice"):
        one + one
    with pytest.raises(ValueError, match="3 and 2 classes"):
        one + ImageIoU.zeros(2)
    with pytest.raises(ValueError, match=r"\[1, K, 3\]"):
        ImageIoU(np.array([0]), np.zeros((1, 5, 4), int))
