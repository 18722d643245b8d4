"""The user's own folders: what is read, and what is refused with which words."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.palette import named_palette

GRAY = np.arange(80, dtype=np.uint8).reshape(8, 10)
RGB = np.stack([GRAY, GRAY + 60, 200 - GRAY], -1)
MASK = np.tile(np.array([0, 1, 2, 1, 0], np.uint8), (8, 2))


def only_record(folder, **options):
    source = folder.source(**options)
    assert len(source) == 1
    return source[0]


# What is read.


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".webp", ".PNG"])
def test_lossless_images_come_back_unchanged(folder, suffix):
    folder.add("a", RGB, MASK, suffix=suffix)
    record = only_record(folder)
    np.testing.assert_array_equal(record["image"], RGB)
    np.testing.assert_array_equal(record["label"], MASK)
    assert record["name"] == "a"
    assert record["image"].dtype == record["label"].dtype == np.uint8


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_a_jpeg_is_kept_as_it_is(folder, suffix):
    encoded = io.BytesIO()
    Image.fromarray(RGB).save(encoded, "JPEG", quality=60)
    folder.add("a", None, MASK)
    path = folder.root / "train/images" / ("a" + suffix)
    path.write_bytes(encoded.getvalue())
    source = folder.source()
    assert source._records[0]["image"] == encoded.getvalue()
    # Decoders may differ by a rounding.
    ours, theirs = source[0]["image"].astype(int), np.asarray(Image.open(path))
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_index_masks_of_every_lossless_format(folder, suffix):
    mask = np.stack([MASK] * 3, -1) if suffix == ".webp" else MASK
    folder.add("a", RGB, mask, mask_suffix=suffix)
    if suffix == ".webp":  # WebP has no single channel, so its masks are colors
        folder.describe(
            classes=["x", "y", "z"], palette=[[0, 0, 0], [1, 1, 1], [2, 2, 2]]
        )
    np.testing.assert_array_equal(only_record(folder)["label"], MASK)


def test_a_palette_mask_is_its_indices(folder):
    mask = Image.fromarray(MASK, "P")
    mask.putpalette([9, 9, 9, 128, 0, 0, 0, 128, 0])
    folder.add("a", RGB, mask)
    np.testing.assert_array_equal(only_record(folder)["label"], MASK)


def test_a_sixteen_bit_mask_is_its_values(folder):
    folder.add("a", RGB, Image.fromarray(MASK.astype(np.uint16)))
    np.testing.assert_array_equal(only_record(folder)["label"], MASK)


def test_a_mask_in_colors_is_read_by_the_palette(folder):
    palette = np.array([[10, 20, 30], [30, 20, 10], [0, 0, 255]], np.uint8)
    mask = palette[MASK]
    mask[0, 0] = mask[7, 9] = (255, 255, 255)
    folder.describe(
        classes=["x", "y", "z"], palette=palette.tolist(), void=[[255, 255, 255]]
    ).add("a", RGB, mask)
    expected = MASK.copy()
    expected[0, 0] = expected[7, 9] = 255
    np.testing.assert_array_equal(only_record(folder)["label"], expected)
    assert folder.source().info.palette == ((10, 20, 30), (30, 20, 10), (0, 0, 255))


@pytest.mark.parametrize("masks", ["colors", "colours"])
def test_black_and_white_masks_read_as_colors(folder, masks):
    folder.describe(
        classes=["outside", "inside"],
        palette=[[0, 0, 0], [255, 255, 255]],
        masks=masks,
    ).add("a", RGB, np.where(MASK > 0, 255, 0).astype(np.uint8))
    np.testing.assert_array_equal(only_record(folder)["label"], MASK > 0)


@pytest.mark.parametrize(
    "void, expected",
    [
        (None, [0, 1, 2, 3, 255]),
        (3, [0, 1, 2, 255, 255]),
        (0, [255, 0, 1, 2, 255]),  # the classes are the values that remain, in order
        ([0, 2], [255, 0, 255, 1, 255]),
    ],
)
def test_void_values_become_255(folder, void, expected):
    mask = np.tile(np.array([0, 1, 2, 3, 255], np.uint8), (8, 2))
    classes = ["a", "b", "c", "d"][: len({*expected} - {255})]
    folder.describe(classes=classes, void=void).add("a", RGB, mask)
    np.testing.assert_array_equal(
        only_record(folder)["label"], np.tile(expected, (8, 2))
    )


def test_classes_are_counted_over_all_splits_where_none_are_described(folder):
    folder.fill(2, num_classes=2)
    folder.fill(2, num_classes=5, split="val")
    info = folder.source("train").info
    assert info.class_names == tuple(f"class_{i}" for i in range(5))
    assert info.num_classes == len(info.palette) == 5


def test_described_classes(folder):
    folder.describe(
        classes=["x", "y", "z"], palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    ).add("a", RGB, MASK)
    info = folder.source().info
    assert (info.name, info.class_names) == ("folder", ("x", "y", "z"))
    assert info.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_a_palette_by_name(folder):
    colors = named_palette("distinct", 3)
    folder.describe(classes=["x", "y", "z"], palette="distinct")
    folder.add("a", RGB, np.array(colors, np.uint8)[MASK])
    assert folder.source().info.palette == colors
    np.testing.assert_array_equal(only_record(folder)["label"], MASK)


def test_a_palette_with_a_color_twice_colors_pictures(folder):
    folder.describe(classes=[str(i) for i in range(150)], palette="ade20k")
    folder.add("a", RGB, MASK)
    assert folder.source().info.palette == named_palette("ade20k", 150)


@pytest.mark.parametrize("masks, file", [("indices", "a.png"), ("colors", "json")])
def test_a_palette_with_a_color_twice_reads_no_masks(folder, masks, file):
    names = [str(i) for i in range(150)]
    folder.describe(classes=names, palette="ade20k", masks=masks)
    colors = np.array(named_palette("ade20k", 150), np.uint8)
    folder.add("a", RGB, colors[MASK])
    refused(folder, file, "same color")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_gray_images_in_three_channels_or_one(folder, suffix):
    folder.add("a", GRAY, MASK, suffix=suffix)
    image = only_record(folder)["image"]
    np.testing.assert_array_equal(image, np.stack([GRAY] * 3, -1))
    source = folder.source(channels=1)
    assert source.info.channels == 1
    np.testing.assert_array_equal(source[0]["image"], GRAY[..., None])


def test_alpha_is_dropped_and_palette_images_become_rgb(folder):
    alpha = np.dstack([RGB, np.full((8, 10), 7, np.uint8)])
    folder.add("a", alpha, MASK)
    palette = Image.fromarray(MASK, "P")
    palette.putpalette([9, 8, 7, 128, 0, 0, 0, 128, 0])
    folder.add("b", palette, MASK)
    records = {r["name"]: r["image"] for r in folder.source()}
    np.testing.assert_array_equal(records["a"], RGB)
    colors = np.array([[9, 8, 7], [128, 0, 0], [0, 128, 0]])
    np.testing.assert_array_equal(records["b"], colors[MASK])


def test_exif_rotation_is_applied(folder):
    """A camera held upright: the file lies on its side and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    encoded = io.BytesIO()
    upright = np.kron(RGB, np.ones((8, 8, 1))).astype(np.uint8)
    lying = Image.fromarray(np.rot90(upright, 1).copy())
    lying.save(encoded, "JPEG", exif=exif, quality=100, subsampling=0)
    folder.add("a", None, np.kron(MASK, np.ones((8, 8))).astype(np.uint8))
    (folder.root / "train/images/a.jpg").write_bytes(encoded.getvalue())
    record = only_record(folder)
    assert record["image"].shape == (64, 80, 3)
    assert np.abs(record["image"].astype(int) - upright).mean() < 5


@pytest.mark.parametrize("suffix", [".bmp", ".gif"])
def test_images_in_bmp_and_gif(folder, suffix):
    image = Image.fromarray(GRAY if suffix == ".gif" else RGB)
    folder.add("a", image, MASK, suffix=suffix, mask_suffix=suffix)
    record = only_record(folder)
    np.testing.assert_array_equal(record["image"], np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(record["label"], MASK)


@pytest.mark.parametrize("ending", ["_mask", "_label", "_seg", "_gt", "-mask", "_Mask"])
def test_masks_with_an_ending_and_another_extension(folder, ending):
    folder.add("a", RGB, None, suffix=".jpg").add("b_mask", RGB, MASK)
    folder.add("a" + ending, None, MASK, mask_suffix=".tif")
    assert sorted(r["name"] for r in folder.source()) == ["a", "b_mask"]


def test_two_masks_of_one_image(folder):
    folder.add("a", RGB, MASK).add("a_mask", None, MASK)
    refused(folder, "a.png and", "a_mask.png are both masks of", "images/a.png")


def test_names_match_however_accents_are_stored(folder):
    folder.add("caf\u00e9", RGB, None).add("cafe\u0301", None, MASK)
    assert only_record(folder)["name"] == "caf\u00e9"
    folder.add("cafe\u0301", RGB, None)
    with pytest.raises(ValueError, match="same stem"):
        folder.source()


def test_names_that_are_no_text(folder):
    folder.add("a", RGB, MASK)
    for kind in ("images", "masks"):
        place = folder.root / "train" / kind
        os.rename(place / "a.png", os.fsencode(place) + b"/\xff.png")
    assert only_record(folder)["name"] == "\\xff"


def test_a_split_without_masks_is_left_out_and_named(folder, caplog):
    folder.add("a", RGB, MASK)
    (folder.root / "test/images").mkdir(parents=True)
    source = folder.source()
    assert source.splits == ("train",)
    assert f"{folder.root / 'test'} has no masks" in caplog.text
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        folder.source("test")


def test_a_description_with_a_byte_order_mark(folder):
    folder.add("a", RGB, MASK)
    (folder.root / "classes.json").write_text(
        '{"classes": ["Stra\u00dfe", "y", "z"]}', encoding="utf-8-sig"
    )
    assert folder.source().info.class_names == ("Stra\u00dfe", "y", "z")


def test_hidden_files_are_no_images(folder):
    folder.add("a", RGB, MASK)
    (folder.root / "train/images/.DS_Store").write_bytes(b"x")
    assert len(folder.source()) == 1


# What is refused. Every message names the culprit and the cure, and nothing is left.


def refused(folder, *words, split="train", **options):
    with pytest.raises(ValueError) as error:
        folder.source(split, **options)
    for word in words:
        assert word in str(error.value)
    prepared = folder.root.parent / "prepared/folder"
    if prepared.exists():
        assert [p.name for p in prepared.iterdir()] == [".lock"]


def test_missing_root(folder):
    folder.root.rmdir()
    refused(folder, str(folder.root), "data root", "<root>/<split>/images")


def test_root_without_splits(folder):
    refused(folder, str(folder.root), "<root>/<split>/images")


def test_missing_masks_folder(folder):
    (folder.root / "train/images").mkdir(parents=True)
    refused(folder, "train/masks", "does not exist")


def test_the_name_of_a_split_needs_a_letter_or_a_digit(folder):
    folder.fill(2)
    folder.fill(2, split="-")
    refused(folder, str(folder.root / "-"), "letter or a digit", "rename")


def test_empty_split(folder):
    folder.add("a", None, None)
    refused(folder, "'train' is empty")


def test_image_without_mask(folder):
    folder.add("a", RGB, MASK).add("b", RGB, None)
    refused(folder, "images/b.png has no mask", "add the mask or remove the image")


def test_mask_without_image(folder):
    folder.add("a", RGB, MASK).add("b", None, MASK)
    refused(folder, "masks/b.png has no image", "remove the mask")


def test_sizes_that_differ(folder):
    folder.add("a", RGB, MASK[:, :9])
    refused(folder, "images/a.png is 8x10", "masks/a.png is 8x9", "same size")


def test_a_mask_that_was_not_turned_with_its_image(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder.add("a", None, MASK)
    image = Image.fromarray(RGB)
    image.save(folder.root / "train/images/a.png", exif=exif)
    refused(
        folder, "a.png is 10x8", "is 8x10", "turned by its EXIF data", "turn the mask"
    )
    image.save(folder.root / "train/images/a.png")
    assert len(folder.source()) == 1


def test_link_to_nothing(folder):
    folder.add("a", RGB, MASK)
    (folder.root / "train/images/b.png").symlink_to("/nowhere/b.png")
    refused(folder, "images/b.png is a symbolic link to /nowhere/b.png", "remove")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_truncated_image(folder, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    folder.add("good", RGB, MASK).add("torn", noise, MASK, suffix=suffix)
    path = folder.root / f"train/images/torn{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    refused(folder, f"images/torn{suffix}", "truncated", "replace or remove")


def test_truncated_mask(folder):
    mask = np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8)
    folder.add("a", np.zeros((64, 64, 3), np.uint8), mask)
    path = folder.root / "train/masks/a.png"
    path.write_bytes(path.read_bytes()[:-200])
    refused(folder, "masks/a.png", "truncated")


def test_text_called_png(folder):
    folder.add("a", None, MASK)
    (folder.root / "train/images/a.png").write_text("no picture")
    refused(folder, "images/a.png", "not a PNG")


def test_empty_file(folder):
    folder.add("a", None, MASK)
    (folder.root / "train/images/a.png").touch()
    refused(folder, "images/a.png", "is empty")


def test_file_that_is_no_image(folder):
    folder.add("a", RGB, MASK)
    (folder.root / "train/images/notes.txt").write_text("x")
    refused(folder, "images/notes.txt is not an image", "move it")


def test_two_images_of_one_stem(folder):
    folder.add("a", RGB, MASK).add("a", RGB, MASK, suffix=".jpg")
    refused(folder, "a.jpg", "a.png", "same stem")


def test_label_out_of_range(folder):
    mask = MASK.copy()
    mask[2, 3] = 37
    folder.describe(classes=["x", "y", "z"], void=11).add("a", RGB, mask)
    refused(folder, "masks/a.png", "37", "row 2, column 3", "0 to 2", "[11, 255]")


def test_sixteen_bit_label_out_of_range(folder):
    mask = MASK.astype(np.uint16)
    mask[2, 3] = 256  # would be 0 if cut to eight bits
    folder.add("a", RGB, Image.fromarray(mask))
    refused(folder, "masks/a.png", "256", "row 2, column 3")


def test_color_without_meaning(folder):
    mask = np.zeros((8, 10, 3), np.uint8)
    mask[1, 2] = (1, 2, 3)
    folder.describe(classes=["x", "y"], palette=[[0, 0, 0], [9, 9, 9]])
    folder.add("a", RGB, mask)
    refused(folder, "masks/a.png", "[1, 2, 3]", "row 1, column 2", "palette has 2")


def test_colors_without_palette(folder):
    folder.add("a", RGB, RGB)
    refused(folder, "masks/a.png", "classes.json with a palette")


def test_black_and_white_masks_without_description(folder):
    folder.add("a", RGB, np.where(MASK > 0, 255, 0).astype(np.uint8))
    refused(folder, "only the values 0 and 255", "background", '"masks": "colors"')


def test_mask_in_jpeg(folder):
    folder.add("a", RGB, MASK, mask_suffix=".jpg")
    refused(folder, "masks/a.jpg", "save masks as PNG")


def test_sixteen_bit_image(folder):
    folder.add("a", Image.fromarray(GRAY.astype(np.uint16) * 100), MASK)
    refused(folder, "images/a.png", "8 bits")


def test_image_of_several_pages(folder):
    folder.add("a", None, MASK)
    pages = [Image.fromarray(RGB)] * 2
    pages[0].save(
        folder.root / "train/images/a.tif", save_all=True, append_images=pages[1:]
    )
    refused(folder, "images/a.tif", "2 pages")


def test_channels_other_than_one_or_three(folder):
    folder.add("a", RGB, MASK)
    refused(folder, "channels must be 1 or 3, not 4", channels=4)


@pytest.mark.parametrize(
    "content, words",
    [
        ({"void": 3}, '"classes"'),
        ({"classes": ["x"], "color": 1}, "color"),
        ({"classes": ["x", "x"]}, "different names"),
        ({"classes": []}, "different names"),
        ({"classes": "xy"}, "different names"),
        ({"classes": ["x"], "void": 300}, "300"),
        ({"classes": ["x"], "void": "none"}, '"void" must be'),
        ({"classes": ["x"], "palette": [[0, 0]]}, '"palette" must list colors'),
        ({"classes": ["x"], "palette": {"x": [0, 0, 0]}}, '"palette" must list'),
        ({"classes": ["x", "y"], "palette": [[0, 0, 0]]}, "1 colors for 2 classes"),
        ({"classes": ["x", "y"], "palette": [[1, 1, 1], [1, 1, 1]]}, "same color"),
        (
            {"classes": ["x"], "palette": [[1, 1, 1]], "void": [[1, 1, 1]]},
            "same color",
        ),
        ({"classes": ["x"], "palette": "rainbow"}, "unknown palette 'rainbow'"),
        ({"classes": ["x"], "palette": "camvid"}, "is for 11 classes, not 1"),
        ({"classes": ["x"], "masks": "colors"}, "with a palette"),
        ({"classes": ["x"], "masks": "rgb"}, "rgb"),
        ({"classes": ["x"]}, "nothing to learn"),
        ({"classes": ["x"], "void": 0}, "'background' and 'x'"),
    ],
)
def test_bad_description_of_classes(folder, content, words):
    folder.add("a", RGB, MASK).describe(**content)
    refused(folder, "classes.json", words)


def test_description_that_is_no_json(folder):
    folder.add("a", RGB, MASK)
    (folder.root / "classes.json").write_text("{")
    refused(folder, "classes.json", "not valid JSON")


@pytest.mark.parametrize("content", [b"[" * 10**5, b"\xff\xfe", b"null"])
def test_description_that_is_damaged(folder, content):
    folder.add("a", RGB, MASK)
    (folder.root / "classes.json").write_bytes(content)
    refused(folder, "classes.json")


def test_pipes_and_folders_are_no_images_and_no_descriptions(folder):
    folder.add("a", RGB, MASK)
    for make in (os.mkfifo, os.mkdir):
        make(folder.root / "train/images/b.png")
        refused(folder, "b.png", "is not an image")
        os.rename(folder.root / "train/images/b.png", folder.root / make.__name__)
    os.mkfifo(folder.root / "classes.json")
    refused(folder, "classes.json", "not a regular file")
