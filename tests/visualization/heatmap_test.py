import numpy as np

from jaxseg.visualization.heatmap import heatmap


def test_lightness_says_the_number_without_colors():
    values = np.linspace(0, 1, 200)[None].repeat(3, axis=0)
    picture = heatmap(values, "sure", "undecided")
    assert picture.shape[0] > 3 and picture.shape[1] == 200
    luma = picture[1] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) > -1.5).all() and luma[-1] - luma[0] > 150
    np.testing.assert_array_equal(picture[1, 0], [68, 1, 84])  # viridis begins so
    np.testing.assert_array_equal(picture[1, -1], [253, 231, 37])
    # The bar below has the same colors from left to right.
    np.testing.assert_array_equal(picture[10, [0, -1]], picture[1, [0, -1]])


def test_a_narrow_map_has_room_for_its_words():
    picture = heatmap(np.zeros((4, 2)), "sure", "undecided")
    assert picture.shape[1] > 60
    assert (picture[:4, 2:] == 255).all()
