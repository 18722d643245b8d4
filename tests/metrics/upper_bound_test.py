import itertools

import numpy as np
import pytest

from jaxseg.metrics import Confusion, coarsen, upper_bounds


def street(seed, shape=(50, 70), num_classes=4):
    """A label map of overlapping rectangles, with some void."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for _ in range(25):
        top, left = rng.integers(-5, shape)
        height, width = rng.integers(3, 30, 2)
        number = rng.choice([*range(num_classes), 255])
        label[max(top, 0) : top + height, max(left, 0) : left + width] = number
    return label


def accuracy(prediction, label):
    return Confusion.of(prediction, label, 4).compute("abcd")["pixel_accuracy"]


def test_majority_by_hand():
    label = np.array(
        [
            [0, 0, 1, 1, 2],
            [0, 1, 1, 255, 255],
            [255, 255, 2, 1, 0],
        ]
    )
    nearest = coarsen(label, 2, 3)
    assert nearest.tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [0, 0, 1, 1, 0]]
    # Counts of one row, [1, 0] and [0, 1], mix as 1, 3/4, 1/4, 0.
    row = np.array([[0, 0, 0, 255, 255, 1, 1, 1]])
    assert coarsen(row, 4, 2, "bilinear").tolist() == [[0] * 4 + [1] * 4]
    # Where the left cell has 4 pixels and the right 2, the border moves to the right.
    row = np.array([[0] * 4 + [255] * 2 + [1] * 2])
    assert coarsen(row, 4, 2, "bilinear").tolist() == [[0] * 5 + [1] * 3]


def test_no_map_constant_on_cells_is_better():
    label = street(0)[:4, :6]
    label[:2, :3] = [[0, 1, 1], [2, 1, 0]]
    best = max(
        accuracy(np.kron(np.reshape(cells, (2, 3)), np.ones((2, 2), int)), label)
        for cells in itertools.product(range(3), repeat=6)
    )
    assert accuracy(coarsen(label, 2, 4), label) == best


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_bounds_fall_from_one(upsample):
    labels = [street(seed) for seed in range(4)] + [street(9, (33, 20))]
    factors = (64, 32, 16, 8, 4, 2, 1)
    bounds = upper_bounds(labels, 4, factors, upsample)
    assert tuple(bounds) == factors
    results = [bounds[factor].compute("abcd") for factor in factors]
    assert results[-1]["miou"] == 1
    for name in ("miou", "pixel_accuracy"):
        values = [result[name] for result in results]
        assert values == sorted(values) and values[0] < 0.9 * values[-1]
    # No valid pixel is lost: a coarse map is never void.
    valid = sum((label != 255).sum() for label in labels)
    assert all(bound.counts.sum() == valid for bound in bounds.values())


def test_bad_arguments():
    label = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="at least 1"):
        coarsen(label, 0, 2)
    with pytest.raises(ValueError, match="known: nearest, bilinear"):
        coarsen(label, 2, 2, "cubic")
