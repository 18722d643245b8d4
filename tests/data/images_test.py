"""Files of every kind: read as a viewer shows them, or refused by name."""

import io
import struct

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxseg.data import images
from jaxseg.data.images import read_encoded_image, read_image, read_mask

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def tiff(array, extra=None):
    """An uncompressed TIFF of as many channels as there are; `extra` is their kind."""
    height, width, channels = array.shape
    bits = array.dtype.itemsize * 8
    shorts = {
        256: (width,),
        257: (height,),
        258: (bits,) * channels,
        259: (1,),
        262: (2,),
        277: (channels,),
        278: (height,),
        284: (1,),
    }
    if extra is not None:
        shorts[338] = (extra,) * (channels - 3)
    entries = len(shorts) + 2
    values = b""
    start = 8 + 2 + 12 * entries + 4
    rows = {}
    for tag, numbers in shorts.items():
        packed = struct.pack(f"<{len(numbers)}H", *numbers)
        if len(packed) > 4:
            packed, place = struct.pack("<I", start + len(values)), packed
            values += place
        rows[tag] = struct.pack("<HHI", tag, 3, len(numbers)) + packed.ljust(4, b"\0")
    rows[273] = struct.pack("<HHII", 273, 4, 1, start + len(values))
    rows[279] = struct.pack("<HHII", 279, 4, 1, array.nbytes)
    directory = b"".join(rows[tag] for tag in sorted(rows))
    head = b"II*\0" + struct.pack("<IH", 8, entries)
    return head + directory + bytes(4) + values + array.tobytes()


def write(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def save(tmp_path, name, picture, **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def test_cmyk_is_read_as_the_colors_it_prints(tmp_path):
    path = save(tmp_path, "x.tif", Image.fromarray(RGB).convert("CMYK"))
    np.testing.assert_array_equal(read_image(path), RGB)


def test_alpha_of_any_kind_is_dropped(tmp_path):
    picture = Image.fromarray(RGB)
    picture.putalpha(3)
    for name in ("x.png", "x.tif"):
        path = save(tmp_path, name, picture)
        np.testing.assert_array_equal(read_image(path), RGB)
    gray = Image.fromarray(RGB[..., 0])
    gray.putalpha(3)
    path = save(tmp_path, "gray.png", gray)
    np.testing.assert_array_equal(read_image(path), RGB[..., :1].repeat(3, axis=2))


def test_the_camera_s_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 8
    path = save(tmp_path, "x.png", Image.fromarray(RGB), exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB))


def test_a_tiff_written_by_hand_is_read(tmp_path):
    """What the refusals below are of: the same bytes but for their channels."""
    np.testing.assert_array_equal(read_image(write(tmp_path, "x.tif", tiff(RGB))), RGB)


@pytest.mark.parametrize(
    ("channels", "extra", "message"),
    [
        (4, 0, "additional channels of unspecified meaning"),
        (5, 0, "additional channels of unspecified meaning"),
        (7, 0, "unsupported kind of TIFF"),
        (2, None, "x.tif"),
    ],
)
def test_channels_of_unknown_meaning_are_refused(tmp_path, channels, extra, message):
    array = np.zeros((6, 8, channels), np.uint8)
    path = write(tmp_path, "x.tif", tiff(array, extra))
    with pytest.raises(ValueError, match=message) as error:
        read_image(path)
    assert str(path) in str(error.value)


def test_a_file_that_pillow_warns_of_too_is_refused_in_our_words_alone(
    tmp_path, recwarn
):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", bigtiff=True, byteorder=">")
    with pytest.raises(ValueError, match="unsupported kind of TIFF"):
        read_image(path)
    assert not recwarn.list


@pytest.mark.parametrize("name", ["gray.png", "rgb.png", "rgb.tif"])
@pytest.mark.parametrize("read", [read_image, read_encoded_image])
def test_sixteen_bits_are_refused_in_color_too(tmp_path, name, read):
    array = RGB.astype(np.uint16) * 200
    cv2.imwrite(str(tmp_path / name), array[..., 0] if "gray" in name else array)
    with pytest.raises(ValueError, match=f"{name}: more than 8 bits"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tif"])
def test_frames_and_pages_are_refused(tmp_path, name):
    frames = [Image.fromarray(np.roll(RGB, i)) for i in range(3)]
    path = save(tmp_path, name, frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=f"{name}: contains 3 pages or frames"):
        read_image(path)


def test_an_image_too_large_for_a_photograph_says_what_helps(tmp_path, monkeypatch):
    path = save(tmp_path, "x.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=r"x\.png: .*too large.*48 pixels.*tiles"):
        read_image(path)
    monkeypatch.setattr(images, "LARGEST_PX", 48)
    images.expect_large_images()
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.filterwarnings("error")
def test_large_images_are_read_without_a_warning(tmp_path, monkeypatch):
    path = save(tmp_path, "x.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    np.testing.assert_array_equal(read_image(path), RGB)


def test_broken_files_are_named(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    cut = write(tmp_path, "cut.png", buffer.getvalue()[:60])
    with pytest.raises(ValueError, match=r"cut\.png: truncated or damaged"):
        read_image(cut)
    with pytest.raises(ValueError, match=r"text\.png: not an image"):
        read_image(write(tmp_path, "text.png", b"no image"))


def test_masks_of_sixteen_bits_are_numbers(tmp_path):
    labels = RGB[..., 0].astype(np.uint16) * 2
    path = save(tmp_path, "mask.png", Image.fromarray(labels))
    np.testing.assert_array_equal(read_mask(path), labels)
