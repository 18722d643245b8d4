"""Files of every kind: read as a viewer shows them, or refused by name."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from jaxseg.data import images, masks
from jaxseg.data.images import (
    ImageTooLargeError,
    decode_image,
    decode_label,
    read_encoded_image,
    read_image,
)
from jaxseg.data.masks import read_mask

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


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_frames_and_pages_are_refused(tmp_path, name):
    frames = [Image.fromarray(np.roll(RGB, i)) for i in range(3)]
    path = save(tmp_path, name, frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=f"{name}: contains 3 pages or frames"):
        read_image(path)


def test_an_image_too_large_to_be_scored_whole_names_its_size(tmp_path, monkeypatch):
    path = save(tmp_path, "x.png", Image.fromarray(RGB))
    monkeypatch.setattr(images, "LARGEST_WHOLE_PX", 47)
    with pytest.raises(ImageTooLargeError, match=r"x\.png: .*6x8.* 48 pixels.* is 47"):
        read_image(path)
    # An image of a data set may be larger.
    assert read_encoded_image(path)[1] == (6, 8)
    for module in (images, masks):
        monkeypatch.setattr(module, "LARGEST_RECORD_PX", 47)
    for read in (read_encoded_image, read_mask):
        with pytest.raises(ImageTooLargeError, match=r"x\.png: .* is 47"):
            read(path)
    monkeypatch.setattr(images, "_expected_px", 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    images.expect_large_images()
    np.testing.assert_array_equal(read_image(path), RGB)


def header_only(width, height):
    """A PNG of 57 bytes that claims a size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [chunk, b"IDAT"]
    packed = (
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
        for c in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("side", [9_000, 20_000, 2**31 - 1])
def test_an_absurd_size_in_a_header_is_refused_before_it_is_decoded(tmp_path, side):
    path = write(tmp_path, "x.png", header_only(side, side))
    with pytest.raises(ImageTooLargeError, match=r"x\.png: too large"):
        read_image(path)


def test_a_side_that_png_cannot_have_is_refused_for_a_data_set(tmp_path, monkeypatch):
    path = save(tmp_path, "x.tif", Image.fromarray(RGB))
    monkeypatch.setattr(images, "LARGEST_RECORD_SIDE", 7)
    with pytest.raises(ImageTooLargeError, match=r"x\.tif: a side has 8 pixels"):
        read_encoded_image(path)


@pytest.mark.filterwarnings("error")
def test_large_images_are_read_without_a_warning(tmp_path, monkeypatch):
    path = save(tmp_path, "x.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    np.testing.assert_array_equal(read_image(path), RGB)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n"
HEADERS = {
    "EPS": EPS,
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 6, 8, 8, 3) + bytes(40),
    "DOS EPS": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS,
}


OTHER_FORMATS = (
    "PPM", "ICO", "PDF", "PCX", "TGA", "SGI", "DDS", "JPEG2000", "ICNS",
)  # fmt: skip


def encoded_as(kind):
    if kind in HEADERS:
        return HEADERS[kind]
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [*HEADERS, *OTHER_FORMATS])
@pytest.mark.parametrize("read", [read_image, read_encoded_image, read_mask])
def test_the_content_of_a_file_opens_no_other_decoder(
    tmp_path, monkeypatch, kind, read
):
    def fail(*args, **kwargs):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", fail)
    path = write(tmp_path, "x.png", encoded_as(kind))
    with pytest.raises(
        ValueError, match=r"x\.png: not a PNG, JPEG, WebP, TIFF, BMP or GIF image"
    ):
        read(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "MPO", "BMP", "GIF"])
def test_the_content_of_a_file_opens_its_own_decoder(tmp_path, kind):
    path = write(tmp_path, "x.png", encoded_as(kind))
    assert read_image(path).shape == RGB.shape


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_stored_images_are_png_or_jpeg(kind):
    for decode in (decode_image, decode_label):
        with pytest.raises(ValueError, match="neither PNG nor JPEG"):
            decode(encoded_as(kind))


def test_stored_images_have_the_size_that_is_expected():
    assert decode_image(encoded_as("PNG"), size=(6, 8)).shape == (6, 8, 3)
    assert decode_label(encoded_as("JPEG"), size=(6, 8)).shape == (6, 8)
    with pytest.raises(ValueError, match=r"\(60000, 60000\) instead of \(6, 8\)"):
        decode_image(header_only(60_000, 60_000), size=(6, 8))
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_image(header_only(8, 6), size=(6, 8))


@pytest.mark.parametrize("read", [read_image, read_encoded_image, read_mask])
def test_only_regular_files_are_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png"):
        with pytest.raises(ValueError, match=f"{name}: not a regular file"):
            read(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read(tmp_path / "folder.png")


def test_a_file_above_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(images.LARGEST_FILE + 1)  # sparse
    with pytest.raises(ValueError, match=r"x\.png: .* bytes, more than the limit"):
        read_image(tmp_path / "x.png")


def test_a_damaged_orientation_is_named(tmp_path):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(RGB).save(buffer, "JPEG", exif=exif)
    data = bytearray(buffer.getvalue())
    at = data.index(b"Exif")
    for i in range(at + 6, at + 26):
        changed = bytes(data[:i]) + b"\xff" + bytes(data[i + 1 :])
        path = write(tmp_path, "x.jpg", changed)
        try:
            assert read_image(path).size == RGB.size
        except ValueError as error:
            assert "x.jpg: " in str(error)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0MM\0*\0\0",  # ends too early
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",  # more entries than bytes
        b"Exif\0\0no TIFF header",
    ],
)
def test_broken_exif_data_are_named_and_the_pixels_are_read(
    tmp_path, kind, exif, caplog
):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind, exif=exif)
    path = write(tmp_path, "x.img", buffer.getvalue())
    image = read_image(path)
    assert image.shape == RGB.shape
    assert f"{path}: its EXIF data are damaged" in caplog.text
    assert read_encoded_image(path)[1] == (6, 8)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation(tmp_path, turn):
    exif = Image.Exif()
    exif[0x112] = turn
    picture = Image.fromarray(RGB)
    path = save(tmp_path, "x.png", picture, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(path))
    np.testing.assert_array_equal(read_image(path), np.asarray(expected))
    assert images.is_turned(path) == (turn >= 5)


def test_broken_files_are_named(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    cut = write(tmp_path, "cut.png", buffer.getvalue()[:60])
    with pytest.raises(ValueError, match=r"cut\.png: truncated or damaged"):
        read_image(cut)
    with pytest.raises(ValueError, match=r"text\.png: not a PNG, JPEG, WebP"):
        read_image(write(tmp_path, "text.png", b"no image"))


def test_masks_of_sixteen_bits_are_numbers(tmp_path):
    labels = RGB[..., 0].astype(np.uint16) * 2
    path = save(tmp_path, "mask.png", Image.fromarray(labels))
    np.testing.assert_array_equal(read_mask(path).values, labels)


def test_what_only_one_decoder_reads_is_encoded_again(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:33] + content[8:])  # its header twice
    data, size = read_encoded_image(path)
    assert size == RGB.shape[:2]
    np.testing.assert_array_equal(decode_image(data), RGB)
