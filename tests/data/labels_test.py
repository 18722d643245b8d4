"""Masks: one picture has one meaning, however it is stored, or is refused by name."""

import io
import itertools
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxseg.data.datasets.classes import Classes
from jaxseg.data.datasets.labels import LabelReader
from jaxseg.data.masks import read_mask

IMAGE = np.zeros((8, 10, 3), np.uint8)
MASK = np.tile(np.array([0, 1, 2, 1, 0], np.uint8), (8, 2))
BINARY = (MASK > 0).astype(np.uint8)


def gray_png(values, bits):
    """A gray PNG of 1, 2 or 4 bits, which Pillow does not write."""
    height, width = values.shape
    digits = np.unpackbits(values[..., None], axis=-1)[..., -bits:]
    rows = np.packbits(digits.reshape(height, -1), axis=-1)
    content = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, chunk in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b"")):
        data += struct.pack(">I", len(chunk)) + name + chunk
        data += struct.pack(">I", zlib.crc32(name + chunk))
    return data


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encodings(picture, order=0):
    """All lossless files that show a picture, uint8 [H, W, 3]: {name: bytes}."""
    rgb = Image.fromarray(picture)
    files = {
        "rgb.png": saved(rgb, "PNG"),
        "rgba.png": saved(rgb.convert("RGBA"), "PNG"),
        "rgb.tif": saved(rgb, "TIFF", compression="tiff_lzw"),
        "rgb.bmp": saved(rgb, "BMP"),
        "rgb.webp": saved(rgb, "WEBP", lossless=True),
    }
    colors, index = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    rng = np.random.default_rng(order)
    for n in range(2):  # the order of colors, and any other
        place = np.arange(len(colors)) if n == 0 else rng.permutation(len(colors))
        palette = np.zeros_like(colors)
        palette[place] = colors
        indexed = Image.fromarray(place[index].astype(np.uint8).reshape(MASK.shape))
        indexed.putpalette(palette.ravel().tolist())
        for kind in ("PNG", "TIFF", "BMP", "GIF"):
            files[f"palette{n}.{kind.lower()}"] = saved(indexed, kind)
    levels = picture[..., 0]
    if (picture == levels[..., None]).all():
        gray = Image.fromarray(levels)
        for kind in ("PNG", "TIFF", "BMP", "GIF"):
            files[f"gray.{kind.lower()}"] = saved(gray, kind)
        files["la.png"] = saved(gray.convert("LA"), "PNG")
        for bits, step in ((1, 255), (2, 85), (4, 17)):
            if not (levels % step).any():
                files[f"gray{bits}.png"] = gray_png(levels // step, bits)
        if not (levels % 255).any():
            for kind in ("PNG", "TIFF", "BMP", "GIF"):
                files[f"bit.{kind.lower()}"] = saved(gray.convert("1"), kind)
    return files


LEVELS = [(0, 1, 2, 3), (0, 255), (0, 85, 170, 255), (0, 17, 34, 255), (0, 1, 255)]
GRAYS = [tuple((v,) * 3 for v in levels) for levels in LEVELS]
COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (255, 255, 255))


@st.composite
def descriptions(draw):
    """A description that does not fit the masks, or fits by chance."""
    number = draw(st.sampled_from([0, 2, 3, 4, 200]))
    if not number:
        return Classes()
    names = tuple(map(str, range(number)))
    void = draw(st.sampled_from([(), (255,), (0,), (3, 255)]))
    if number == 200 or draw(st.booleans()):
        return Classes(names, void)
    colors = draw(st.permutations(draw(st.sampled_from([*GRAYS, COLORS]))))
    if number > len(colors):
        return Classes(names, void)
    masks = draw(st.sampled_from(["indices", "colors"]))
    rest = tuple(colors[number:]) if draw(st.booleans()) else ()
    return Classes(names, void, rest, tuple(colors[:number]), masks)


def labels_of(path, classes):
    """The labels of a data set of this mask alone; None if it is refused by name."""
    reader = LabelReader(classes, path.parent)
    try:
        label = reader.read(path)
        reader.names()
    except ValueError as error:
        assert str(path.parent) in str(error)
        return None
    return label


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    classes=descriptions(),
    colors=st.sampled_from([*GRAYS, COLORS]),
    numbers=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    order=st.integers(0, 100),
)
def test_one_picture_has_one_meaning(tmp_path, classes, colors, numbers, order):
    picture = np.array(colors, np.uint8)[np.array(numbers) % len(colors)]
    picture = np.tile(picture.reshape(2, 4, 3), (4, 3, 1))[:8, :10]
    found = {}
    files = encodings(picture, order)
    if classes.palette is None and (picture != picture[..., :1]).any():
        # Without described colors the index counts.
        files = {n: f for n, f in files.items() if "palette1" not in n}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        if (label := labels_of(tmp_path / name, classes)) is not None:
            found[name] = label
    for (name, label), (other, same) in itertools.pairwise(found.items()):
        np.testing.assert_array_equal(label, same, f"{name} and {other}")


@pytest.mark.parametrize("name", encodings(np.repeat(MASK[..., None], 3, -1)))
def test_class_numbers_in_every_encoding(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(encodings(np.repeat(MASK[..., None], 3, -1))[name])
    if (label := labels_of(path, Classes(("a", "b", "c")))) is None:
        assert name.startswith("palette1")  # in another order, so both could be meant
    else:
        np.testing.assert_array_equal(label, MASK)


@pytest.mark.parametrize("colors", [((0, 0, 0), (255, 255, 255)), COLORS[:3]])
def test_described_colors_in_every_encoding(tmp_path, colors):
    number = len(colors)
    picture = np.array(colors, np.uint8)[MASK % number]
    classes = Classes(
        tuple(map(str, range(number))), palette=colors[::-1], masks="colors"
    )
    for name, data in encodings(picture, 3).items():
        (tmp_path / name).write_bytes(data)
        if number == 2 and name == "palette0.bmp":
            with pytest.raises(ValueError, match="convert it to PNG"):
                read_mask(tmp_path / name)  # Pillow would decode it wrongly
            continue
        label = LabelReader(classes, tmp_path).read(tmp_path / name)
        np.testing.assert_array_equal(label, number - 1 - MASK % number, name)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_numbers_not_gray_levels(folder, bits):
    mask = MASK if bits > 1 else BINARY
    folder.add("a", IMAGE, None)
    (folder.root / "train/masks/a.png").write_bytes(gray_png(mask, bits))
    np.testing.assert_array_equal(folder.source()[0]["label"], mask)


def refused(folder, *words, split="train"):
    with pytest.raises(ValueError) as error:
        folder.source(split)
    for word in words:
        assert word in str(error.value)


def test_one_bit_and_eight_bits_in_black_and_white(folder):
    folder.add("a", IMAGE, Image.fromarray(BINARY * 255).convert("1"))
    folder.add("b", IMAGE, BINARY * 255)
    refused(folder, "masks/a.png", "masks/b.png", "white", '"masks": "colors"')
    folder.describe(
        classes=["out", "in"], palette=[[0, 0, 0], [255, 255, 255]], masks="colors"
    )
    for record in folder.source():
        np.testing.assert_array_equal(record["label"], BINARY)


def palette_mask(*colors, mask=MASK):
    image = Image.fromarray(mask)
    image.putpalette([c for color in colors for c in color])
    return image


def test_palettes_that_differ(folder):
    black, red, green = (0, 0, 0), (255, 0, 0), (0, 255, 0)
    folder.add("a", IMAGE, palette_mask(black, red, mask=BINARY))
    folder.add("b", IMAGE, palette_mask(black, green, mask=BINARY))
    refused(folder, "masks/a.png", "masks/b.png", "value 1", "[0, 255, 0]")
    folder.describe(classes=list("xyz"), palette=[black, red, green], masks="colors")
    labels = {r["name"]: r["label"] for r in folder.source()}
    np.testing.assert_array_equal(labels["a"], BINARY)
    np.testing.assert_array_equal(labels["b"], BINARY * 2)


def test_a_palette_that_contradicts_the_description(folder):
    colors = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
    folder.describe(classes=list("xyz"), palette=colors)
    folder.add("a", IMAGE, palette_mask(colors[0], colors[2], colors[1]))
    refused(folder, "masks/a.png", "value 1 means 'y'", "described as 'z'", "colors")


def test_the_meaning_is_held_over_splits(folder):
    folder.add("a", IMAGE, palette_mask((0, 0, 0), (9, 0, 0), (0, 9, 0)))
    folder.add("b", IMAGE, palette_mask((0, 0, 0), (0, 9, 0), (9, 0, 0)), split="val")
    refused(folder, "train/masks/a.png", "val/masks/b.png")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"format": "JPEG"}),
        ("a.png", {"format": "JPEG"}),
        ("a.tif", {"format": "TIFF", "compression": "jpeg"}),
        ("a.webp", {"format": "WEBP", "quality": 90}),
        ("a.png", {"format": "WEBP", "quality": 90}),
    ],
)
def test_lossy_masks_are_refused_in_any_container(tmp_path, name, options):
    image = Image.fromarray(MASK * 40)
    if options["format"] == "WEBP":
        image = image.convert("RGBA")
        image.putalpha(Image.fromarray(MASK * 80))
    image.save(tmp_path / name, **options)
    with pytest.raises(ValueError, match=f"{name}: .* does not preserve the labels"):
        read_mask(tmp_path / name)


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_colors_that_are_not_exact_are_refused(tmp_path, mode):
    Image.fromarray(IMAGE).convert(mode).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif"):
        read_mask(tmp_path / "a.tif")


# Gray levels are not class numbers.


def ready(error):
    """The classes.json in a message."""
    text = str(error.value)
    return json.loads(text[text.index('{"classes"') : text.rindex("}") + 1])


@pytest.mark.parametrize(
    ("levels", "names"),
    [
        ((0, 128), ["background", "object"]),
        ((0, 255), ["background", "object"]),
        ((0, 100, 200), ["class_0", "class_100", "class_200"]),
        ((0, 5, 255), ["class_0", "class_5"]),
        ((1, 2), ["background", "object"]),
    ],
)
def test_gray_levels_are_refused_with_a_description_that_works(folder, levels, names):
    number = len(levels)
    folder.add("a", IMAGE, np.array(levels, np.uint8)[MASK % number])
    with pytest.raises(ValueError, match=f"{levels[1]} in [0-9]+ pixels") as error:
        folder.source()
    description = ready(error)
    assert description["classes"] == names
    folder.describe(**description)
    expected = MASK % number
    if 255 in levels and number == 3:
        expected = np.where(expected == 2, 255, expected)
    np.testing.assert_array_equal(folder.source()[0]["label"], expected)


def test_indices_with_gaps_are_refused_with_their_colors(folder):
    colors = np.arange(48, dtype=np.uint8).reshape(16, 3).tolist()
    folder.add("a", IMAGE, palette_mask(*colors, mask=MASK * 7))
    with pytest.raises(ValueError, match="without gaps") as error:
        folder.source()
    folder.describe(**ready(error))
    source = folder.source()
    np.testing.assert_array_equal(source[0]["label"], MASK)
    assert source.info.palette == ((0, 1, 2), (21, 22, 23), (42, 43, 44))


def test_sixteen_bits_with_gaps_are_refused_with_the_values_in_between(folder):
    folder.add("a", IMAGE, Image.fromarray(MASK.astype(np.uint16) * 3))
    with pytest.raises(ValueError, match="without gaps") as error:
        folder.source()
    folder.describe(**ready(error))
    np.testing.assert_array_equal(folder.source()[0]["label"], MASK)


def test_soft_edges_are_refused(folder):
    soft = np.arange(80, dtype=np.uint8).reshape(8, 10)
    folder.add("a", IMAGE, soft)
    refused(folder, "80 different values", "soft edges", "threshold")


def test_more_classes_than_masks_are_refused(folder):
    for i in range(16):
        folder.add(str(i), IMAGE, np.full((8, 10), i, np.uint8))
    assert folder.source().info.num_classes == 16
    folder.add("0", IMAGE, np.where(BINARY, 16, 0).astype(np.uint8))
    refused(folder, "17 different values, more than 16")


def test_a_class_that_never_occurs_while_an_undescribed_value_does(folder):
    folder.add("a", IMAGE, BINARY * 255).describe(classes=["background", "thing"])
    with pytest.raises(ValueError, match="'thing' occurs in no mask") as error:
        folder.source()
    assert ready(error)["classes"] == ["background", "thing"]
    folder.describe(**ready(error))
    np.testing.assert_array_equal(folder.source()[0]["label"], BINARY)


def test_a_class_that_never_occurs_beside_void(folder):
    mask = np.where(MASK == 2, 255, MASK).astype(np.uint8)
    folder.add("a", IMAGE, mask).describe(classes=["a", "b", "c"])
    refused(folder, "'c' occurs in no mask", '"void": 255')
    folder.describe(classes=["a", "b", "c"], void=255)
    np.testing.assert_array_equal(folder.source()[0]["label"], mask)
    folder.describe(classes=["a", "b"])  # 255 is void in any case
    np.testing.assert_array_equal(folder.source()[0]["label"], mask)
