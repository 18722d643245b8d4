"""Shapes and CamVid."""

import os

import numpy as np
import pytest

from jaxseg.data import balance, create_source, pixel_counts
from jaxseg.data.datasets import shapes as shapes_module
from jaxseg.data.datasets.shapes import CLASS_NAMES, PALETTE, draw_shapes
from jaxseg.data.palette import voc_palette


def shapes(path, split="train", **options):
    options = {"train_examples": 12, "val_examples": 12, **options}
    return create_source("shapes", split, prepared_dir=path, **options)


def by_name(source):
    return {r["name"]: r for r in source}


def test_shapes_are_the_same_every_time_and_differ_between_splits(tmp_path):
    first = by_name(shapes(tmp_path / "a"))
    again = by_name(shapes(tmp_path / "b"))
    more = by_name(shapes(tmp_path / "a", train_examples=15))
    for name, record in first.items():
        np.testing.assert_array_equal(record["image"], again[name]["image"])
        np.testing.assert_array_equal(record["label"], more[name]["label"])
    images = [r["image"].tobytes() for r in first.values()]
    images += [r["image"].tobytes() for r in shapes(tmp_path / "a", "val")]
    images += [r["image"].tobytes() for r in shapes(tmp_path / "a", seed=1)]
    assert len(set(images)) == 36


def test_shapes_have_every_class_in_good_measure(tmp_path):
    source = shapes(tmp_path, train_examples=60)
    assert source.info.class_names == CLASS_NAMES
    assert len(set(source.info.palette)) == source.info.num_classes == 6
    share = pixel_counts(source)[0] / sum(h * w for h, w in source.sizes)
    assert share[0] > 0.3 and (share[1:] > 0.02).all()
    assert 0.02 < 1 - share.sum() < 0.2  # void


def test_shapes_of_any_size(tmp_path):
    source = shapes(tmp_path, image_size=(40, 96))
    assert set(source.sizes) == {(40, 96)}
    assert source[0]["image"].shape == (40, 96, 3)
    with pytest.raises(ValueError, match="too small"):
        shapes(tmp_path, image_size=(8, 64))


def test_a_void_outline_two_pixels_wide_surrounds_every_shape():
    """Within two pixels of a shape lies neither ground nor another shape."""
    for seed in range(10):
        _, label = draw_shapes(np.random.default_rng(seed), (64, 64))
        assert set(np.unique(label)) <= {*range(6), 255}
        for step in (1, 2):
            for a, b in (
                (label[step:], label[:-step]),
                (label[:, step:], label[:, :-step]),
                (label[step:, step:], label[:-step, :-step]),
            ):
                touching = (a != b) & (a != 255) & (b != 255)
                assert not touching.any()


def test_color_suggests_the_class_but_does_not_settle_it():
    """The palette's nearest color, judged by shade-free direction, is often right."""
    palette = np.array(PALETTE[1:], float)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    right = []
    for seed in range(100):
        image, label = draw_shapes(np.random.default_rng(seed), (64, 64))
        shape = (label > 0) & (label < 255)
        guess = (image[shape] @ palette.T).argmax(1) + 1
        right.append((guess == label[shape]).mean())
    assert 0.8 < np.nanmean(right) < 0.97


def test_camvid_has_eleven_classes_and_void_is_eleven(folder):
    mask = np.tile(np.arange(12, dtype=np.uint8), (4, 1))
    folder.add("0001TP_006690", np.zeros((4, 12, 3), np.uint8), mask, suffix=".jpg")
    source = create_source(
        "camvid", "train", root=folder.root, prepared_dir=folder.root.parent
    )
    expected = np.where(mask == 11, 255, mask)
    np.testing.assert_array_equal(source[0]["label"], expected)
    assert source.info.num_classes == len(source.info.palette) == 11
    assert source.info.class_names[0] == "sky"
    assert source.info.class_names[10] == "bicyclist"
    assert source.info.palette[8] == (64, 0, 128)


def test_camvid_refuses_a_twelfth_value(folder):
    mask = np.full((4, 12), 12, np.uint8)
    folder.add("a", np.zeros((4, 12, 3), np.uint8), mask)
    with pytest.raises(ValueError, match=r"masks/a.png: 12 at row 0"):
        create_source(
            "camvid", "train", root=folder.root, prepared_dir=folder.root.parent
        )


@pytest.mark.skipif("JAXSEG_CAMVID" not in os.environ, reason="needs CamVid itself")
def test_camvid_itself(tmp_path):
    source = create_source(
        "camvid", "train", root=os.environ["JAXSEG_CAMVID"], prepared_dir=tmp_path
    )
    assert len(source) == 367 and set(source.sizes) == {(360, 480)}
    pixels, present = pixel_counts(source)
    assert pixels[0] == 10_682_767 and pixels[10] == 184_967
    assert (present // (360 * 480)).tolist() == [
        366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201,
    ]  # fmt: skip
    np.testing.assert_allclose(
        balance.median_frequency(pixels, present),
        [.2793, .2017, 4.7865, .1490, 1., .4217, 3.8467, 1.9736, .7889, 6.3747, 8.8587],
        atol=5e-5,
    )  # fmt: skip


def test_voc_palette():
    """The first colors as the PASCAL VOC development kit lists them."""
    assert voc_palette(6) == (
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
    )
    assert voc_palette(256)[255] == (224, 224, 192)
    assert len(set(voc_palette(256))) == 256


def test_shapes_are_prepared_again_when_they_are_drawn_differently(
    tmp_path, monkeypatch
):
    def fingerprint():
        return shapes_module.Shapes(data_dir=str(tmp_path)).fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    monkeypatch.setattr(shapes_module, "_NEIGHBORS", np.ones((5, 5), np.uint8))
    assert fingerprint() != before
