"""Empty, negative and NaN input: a right answer, or an error that names it."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.metrics import (
    BoundaryF1,
    Calibration,
    Confusion,
    ImageIoU,
    Trimap,
    calibration_counts,
    coarsen,
    paired_bootstrap,
)

EMPTY = np.zeros((0, 5), np.uint8)
ONE = np.zeros((1, 2, 3), np.int64)


def test_an_empty_image_has_no_scores():
    for scores in (
        Confusion.of(EMPTY, EMPTY, 2).compute("ab")["miou"],
        BoundaryF1.of(0, EMPTY, EMPTY, 2).compute("ab")["boundary_f1"],
        Trimap.of(EMPTY, EMPTY, 2).compute("ab")[1]["miou"],
        ImageIoU.zeros(2).compute()["median"],
        Calibration.zeros().compute()["ece"],
    ):
        assert math.isnan(scores)
    assert coarsen(EMPTY, 4, 2).shape == EMPTY.shape


def test_negative_labels_are_no_classes():
    np.testing.assert_array_equal(
        coarsen(np.array([[-1, -1, 1, 1]]), 2, 2), [[0, 0, 1, 1]]
    )


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: ImageIoU(np.arange(1), -ONE - 1), "counts must be from 0"),
        (lambda: ImageIoU(np.arange(1), ONE + np.nan), "counts must be integers"),
        (lambda: ImageIoU(np.array([-1]), ONE), "index must be from 0"),
        (lambda: ImageIoU(np.array([0.5]), ONE), "index must be integers"),
        (lambda: ImageIoU(np.zeros((1, 1), int), ONE), r"index must be \[N\]"),
        (lambda: Calibration(*-np.ones((3, 2))), "count must be"),
        (lambda: Calibration(*np.full((3, 2), np.nan)), "count must be"),
        (lambda: Calibration(np.ones(2), np.ones(3), np.ones(2)), "same length"),
        (lambda: Calibration.zeros(0), "count must be"),
        (
            lambda: calibration_counts(jnp.zeros((2, 0)), jnp.zeros(2, jnp.uint8)),
            "0 classes",
        ),
        (
            lambda: calibration_counts(jnp.ones((2, 1)), jnp.zeros(2, jnp.uint8), 0),
            "0 bins",
        ),
        (lambda: calibration_counts(jnp.ones((2, 1)), jnp.zeros(2)), "be integers"),
        (lambda: Trimap.zeros(2, (math.nan,)), "radii must be"),
        (lambda: Trimap.of(EMPTY.ravel(), EMPTY.ravel(), 2), r"expected \[H, W\]"),
        (lambda: BoundaryF1.of(0, EMPTY, EMPTY, 2, tolerance=math.nan), "tolerance"),
        (lambda: coarsen(EMPTY, 4, 256), "256 classes do not fit"),
        (lambda: coarsen(np.zeros((2, 2)), 4, 2), "expected integers"),
        (
            lambda: paired_bootstrap(
                ImageIoU(np.arange(1), ONE), ImageIoU(np.arange(1), ONE), "ab", level=2
            ),
            "level is 2",
        ),
        (
            lambda: paired_bootstrap(
                ImageIoU(np.arange(1), ONE),
                ImageIoU(np.arange(1), ONE),
                "ab",
                resamples=0,
            ),
            "resamples is 0",
        ),
    ],
)
def test_impossible_input_is_named(create, message):
    with pytest.raises(ValueError, match=message):
        create()
