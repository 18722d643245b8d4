"""Windows of TIFF files against Pillow, which reads them whole."""

import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxseg.data.images import read_image
from jaxseg.data.tiff import open_windows

IMAGE = np.random.default_rng(0).integers(0, 256, (330, 70, 3), np.uint8)
GRAY = IMAGE[..., 0]
ALPHA = np.dstack([IMAGE, GRAY])


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (IMAGE, {}),
        (IMAGE, {"byteorder": ">"}),
        (IMAGE, {"bigtiff": True}),
        (IMAGE, {"rowsperstrip": 33, "compression": "zlib", "predictor": True}),
        (IMAGE, {"rowsperstrip": 7, "compression": "packbits"}),
        (IMAGE, {"tile": (64, 32)}),
        (IMAGE, {"tile": (64, 32), "compression": "zlib"}),
        (GRAY, {"tile": (64, 32), "compression": "zlib"}),
        (GRAY, {}),
        (ALPHA, {"tile": (64, 32), "extrasamples": ["unassalpha"]}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_are_cut_out_of_what_pillow_reads(tmp_path, image, options, channels):
    path = tmp_path / "x.tif"
    kind = "minisblack" if image.ndim == 2 else "rgb"
    tifffile.imwrite(path, image, photometric=kind, **options)
    whole, windows = read_image(path, channels), open_windows(path, channels)
    for name in ("shape", "dtype", "ndim", "size"):
        assert getattr(windows, name) == getattr(whole, name)
    # Downwards in steps that overlap, back to the top, and beyond the borders.
    for top in (0, 30, 200, 300, 5):
        for left in (0, 10, 60):
            window = np.s_[top : top + 64, left : left + 32]
            np.testing.assert_array_equal(windows[window], whole[window])


def test_no_more_is_held_than_a_window_touches(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "x.tif", IMAGE, tile=(16, 16), compression="zlib")
    windows = open_windows(tmp_path / "x.tif", 3)
    read, numbers = windows._read, []
    monkeypatch.setattr(windows, "_read", lambda n: numbers.append(n) or read(n))
    for top in range(0, 96, 16):
        windows[top : top + 32, :16]
        windows[top : top + 32, 16:32]
        assert len(windows._bands) == 2
    assert numbers == [*range(7)]


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (IMAGE, {"photometric": "rgb", "extratags": [(274, "H", 1, 6, True)]}),
        (IMAGE.astype(np.uint16), {"photometric": "rgb"}),
        (IMAGE.astype(np.float32), {"photometric": "rgb"}),
        (IMAGE.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}),
        (ALPHA, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        (ALPHA, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
        (ALPHA, {"photometric": "separated"}),
        (GRAY, {"photometric": "miniswhite"}),
        (np.stack([GRAY, GRAY]), {"photometric": "minisblack"}),
        (GRAY, {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
    ],
)
def test_what_is_not_plain_is_left_to_the_strict_reader(tmp_path, image, options):
    tifffile.imwrite(tmp_path / "x.tif", image, **options)
    assert open_windows(tmp_path / "x.tif", 3) is None


def test_other_formats_and_no_files_are_left_to_it_too(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "x.png")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "short.tif").write_bytes(b"II*\0\x08\0\0\0\xff")
    for name in ("x.png", "empty.tif", "short.tif", "none.tif"):
        assert open_windows(tmp_path / name, 3) is None


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (64, 64)}])
def test_a_truncated_file_is_named(tmp_path, options):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", **options)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"x\.tif: truncated or damaged"):
        open_windows(path, 3)[300:330, :]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.tif")
    assert open_windows(tmp_path / "x.tif", 3) is None


@pytest.mark.parametrize("kind, side", [("Image", 2**18), ("Tile", 2**17)])
def test_an_absurd_size_is_left_to_the_strict_reader(tmp_path, kind, side):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, IMAGE, tile=(16, 16), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in (f"{kind}Length", f"{kind}Width"):
            file.pages.first.tags[name].overwrite(side, dtype="I")
    assert open_windows(path, 3) is None


@pytest.mark.parametrize("name", ["TileLength", "TileWidth", "ImageWidth"])
@pytest.mark.parametrize("value", [0, (16, 16), 16.5])
def test_sides_that_are_none_are_left_to_it_in_silence(tmp_path, capfd, name, value):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, IMAGE, tile=(16, 16), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as file:
        kind = "f" if isinstance(value, float) else "H"
        file.pages.first.tags[name].overwrite(value, dtype=kind)
    assert open_windows(path, 3) is None
    assert capfd.readouterr().err == ""
