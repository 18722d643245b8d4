"""Augmentation: image and labels move together, nothing else is invented."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.data.transforms import (
    augment,
    crop,
    jitter_colors,
    random_scale_crop,
    resize_image,
    resize_label,
)


def blocks(height, width, block=16):
    """Large blocks of classes 0..9, and an image that repeats them times 20."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 10, (height // block, width // block), dtype=np.uint8)
    label = np.kron(coarse, np.ones((block, block), np.uint8))
    return np.stack([label * 20] * 3, -1), label


def test_resize_label_takes_the_nearest_center():
    label = np.arange(4, dtype=np.uint8)[None].repeat(4, 0)
    # Centers of the result lie at 0.5, 2.5 (a tie, to the right) and 0.25 + 0.5 i.
    assert resize_label(label, (4, 2))[0].tolist() == [1, 3]
    assert resize_label(label, (4, 8))[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    five = np.arange(5, dtype=np.uint8)[None]
    assert resize_label(five, (1, 3))[0].tolist() == [0, 2, 4]


def test_resize_image_averages_when_it_shrinks():
    image = np.array([[0, 100], [200, 100]], np.uint8)[..., None]
    assert resize_image(image, (1, 1)).tolist() == [[[100]]]
    assert resize_image(image, (4, 4)).shape == (4, 4, 1)


def test_crop_pads_with_the_edge_and_with_void():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    label = np.array([[1, 2], [3, 4]], np.uint8)
    cropped, cropped_label = crop(image, label, (-1, 1), (4, 3))
    void = 255
    assert cropped_label.tolist() == [
        [void, void, void],
        [2, void, void],
        [4, void, void],
        [void, void, void],
    ]
    expected = image[[0, 0, 1, 1]][:, [1, 1, 1]]
    np.testing.assert_array_equal(cropped, expected)


def test_crop_inside_copies_the_window():
    image, label = blocks(32, 48)
    cropped, cropped_label = crop(image, label, (3, 5), (7, 9))
    np.testing.assert_array_equal(cropped, image[3:10, 5:14])
    np.testing.assert_array_equal(cropped_label, label[3:10, 5:14])


SIDES = st.integers(1, 12)


@given(
    size=st.tuples(SIDES, SIDES),
    offset=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    window=st.tuples(SIDES, SIDES),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=100, deadline=None)
def test_crop_takes_each_pixel_from_its_position(size, offset, window, channels):
    # A window beside the image contains no pixel to repeat.
    offset = [
        min(max(o, 1 - w), n - 1) for o, w, n in zip(offset, window, size, strict=True)
    ]
    label = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)
    image = np.repeat(label[..., None], channels, axis=2)
    new, new_label = crop(image, label, tuple(offset), window)
    assert new.shape == (*window, channels)
    rows, columns = (o + np.arange(w) for o, w in zip(offset, window))
    clipped = np.ix_(rows.clip(0, size[0] - 1), columns.clip(0, size[1] - 1))
    np.testing.assert_array_equal(new, image[clipped])
    inside = np.outer(
        (rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1])
    )
    np.testing.assert_array_equal(new_label, np.where(inside, label[clipped], 255))


@given(
    before=st.tuples(SIDES, SIDES), after=st.tuples(SIDES, SIDES), seed=st.integers(0)
)
@settings(max_examples=50, deadline=None)
def test_resizing_keeps_constants_labels_and_the_range(before, after, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*before, 2), np.uint8)
    image[..., 1] = image[0, 0, 1]
    new = resize_image(image, after)
    assert (new[..., 1] == image[0, 0, 1]).all()
    assert image.min() <= new.min() and new.max() <= image.max()
    label = resize_label(image[..., 0], after)
    assert set(label.ravel()) <= set(image[..., 0].ravel())
    if before == after:
        np.testing.assert_array_equal(new, image)
        np.testing.assert_array_equal(label, image[..., 0])


@pytest.mark.parametrize("crop_px", [None, (40, 56), (120, 90)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0), (1.7, 1.7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_and_labels_stay_aligned(crop_px, scale, channels):
    image, label = blocks(64, 96)
    image = image[..., :channels]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        new, new_label = augment(
            rng, image, label, scale=scale, crop_px=crop_px, flip=0.5
        )
        assert new.shape == (*(crop_px or (64, 96)), channels)
        assert new_label.shape == new.shape[:2]
        assert new.dtype == new_label.dtype == np.uint8
        valid = new_label != 255
        assert set(np.unique(new_label[valid])) <= set(range(10))
        # Away from edges, where interpolation mixes, the image is the label times 20.
        inner = cv2.erode(valid.astype(np.uint8), np.ones((5, 5))) > 0
        spread = cv2.dilate(new_label, np.ones((5, 5))) != cv2.erode(
            new_label, np.ones((5, 5))
        )
        inner &= ~spread
        assert inner.mean() > 0.05
        assert (new[inner] == new_label[inner, None] * 20).all()
        # At an edge the two may part by the pixel that holds it, not by more.
        if scale == (1.0, 1.0):
            assert (new[valid] == new_label[valid, None] * 20).all()


def test_edges_of_image_and_label_coincide_to_half_a_pixel():
    """A bias between the two interpolations would shift one against the other."""
    label = np.zeros((64, 64), np.uint8)
    label[:, 32:] = 1
    image = (label * 200)[..., None]
    for factor in (0.6, 0.8, 1.3, 1.9):
        crop_px = (round(64 * factor),) * 2
        new, new_label = random_scale_crop(
            np.random.default_rng(0),
            image,
            label,
            scale=(factor, factor),
            crop_px=crop_px,
        )
        # The edge's place in either, as the share of the row that lies before it.
        by_label = (new_label == 0).mean() * crop_px[1]
        by_image = (1 - new[..., 0] / 200).mean() * crop_px[1]
        assert abs(by_label - by_image) <= 0.51


def test_scale_enlarges_and_shrinks():
    image, label = blocks(64, 64)
    label[:] = 1
    for factor, void in ((0.5, 0.75), (1.0, 0.0), (2.0, 0.0)):
        _, new_label = random_scale_crop(
            np.random.default_rng(0),
            image,
            label,
            scale=(factor, factor),
            crop_px=(64, 64),
        )
        assert (new_label == 255).mean() == void


def test_scale_is_drawn_from_its_range_and_the_window_from_everywhere():
    y, x = np.mgrid[:100, :100].astype(np.uint8)
    image, label = np.stack([y, x, x], -1), np.zeros((100, 100), np.uint8)
    lefts, extents = [], []
    for seed in range(200):
        new, _ = random_scale_crop(
            np.random.default_rng(seed), image, label, scale=(1, 2), crop_px=(50, 50)
        )
        lefts.append(int(new[25, 0, 1]))
        extents.append(int(new[25, -1, 1]) - int(new[25, 0, 1]))
    assert 24 <= min(extents) < 27 and 46 < max(extents) <= 50
    assert min(lefts) <= 2 and max(lefts) > 60


def test_flip_happens_as_often_as_asked():
    image, label = blocks(16, 32)
    for probability in (0.0, 0.3, 1.0):
        flipped = 0
        for seed in range(200):
            rng = np.random.default_rng(seed)
            new, new_label = augment(rng, image, label, flip=probability)
            if (new_label == label).all():
                np.testing.assert_array_equal(new, image)
            else:
                np.testing.assert_array_equal(new, image[:, ::-1])
                np.testing.assert_array_equal(new_label, label[:, ::-1])
                flipped += 1
        assert abs(flipped / 200 - probability) < 0.1


def test_no_augmentation_is_the_identity():
    image, label = blocks(32, 48)
    new, new_label = augment(np.random.default_rng(0), image, label)
    np.testing.assert_array_equal(new, image)
    np.testing.assert_array_equal(new_label, label)


def test_the_input_is_left_alone():
    image, label = blocks(32, 48)
    before = image.copy(), label.copy()
    everything = dict(
        scale=(0.5, 2.0),
        flip=1.0,
        brightness=0.5,
        contrast=0.5,
        saturation=0.5,
        hue=0.1,
    )
    augment(np.random.default_rng(0), image, label, **everything)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


class Draws:
    """Stands in for a generator: the factors b, c, s and the turn, in -1..1."""

    def __init__(self, b=0.0, c=0.0, s=0.0, turn=0.0):
        self._queue = [np.array([b, c, s]), turn]

    def uniform(self, low, high, size=None):
        return self._queue.pop(0)


COLORS = np.array([[[100, 50, 20], [20, 80, 140]]], np.uint8)


def test_brightness_multiplies():
    brighter = jitter_colors(Draws(b=1.0), COLORS, brightness=0.5)
    assert brighter.tolist() == [[[150, 75, 30], [30, 120, 210]]]


def test_contrast_stretches_about_the_mean_gray():
    # Mean color (60, 65, 80); its gray is .299 60 + .587 65 + .114 80 = 65.2.
    stretched = jitter_colors(Draws(c=1.0), COLORS, contrast=0.5)
    expected = 65.2 + 1.5 * (COLORS.astype(float) - 65.2)
    np.testing.assert_allclose(stretched, np.clip(expected, 0, 255), atol=0.6)


def test_saturation_of_zero_is_gray():
    gray = jitter_colors(Draws(s=-1.0), COLORS, saturation=1.0)
    luma = COLORS @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(gray, np.stack([luma] * 3, -1), atol=0.6)


def test_a_third_of_the_circle_of_hue_moves_the_channels_on():
    turned = jitter_colors(Draws(turn=1.0), COLORS, hue=1 / 3)
    assert turned.tolist() == COLORS[..., [2, 0, 1]].tolist()


def test_gray_images_have_brightness_and_contrast_only():
    image = np.array([[[10], [20]]], np.uint8)
    jittered = jitter_colors(
        Draws(1.0, 1.0, 1.0, 1.0), image, brightness=0.5, contrast=1.0, hue=0.5
    )
    assert jittered.shape == (1, 2, 1)
    assert jittered.ravel().tolist() == [round(1.5 * 5), round(1.5 * 25)]


def test_colors_stay_in_range():
    image = np.array([[[250, 250, 250], [3, 3, 3]]], np.uint8)
    brighter = jitter_colors(Draws(b=1.0), image, brightness=1.0)
    assert brighter.tolist() == [[[255] * 3, [6] * 3]]


def test_color_jitter_leaves_labels_and_geometry_alone():
    image, label = blocks(64, 64)
    plain = dict(scale=(0.5, 2.0), flip=0.5)
    for seed in range(5):
        _, one = augment(np.random.default_rng(seed), image, label, **plain)
        _, two = augment(
            np.random.default_rng(seed), image, label, **plain, brightness=0.3, hue=0.1
        )
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "argument, value",
    [
        ("scale", (0.0, 1.0)),
        ("scale", (2.0, 1.0)),
        ("flip", 1.5),
        ("crop_px", (0, 5)),
        ("brightness", -0.1),
        ("contrast", 2.0),
        ("saturation", 1.1),
        ("hue", 0.6),
    ],
)
def test_arguments_out_of_range_are_named(argument, value):
    image, label = blocks(32, 32)
    with pytest.raises(ValueError, match=argument):
        augment(np.random.default_rng(0), image, label, **{argument: value})


@pytest.mark.parametrize(
    "shape, size",
    [((0, 5), (4, 4)), ((5, 0), (4, 4)), ((5, 5), (0, 4)), ((0, 0), (0, 0))],
)
def test_resizing_from_or_to_nothing_is_an_error(shape, size):
    label = np.zeros(shape, np.uint8)
    message = f"cannot resize {shape[0]}x{shape[1]} to {size[0]}x{size[1]}"
    with pytest.raises(ValueError, match=message):
        resize_image(np.stack([label] * 3, -1), size)
    with pytest.raises(ValueError, match=message):
        resize_label(label, size)
