"""The shared layers: symmetric padding, and halving with rounding up or down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.encoders.geometry import convolution, halving_max_pool


def test_strided_convolutions_look_as_far_to_the_left_as_to_the_right():
    # A kernel of ones on ones counts the pixels under it: the first cell's lack one
    # row and column before the image; "SAME" would lack them behind it.
    ones = jnp.ones((1, 4, 4, 1))
    conv = convolution(1, 3, strides=2, kernel_init=jax.nn.initializers.ones)
    counts = conv.init_with_output(jax.random.key(0), ones)[0][0, :, :, 0]
    np.testing.assert_array_equal(counts, [[4, 6], [6, 9]])


@pytest.mark.parametrize(("window", "round_up"), [(2, True), (3, True), (3, False)])
@pytest.mark.parametrize("size", [(6, 8), (5, 8), (8, 5), (7, 7)])
def test_halving_by_hand(window, round_up, size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    maxima, places = halving_max_pool(jnp.asarray(x), window, round_up=round_up)
    h, w = ((n + 1) // 2 if round_up else n // 2 for n in size)
    assert maxima.shape == places.shape == (2, h, w, 3)
    flat = x.reshape(2, -1, 3)
    for i in range(h):
        for j in range(w):
            piece = x[:, 2 * i : 2 * i + window, 2 * j : 2 * j + window]
            np.testing.assert_array_equal(maxima[:, i, j], piece.max(axis=(1, 2)))
    if window == 3:
        found = np.take_along_axis(flat, np.asarray(places).reshape(2, -1, 3), axis=1)
        np.testing.assert_array_equal(found.reshape(maxima.shape), maxima)


def test_a_single_row_can_be_halved():
    x = jnp.array([-2.0, -3.0]).reshape(1, 1, 2, 1)
    maxima, places = halving_max_pool(x)
    assert (maxima.item(), places.item()) == (-2.0, 0)
    with pytest.raises(ValueError, match="does not fit"):
        halving_max_pool(x, round_up=False)
