import numpy as np
import pytest

from jaxseg.weights import surgery
from jaxseg.weights.mapping import WeightsError


def test_dense_layer_as_convolution_keeps_each_cell():
    # Two units over a 2x2 map of 3 channels; entry = 100 unit + 10 channel + cell.
    kernel = np.array(
        [
            [100 * unit + 10 * c + cell for c in range(3) for cell in range(4)]
            for unit in range(2)
        ]
    )
    conv = surgery.dense_to_conv(kernel, 2)
    assert conv.shape == (2, 2, 3, 2)
    assert conv[0, 1, 2, 1] == 121  # first row, second column: cell 1
    assert conv[1, 0, 1, 0] == 12
    # Channels last: the first cell's three channels come first.
    dense = surgery.dense_from_chw(kernel, 2)
    np.testing.assert_array_equal(dense[:4, 0], [0, 10, 20, 1])


def test_dense_layer_on_units_is_a_1x1_convolution():
    kernel = np.arange(6).reshape(2, 3)
    conv = surgery.dense_to_conv(kernel, 1)
    np.testing.assert_array_equal(conv, kernel.T.reshape(1, 1, 3, 2))
    np.testing.assert_array_equal(surgery.dense_from_chw(kernel, 1), kernel.T)


def test_dense_layer_of_another_map_is_refused():
    with pytest.raises(WeightsError, match="7x7"):
        surgery.dense_to_conv(np.zeros((4, 100)), 7)


def test_subsampling_takes_the_outer_and_middle_taps_and_every_fourth_unit():
    kernel = np.arange(7 * 7 * 2 * 8).reshape(7, 7, 2, 8)
    small = surgery.subsample_dense(kernel, (3, 3, 2, 2))
    np.testing.assert_array_equal(small, kernel[::3, ::3, :, ::4])
    small = surgery.subsample_dense(kernel, (4, 4, 2, 8))
    np.testing.assert_array_equal(small, kernel[::2, ::2])
    # The bias and the next layer's kernel keep the same units.
    bias = np.arange(8)
    np.testing.assert_array_equal(surgery.subsample_dense(bias, (2,)), [0, 4])
    after = np.arange(64).reshape(1, 1, 8, 8)
    np.testing.assert_array_equal(
        surgery.subsample_dense(after, (1, 1, 2, 2)), after[:, :, ::4, ::4]
    )


def test_subsampling_to_more_is_refused():
    with pytest.raises(WeightsError, match="no part"):
        surgery.subsample_dense(np.zeros((3, 3, 2, 8)), (7, 7, 2, 8))
