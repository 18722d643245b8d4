"""Pixel counts and class weights."""

import numpy as np
import pytest

from jaxseg.data import pixel_counts
from jaxseg.data.balance import PRESETS, median_frequency
from jaxseg.data.records import DamagedRecordError
from tests.data.conftest import damage_record

# Training labels of CamVid, counted: 367 images of 360 x 480.
CAMVID_PIXELS = [
    10_682_767, 14_750_079, 623_349, 20_076_880, 2_845_085, 6_166_762, 743_859,
    714_595, 3_719_877, 405_385, 184_967,
]  # fmt: skip
CAMVID_IMAGES = [366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201]


def test_median_frequency_by_hand():
    # Frequencies 1/2, 1/4, 1/8; their median is 1/4.
    weights = median_frequency([50, 25, 25], [100, 100, 200])
    np.testing.assert_allclose(weights, [0.5, 1, 2])


def test_median_of_an_even_number_of_classes_is_the_mean_of_two():
    # Frequencies 1/2, 1/4, 1/8, 1/16; median 3/16.
    weights = median_frequency([8, 4, 2, 1], [16] * 4)
    np.testing.assert_allclose(weights, [3 / 8, 3 / 4, 3 / 2, 3])


def test_median_frequency_of_camvid():
    present = np.array(CAMVID_IMAGES) * 360 * 480
    weights = median_frequency(CAMVID_PIXELS, present)
    expected = [
        0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747,
        8.8587,
    ]  # fmt: skip
    np.testing.assert_allclose(weights, expected, atol=5e-5)


def test_an_absent_class_weighs_nothing_and_does_not_move_the_median():
    weights = median_frequency([50, 0, 25, 25], [100, 0, 100, 200])
    np.testing.assert_allclose(weights, [0.5, 0, 1, 2])


def test_no_class_at_all():
    with pytest.raises(ValueError, match="void"):
        median_frequency([0, 0], [0, 0])


def test_preset_has_a_weight_for_each_class():
    assert len(PRESETS["segnet_camvid"]) == 11
    assert PRESETS["segnet_camvid"][6] == 9.6446


def count_by_hand(folder):
    gray = np.zeros((2, 3, 3), np.uint8)
    folder.add("a", gray, np.array([[0, 0, 1], [1, 1, 255]], np.uint8))
    folder.add("b", gray[:, :2], np.array([[0, 0], [0, 255]], np.uint8))
    folder.describe(classes=["x", "y", "never"], void=255)
    return folder.source()


def test_pixel_counts_by_hand(folder):
    pixels, present = pixel_counts(count_by_hand(folder))
    assert pixels.tolist() == [5, 3, 0]
    assert present.tolist() == [6 + 4, 6, 0]  # void counts among present pixels
    assert pixels.dtype == present.dtype == np.int64


def test_pixels_are_counted_once(folder, monkeypatch):
    source = count_by_hand(folder)
    first = pixel_counts(source)

    def fail(*args):
        raise AssertionError("counted again")

    monkeypatch.setattr(type(source), "label", fail)
    again = pixel_counts(source)
    np.testing.assert_array_equal(first, again)
    assert again[0].dtype == np.int64
    assert not list(source.directory.glob(".*"))


def test_splits_are_counted_apart(folder):
    folder.fill(2)
    folder.fill(3, split="val")
    train, val = (pixel_counts(folder.source(s))[0] for s in ("train", "val"))
    assert train.sum() == 2 * 80 and val.sum() == 3 * 80


def cache(source):
    return source.directory / "pixel_counts_train.json"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"\xff",
        b"[" * 10**5,
        b'{"pixels": [5, 3, 1], "present_pixels": [10, 6, 0], "checksum": 1}',
        b'{"pixels": [5], "checksum": 1}',
    ],
)
def test_a_damaged_cache_of_counts_is_named(folder, content):
    source = count_by_hand(folder)
    pixel_counts(source)
    cache(source).write_bytes(content)
    with pytest.raises(ValueError, match=r"counts_train\.json: damaged .*delete this"):
        pixel_counts(source)


def test_a_wrong_number_in_the_cache_is_noticed(folder):
    source = count_by_hand(folder)
    pixel_counts(source)
    text = cache(source).read_text()
    for wrong in (text.replace("[5, 3", "[6, 3"), text.replace("[10,", "[100,")):
        assert wrong != text
        cache(source).write_text(wrong)
        with pytest.raises(ValueError, match="wrong checksum"):
            pixel_counts(source)


def test_a_cache_of_an_earlier_version_is_counted_again(folder):
    source = count_by_hand(folder)
    cache(source).write_text('{"pixels": [1, 1, 1], "present_pixels": [9, 9, 9]}')
    assert pixel_counts(source)[0].tolist() == [5, 3, 0]
    assert "checksum" in cache(source).read_text()


def test_a_link_in_place_of_the_cache_is_replaced(folder, tmp_path):
    source = count_by_hand(folder)
    cache(source).symlink_to(tmp_path / "precious")
    pixel_counts(source)
    assert not (tmp_path / "precious").exists() and not cache(source).is_symlink()


def test_counts_that_cannot_be_cached_are_returned(folder, monkeypatch):
    source = count_by_hand(folder)

    def fail(*args):
        raise PermissionError

    monkeypatch.setattr("os.replace", fail)
    assert pixel_counts(source)[0].tolist() == [5, 3, 0]


def test_damaged_records_are_counted_in_no_cache(folder):
    masks = folder.fill(3)
    source = folder.source()
    name = source.name(1)
    damage_record(source, 1)
    with pytest.raises(DamagedRecordError, match="record 1"):
        pixel_counts(folder.source())
    pixels, _ = pixel_counts(folder.source(on_error="skip"))
    others = np.stack([mask for key, mask in masks.items() if key != name])
    assert pixels.tolist() == np.bincount(others.ravel(), minlength=3).tolist()
    with pytest.raises(DamagedRecordError, match="record 1"):
        pixel_counts(folder.source())
