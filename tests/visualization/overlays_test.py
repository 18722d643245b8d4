import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.data.palette import voc_palette
from jaxseg.visualization import overlays
from jaxseg.visualization.overlays import (
    VOID_COLOR,
    colorize,
    index_png,
    index_png_rows,
    overlay,
    overlay_with_legend,
    validation_panel,
    write_png,
)

PALETTE = ((200, 0, 0), (0, 100, 0), (0, 0, 50))
NAMES = ("red", "green", "blue")


def sample(height=37, width=51):
    """A gray image; the left half class 0, the right class 1, the top row void."""
    image = np.full((height, width, 3), 90, np.uint8)
    classes = np.zeros((height, width), np.uint8)
    classes[:, width // 2 :] = 1
    classes[0] = 255
    return image, classes


def colors_of(picture):
    return {tuple(color) for color in np.reshape(picture, (-1, 3)).tolist()}


def test_colorize():
    np.testing.assert_array_equal(
        colorize(np.array([[0, 2], [255, 1]]), PALETTE),
        [[PALETTE[0], PALETTE[2]], [VOID_COLOR, PALETTE[1]]],
    )


def test_index_png_holds_both_numbers_and_colors(tmp_path):
    _, classes = sample()
    path = tmp_path / "a.png"
    path.write_bytes(b"an older file")
    index_png(path, classes, PALETTE)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), classes)
        np.testing.assert_array_equal(
            np.asarray(picture.convert("RGB")), colorize(classes, PALETTE)
        )


def test_write_png(tmp_path):
    image, _ = sample()
    write_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), image)


def test_index_png_can_be_written_row_by_row(tmp_path):
    """To the byte what all rows at once give: rows are not padded, nor is any lost."""
    classes = np.random.default_rng(0).integers(0, 3, (37, 23))
    index_png(tmp_path / "whole.png", classes, PALETTE)
    with index_png_rows(tmp_path / "rows.png", classes.shape, PALETTE) as write:
        for rows in np.split(classes, (1, 20, 20, 36)):
            write(rows)
    for name in ("whole.png", "rows.png"):
        with Image.open(tmp_path / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), classes)
    # OpenCV reads the colors by a decoder of its own.
    colors = cv2.imread(str(tmp_path / "rows.png"))[..., ::-1]
    np.testing.assert_array_equal(colors, colorize(classes, PALETTE))


def test_index_png_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"an older file")
    _, classes = sample()
    with (
        pytest.raises(OSError, match="disk full"),
        index_png_rows(path, classes.shape, PALETTE) as write,
    ):
        write(classes[:1])
        raise OSError("disk full")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"an older file"


def test_write_png_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"an older file")

    def half(self, file, **kwargs):
        file.write_bytes(b"half a")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        write_png(path, sample()[0])
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"an older file"


@pytest.mark.parametrize("bad", [3, 254, -1, 300])
def test_numbers_without_color_are_refused(bad):
    with pytest.raises(ValueError, match=f"value {bad} .* 3 colors"):
        colorize(np.array([[0, bad]]), PALETTE)


def test_overlay_by_hand():
    image, classes = sample()
    result = overlay(image, classes, PALETTE, alpha=0.25)
    assert result.dtype == np.uint8
    assert tuple(result[5, 0]) == (118, 68, 68)  # 0.75 * 90 + 0.25 * (200, 0, 0)
    assert tuple(result[5, -1]) == (68, 92, 68)
    np.testing.assert_array_equal(result[0], image[0])  # void
    np.testing.assert_array_equal(
        overlay(image, classes, PALETTE, 1.0)[1:], colorize(classes, PALETTE)[1:]
    )


@pytest.mark.parametrize("channels", [None, 1, 4])
def test_overlay_of_other_channels(channels):
    image, classes = sample()
    expected = overlay(image, classes, PALETTE)
    other = image[..., 0] if channels is None else image[..., [0] * channels]
    np.testing.assert_array_equal(overlay(other, classes, PALETTE), expected)


def test_overlay_of_another_size_is_refused():
    image, classes = sample()
    with pytest.raises(ValueError, match="must be equal"):
        overlay(image[1:], classes, PALETTE)


@pytest.mark.parametrize("size", [(37, 51), (200, 300), (1, 1)])
def test_legend_shows_the_classes_present_beside_the_picture(size):
    image, classes = sample(*size)
    result = overlay_with_legend(image, classes, PALETTE, NAMES)
    height, width = size
    np.testing.assert_array_equal(
        result[:height, :width], overlay(image, classes, PALETTE)
    )
    legend = colors_of(result[:, width:])
    for k, color in enumerate(PALETTE):
        assert (color in legend) == (k in classes)
    assert VOID_COLOR in legend
    # Text is there: ink away from the swatches.
    assert result[:, width + 22 :].min() < 64


def test_legend_of_many_classes_wraps():
    classes = np.arange(150, dtype=np.uint8).reshape(10, 15)
    image = np.zeros((10, 15, 3), np.uint8)
    palette = voc_palette(150)
    names = [f"class {k}" for k in range(150)]
    result = overlay_with_legend(image, classes, palette, names)
    assert result.shape[0] < 400
    assert set(palette) <= colors_of(result[:, 15:])


@pytest.mark.parametrize("size", [(37, 51), (120, 160)])
def test_panel_has_image_truth_and_prediction_of_each_sample(size):
    image, truth = sample(*size)
    prediction = np.full_like(truth, 2)
    panel = validation_panel(
        [image, image // 2], [truth] * 2, [prediction] * 2, PALETTE, NAMES
    )
    height, width = size
    expected = [
        [image, colorize(truth, PALETTE), colorize(prediction, PALETTE)],
        [image // 2, colorize(truth, PALETTE), colorize(prediction, PALETTE)],
    ]
    line, space = overlays._LINE, overlays._SPACE
    column = max(width, overlays._width("prediction")) + space
    for row, cells in enumerate(expected):
        top = line + row * (height + space)
        for i, cell in enumerate(cells):
            part = panel[top : top + height, i * column : i * column + width]
            np.testing.assert_array_equal(part, cell)
    assert set(PALETTE) <= colors_of(panel[:, 3 * column :])


def test_panel_shrinks_large_samples_and_mixes_sizes():
    large, small = sample(300, 1000), sample(30, 40)
    images, truths = zip(large, small)
    panel = validation_panel(images, truths, truths, PALETTE, NAMES, max_width=100)
    assert panel.shape[1] < 3 * 110 + 100
    # Labels are never blended: no colors between those of the classes.
    column = 100 + overlays._SPACE
    cell = panel[overlays._LINE : overlays._LINE + 30, column : column + 100]
    assert colors_of(cell) <= {*PALETTE, VOID_COLOR}


def test_panel_takes_an_image_smaller_than_its_truth():
    image, truth = sample(40, 60)
    panel = validation_panel([image[::2, ::2]], [truth], [truth], PALETTE, NAMES)
    top = overlays._LINE
    np.testing.assert_array_equal(panel[top : top + 40, :60], image)


def test_panel_refuses_what_does_not_fit():
    image, truth = sample()
    with pytest.raises(ValueError, match="1 images, 2 truths and 1 predictions"):
        validation_panel([image], [truth] * 2, [truth], PALETTE, NAMES)
    with pytest.raises(ValueError, match="0 images"):
        validation_panel([], [], [], PALETTE, NAMES)
    with pytest.raises(ValueError, match="must be equal"):
        validation_panel([image], [truth], [truth[1:]], PALETTE, NAMES)
