"""Prediction strip by strip against `scorers.tiles` on the whole image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.inference import scorers
from jaxseg.inference.tiled import TiledPredictor
from tests.helpers import draw_image, make_metadata

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(5, 5, 3, 4)).astype(np.float32)
METADATA = make_metadata(class_names=("a", "b", "c", "d"), palette=((0, 0, 0),) * 4)


def convolution(variables, image):
    """A scorer that sees two pixels around, and zeros around the image."""
    x = image.astype(jnp.float32) / 255 - 0.5
    return jax.lax.conv_general_dilated(
        x, variables, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("sides", "size", "overlap", "margin"),
    [
        ((60, 47), (16, 12), 0.5, 0),
        ((33, 90), (16, 20), 0.3, 2),
        ((16, 40), (16, 12), 0.0, 0),  # one strip, and more tiles than a batch's
    ],
)
def test_strips_add_up_to_what_tiles_of_the_whole_give(sides, size, overlap, margin):
    image = draw_image(*sides)
    predict = TiledPredictor(convolution, KERNEL, METADATA, size, overlap, margin)
    scorer = scorers.tiles(convolution, size, overlap, margin)
    scores = jax.jit(scorer)(KERNEL, image[None])[0]
    classes, entropy = predict.with_entropy(image)
    assert classes.dtype == np.uint8 and entropy.dtype == np.float16
    np.testing.assert_array_equal(classes, np.argmax(scores, axis=-1))
    expected = scorers.entropy(scores) / np.log(4)
    np.testing.assert_allclose(entropy, expected, atol=1e-3)
    np.testing.assert_array_equal(predict(image), classes)


def test_images_of_all_sizes_share_a_program():
    traces = []

    def counted(variables, image):
        traces.append(image.shape)
        return convolution(variables, image)

    predict = TiledPredictor(counted, KERNEL, METADATA, (8, 8))
    for side in (8, 20, 31):
        assert predict(draw_image(side, 52 - side)).shape == (side, 52 - side)
    # Of one device, though there are four.
    assert traces == [(4, 8, 8, 3)]


def test_an_image_smaller_than_a_tile_is_continued_to_one():
    image = draw_image(5, 20)
    predict = TiledPredictor(convolution, KERNEL, METADATA, (8, 8))
    padded = np.pad(image, ((0, 3), (0, 0), (0, 0)), mode="edge")
    expected = scorers.tiles(convolution, (8, 8))(KERNEL, padded[None])[0, :5]
    classes = predict(image)
    assert classes.shape == (5, 20)
    np.testing.assert_array_equal(classes, np.argmax(expected, axis=-1))


def test_memory_is_one_strip_whatever_the_height():
    """Sums over tiles are kept for a tile's height and no more."""
    predict = TiledPredictor(convolution, KERNEL, METADATA, (8, 8))
    strips = [(top, np.array(s)) for top, s in predict._strips(draw_image(40, 12))]
    assert [top for top, _ in strips] == [*range(0, 33, 4)]
    assert {len(s) for _, s in strips} == {4, 8} and len(strips[-1][1]) == 8


def test_other_arrays_are_refused():
    predict = TiledPredictor(convolution, KERNEL, METADATA, (8, 8))
    with pytest.raises(ValueError, match=r"float32 \[9, 9, 3\]"):
        predict(np.zeros((9, 9, 3), np.float32))
