import errno

import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxseg.inference import files as files_module
from jaxseg.inference.files import InputFile, find_input_files, predict_file
from jaxseg.inference.predictor import Predictor
from jaxseg.inference.tiled import TiledPredictor
from tests.helpers import PALETTE, draw_image, make_metadata


def score(variables, image):
    """Tells apart dark, middling and bright in the first channel."""
    del variables
    x = image[..., :1].astype(jnp.float32) / 255
    return jnp.concatenate([1 - 2 * x, 0.4 * jnp.ones_like(x), 2 * x - 1], axis=-1)


def make(channels=3):
    """A predictor by `score`."""
    return Predictor(score, {}, make_metadata(channels=channels))


def expect(image):
    x = image[..., 0] / 255
    return np.stack([1 - 2 * x, np.full_like(x, 0.4), 2 * x - 1], axis=-1).argmax(-1)


@pytest.mark.parametrize("kind", ["rgb", "gray", "palette", "alpha", "turned"])
def test_files_of_every_kind_are_fed_as_a_viewer_shows_them(tmp_path, kind):
    predict = make()
    image = draw_image(24, 32)
    picture, options = Image.fromarray(image), {}
    if kind == "gray":
        image = np.repeat(image[..., :1], 3, axis=2)
        picture = Image.fromarray(image[..., 0])
    elif kind == "palette":
        picture = picture.quantize(16)
        image = np.asarray(picture.convert("RGB"))
    elif kind == "alpha":
        picture.putalpha(7)
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x112] = 6  # the camera was held upright: turn clockwise to see it
        options["exif"] = exif
        image = np.rot90(image, -1)
    picture.save(tmp_path / "image.png", **options)
    job = InputFile(
        tmp_path / "image.png", tmp_path / "a/out.png", tmp_path / "a/overlay.png"
    )
    predict_file(predict, job)

    with Image.open(job.index) as written:
        assert written.mode == "P"
        np.testing.assert_array_equal(np.asarray(written), expect(image))
        colors = np.asarray(written.convert("RGB"))
    with Image.open(job.overlay) as written:
        overlay = np.asarray(written)
    height, width = image.shape[:2]
    assert overlay.shape[0] >= height and overlay.shape[1] > width  # and a legend
    mixed = (image.astype(int) + colors) / 2
    assert np.abs(overlay[:height, :width] - mixed).max() <= 1
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "out.png",
        "overlay.png",
    ]


def test_a_gray_net_reads_colors_as_gray(tmp_path):
    predict = make(channels=1)
    image = draw_image(16, 24)
    Image.fromarray(image).save(tmp_path / "image.png")
    job = InputFile(
        tmp_path / "image.png", tmp_path / "out.png", tmp_path / "overlay.png"
    )
    predict_file(predict, job)
    gray = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    with Image.open(job.index) as written:
        np.testing.assert_array_equal(np.asarray(written), expect(gray))


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_folders_keep_their_inner_structure(tmp_path):
    touch(tmp_path, "in/b/x.JPG", "in/a/x.png", "in/y.tif", "in/.hidden/z.png")
    touch(tmp_path, "in/notes.txt", "in/.z.png", "in/out/x.png", "lone.webp")
    jobs = find_input_files(
        [tmp_path / "in", tmp_path / "lone.webp"], tmp_path / "in/out"
    )
    assert [str(job.image.relative_to(tmp_path)) for job in jobs] == [
        "in/y.tif",
        "in/a/x.png",
        "in/b/x.JPG",
        "lone.webp",
    ]
    out = tmp_path / "in/out"
    assert [job.index.relative_to(out).as_posix() for job in jobs] == [
        "y.png",
        "a/x.png",
        "b/x.png",
        "lone.png",
    ]
    assert jobs[1].overlay == out / "a/x_overlay.png"


def test_a_file_named_twice_is_done_once(tmp_path, monkeypatch):
    touch(tmp_path, "in/x.png")
    monkeypatch.chdir(tmp_path)
    paths = ["in/x.png", "in", "in/../in/x.png", tmp_path / "in/x.png"]
    assert len(find_input_files(paths, "out")) == 1


@pytest.mark.parametrize(
    "names",
    [
        ("in/x.png", "in/x.jpg"),
        ("in/a/x.png", "b/x.png"),
        ("in/x.png", "x_overlay.png"),
    ],
)
def test_images_that_would_share_an_output_are_both_named(tmp_path, names):
    touch(tmp_path, *names)
    paths = [tmp_path / name for name in names]
    with pytest.raises(ValueError, match="both be written to") as error:
        find_input_files(paths, tmp_path / "out")
    assert all(str(path) in str(error.value) for path in paths)


@pytest.mark.parametrize("names", [("x.png",), ("x.jpg", "x_overlay.png")])
def test_no_image_is_overwritten_by_a_prediction(tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=r"would overwrite the image .*png"):
        find_input_files([tmp_path], tmp_path)


def test_a_folder_without_images_is_named(tmp_path):
    touch(tmp_path, "in/notes.txt")
    with pytest.raises(ValueError, match=r"in has no images \(\.png, "):
        find_input_files([tmp_path / "in"], tmp_path / "out")


def plan(tmp_path, image, **options):
    Image.fromarray(image).save(tmp_path / "x.png")
    (job,) = find_input_files([tmp_path / "x.png"], tmp_path / "out", **options)
    return job


def test_entropy_is_written_where_it_is_asked_for(tmp_path):
    job = plan(tmp_path, draw_image(24, 32), uncertainty=True)
    assert job.entropy == tmp_path / "out" / "x_entropy.png"
    predict_file(make(), job)
    with Image.open(job.entropy) as picture:
        assert picture.mode == "RGB" and picture.width >= 32 and picture.height > 24
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_pictures_of_large_images_are_shrunk_and_classes_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "PICTURE_PX", 16)
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, 15:] = 255  # the border is within a pixel of the pictures
    job = plan(tmp_path, image, uncertainty=True)
    predict_file(make(), job)
    with Image.open(job.index) as written:
        np.testing.assert_array_equal(np.asarray(written), expect(image))
    mixed = (np.array([[0], [255]]) + np.array([PALETTE[0], PALETTE[2]])) / 2
    with Image.open(job.overlay) as written:
        overlay = np.asarray(written)
        assert np.abs(overlay[:12, :7] - mixed[0]).max() <= 1
        assert np.abs(overlay[:12, 8:16] - mixed[1]).max() <= 1
        # Of classes 0 and 2 there is no mean.
        between = (127.5 + np.array([PALETTE[0], PALETTE[2]])) / 2
        assert np.abs(overlay[0, 7] - between).max(axis=1).min() <= 1
    with Image.open(job.entropy) as written:
        colors = np.asarray(written)[:12, :16].reshape(-1, 3)
        assert len(np.unique(colors, axis=0)) == 1  # as sure of the one as the other


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    """The disk fills up in the second file: the first is whole, of it there is none."""
    save = Image.Image.save

    def fails(picture, path, **options):
        save(picture, path, **options)
        with open(path, "r+b") as file:
            file.truncate(20)
        raise OSError(errno.ENOSPC, "No space left on device")

    job = plan(tmp_path, draw_image(24, 32))
    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="No space left"):
        predict_file(make(), job)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.png"]
    with Image.open(job.index) as written:
        np.testing.assert_array_equal(np.asarray(written), expect(draw_image(24, 32)))


def test_an_image_that_is_read_by_windows_gives_the_same_files(tmp_path, monkeypatch):
    """Rows come and go in strips of tiles, bands of the file and blocks of the page."""
    monkeypatch.setattr(files_module, "PICTURE_PX", 30)
    image = draw_image(70, 53)
    tifffile.imwrite(tmp_path / "x.tif", image, tile=(16, 32), compression="zlib")
    whole = make()
    tiled = TiledPredictor(score, {}, whole.metadata, (24, 20))
    written = []
    for predictor, read in ((whole, "all"), (tiled, "windows")):
        args = [tmp_path / "x.tif"], tmp_path / read, True
        (job,) = find_input_files(*args)
        if read == "windows":
            monkeypatch.setattr(files_module, "read_image", None)
        predict_file(predictor, job)
        pictures = []
        for path in (job.index, job.overlay, job.entropy):
            with Image.open(path) as picture:
                pictures.append(np.asarray(picture).astype(int))
        written.append(pictures)
    for ours, theirs in zip(*written):
        assert ours.shape == theirs.shape
        # Sums over tiles round where one pass does not.
        assert np.abs(ours - theirs).max() <= 1
    np.testing.assert_array_equal(written[1][0], expect(image))
