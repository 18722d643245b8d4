"""Empty input and impossible numbers are errors that name them."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import (
    convolution,
    crf,
    gaussian,
    image_resize,
    indexed_pooling,
    permutohedral,
    pooling,
    tiling,
)
from jaxseg.ops.image_normalization import Normalization

NO_ROWS = jnp.zeros((1, 0, 4, 2))
ONE = jnp.ones((1, 4, 4, 2))
PLACES = jnp.zeros((1, 0, 4, 2), jnp.uint8)
PRESET = crf.PRESETS["deeplab"]


def refine(shape, **changes):
    image = np.zeros((*shape[:-1], 3), np.uint8)
    return crf.dense_crf(np.ones(shape, np.float32), image, **PRESET | changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: refine((0, 5, 3)), r"are \[0, 5, 3\]; there must be"),
        (lambda: refine((5, 0, 3)), "there must be"),
        (lambda: refine((4, 4, 0)), "there must be"),
        (lambda: refine((0, 4, 4, 3)), "there must be"),
        (lambda: refine((2, 2, 1), w_spatial=math.nan), "w_spatial is nan"),
        (lambda: refine((2, 2, 1), iterations=1.5), "iterations is 1.5"),
        (lambda: crf.pad_to_multiple(np.ones((2, 2, 1)), PLACES, 0), "multiple is 0"),
        (lambda: gaussian.blur(NO_ROWS[0], 1.0), "no axis may be empty"),
        (lambda: gaussian.blur(ONE[0], 0.0), "sigma is 0.0"),
        (lambda: gaussian.blur(ONE[0], math.nan), "sigma is nan"),
        (
            lambda: permutohedral.build(jnp.zeros((0, 2)), jnp.zeros(0, bool)),
            "no axis may be empty",
        ),
        (
            lambda: convolution.conv_transpose(NO_ROWS, jnp.ones((2, 2, 2, 2))),
            "no axis may be empty",
        ),
        (
            lambda: convolution.conv_transpose(ONE, jnp.ones((0, 2, 2, 2))),
            "no axis may be empty",
        ),
        (lambda: pooling.max_pool_argmax(NO_ROWS), "without any pixel"),
        (lambda: pooling.max_unpool(NO_ROWS, PLACES), "without any pixel"),
        (lambda: indexed_pooling.max_pool_indices(NO_ROWS, 2), "without any pixel"),
        (
            lambda: indexed_pooling.max_unpool_indices(ONE, ONE.astype(int), (0, 4)),
            r"size is \(0, 4\)",
        ),
        (lambda: tiling.tile_starts(4, 0, 0.5), "Tiles of 0 pixels"),
        (lambda: tiling.tile_starts(4, 2, 0.5, -1), "margins of -1"),
        (lambda: tiling.choose_overlap((0, 4), 3), r"size is \(0, 4\)"),
        (
            lambda: image_resize.resize_image(PLACES, (3, 3)),
            "each side must have at least 1",
        ),
        (lambda: image_resize.resize_image(ONE, (3, 3)), "image is float32"),
        (lambda: Normalization((0.0,), (0.0,)), "std is .* positive"),
        (lambda: Normalization((math.nan,), (1.0,)), "mean is .* finite"),
        (lambda: Normalization((0.0,), (math.inf,)), "std is .* finite"),
    ],
)
def test_impossible_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
