import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxseg import predictor as predictor_module
from jaxseg.evaluator import Evaluator
from jaxseg.predictor import Job, Predictor, plan_jobs, predict_file
from jaxseg.sharding import create_parallel
from jaxseg.steps import Normalization

NAMES = ("road", "sky", "tree")
PALETTE = ((128, 64, 128), (70, 130, 180), (0, 90, 0))


class Net(nn.Module):
    """A convolution of 5x5 to three classes: a pixel sees two around it."""

    @nn.compact
    def __call__(self, image, *, train):
        del train
        return nn.Conv(3, (5, 5))(image)


def make(image_size=None, channels=3):
    net = Net()
    shape = (1, 8, 8, channels)
    variables = net.init(jax.random.key(1), jnp.zeros(shape), train=False)
    metadata = {
        "channels": channels,
        "class_names": NAMES,
        "palette": PALETTE,
        "image_size": image_size,
        "normalization": {"mean": [120.0], "std": [60.0]},
    }
    return Predictor(net, variables, metadata), variables


def draw(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def expect(variables, image):
    normalized = (image[None].astype(np.float32) - 120) / 60
    return np.asarray(Net().apply(variables, normalized, train=False))[0].argmax(-1)


def test_predicts_the_network_s_best_class_of_every_pixel():
    predict, variables = make()
    image = draw(24, 40)
    classes = predict(image)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, expect(variables, image))
    assert set(np.unique(classes)) == {0, 1, 2}


@pytest.mark.parametrize("size", [(1, 1), (37, 51), (7, 64)])
def test_other_sizes_continue_their_last_row_and_column(size):
    predict, variables = make()
    image = draw(*size)
    height, width = size
    padded = np.pad(image, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    classes = predict(image)
    assert classes.shape == size
    np.testing.assert_array_equal(classes, expect(variables, padded)[:height, :width])


def test_images_of_similar_sizes_share_a_program(monkeypatch):
    traces = []
    logits = predictor_module.predict_logits

    def counted(variables, image, **kwargs):
        traces.append(image.shape)
        return logits(variables, image, **kwargs)

    monkeypatch.setattr(predictor_module, "predict_logits", counted)
    predict, _ = make()
    for height in range(33, 41):
        assert predict(draw(height, 88 - height)).shape == (height, 88 - height)
    assert traces == [(1, 40, 56, 3), (1, 40, 48, 3)]
    predict, _ = make(image_size=[16, 16])
    for height in range(33, 41):
        assert predict(draw(height, 88 - height)).shape == (height, 88 - height)
    assert traces[2:] == [(1, 16, 16, 3)]


@pytest.mark.parametrize("image_size", [[16, 24], [64, 64]])
def test_a_net_of_another_size_predicts_as_it_is_scored(image_size):
    predict, variables = make(image_size)
    image = draw(40, 52)

    class One(list):
        sizes = ((40, 52),)

    label = np.zeros((40, 52), np.uint8)
    evaluate = Evaluator(
        Net(),
        normalization=Normalization((120.0,), (60.0,)),
        num_classes=3,
        batch_size=1,
        parallel=create_parallel(data=1),
        image_size=tuple(image_size),
    )
    record = {"image": image, "label": label, "name": "one"}
    _, kept = evaluate(variables, One([record]), keep=[0])
    np.testing.assert_array_equal(predict(image), kept[0])
    assert not np.array_equal(kept[0], expect(variables, image))


@pytest.mark.parametrize(
    "image, message",
    [
        (
            np.zeros((8, 8, 3), np.float32),
            r"uint8 \[H, W, 3\], not float32 \[8, 8, 3\]",
        ),
        (np.zeros((8, 8, 1), np.uint8), r"not uint8 \[8, 8, 1\]"),
        (np.zeros((8, 8), np.uint8), r"read_image\(path, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
    ],
)
def test_other_arrays_are_refused(image, message):
    predict, _ = make()
    with pytest.raises(ValueError, match=message):
        predict(image)


@pytest.mark.parametrize("kind", ["rgb", "grey", "palette", "alpha", "turned"])
def test_files_of_every_kind_are_fed_as_a_viewer_shows_them(tmp_path, kind):
    predict, variables = make()
    image = draw(24, 32)
    picture, options = Image.fromarray(image), {}
    if kind == "grey":
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
    job = Job(
        tmp_path / "image.png", tmp_path / "a/out.png", tmp_path / "a/overlay.png"
    )
    predict_file(predict, job)

    with Image.open(job.index) as written:
        assert written.mode == "P"
        np.testing.assert_array_equal(np.asarray(written), expect(variables, image))
        colours = np.asarray(written.convert("RGB"))
    with Image.open(job.overlay) as written:
        overlay = np.asarray(written)
    height, width = image.shape[:2]
    assert overlay.shape[0] >= height and overlay.shape[1] > width  # and a legend
    mixed = (image.astype(int) + colours) / 2
    assert np.abs(overlay[:height, :width] - mixed).max() <= 1
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "out.png",
        "overlay.png",
    ]


def test_a_grey_net_reads_colours_as_grey(tmp_path):
    predict, variables = make(channels=1)
    image = draw(16, 24)
    Image.fromarray(image).save(tmp_path / "image.png")
    job = Job(tmp_path / "image.png", tmp_path / "out.png", tmp_path / "overlay.png")
    predict_file(predict, job)
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    with Image.open(job.index) as written:
        np.testing.assert_array_equal(np.asarray(written), expect(variables, grey))


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_folders_keep_their_inner_structure(tmp_path):
    touch(tmp_path, "in/b/x.JPG", "in/a/x.png", "in/y.tif", "in/.hidden/z.png")
    touch(tmp_path, "in/notes.txt", "in/.z.png", "in/out/x.png", "lone.webp")
    jobs = plan_jobs([tmp_path / "in", tmp_path / "lone.webp"], tmp_path / "in/out")
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
    assert len(plan_jobs(paths, "out")) == 1


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
        plan_jobs(paths, tmp_path / "out")
    assert all(str(path) in str(error.value) for path in paths)


@pytest.mark.parametrize("names", [("x.png",), ("x.jpg", "x_overlay.png")])
def test_no_image_is_overwritten_by_a_prediction(tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=r"would overwrite the image .*png"):
        plan_jobs([tmp_path], tmp_path)


def test_a_folder_without_images_is_named(tmp_path):
    touch(tmp_path, "in/notes.txt")
    with pytest.raises(ValueError, match=r"in has no image \(\.png, "):
        plan_jobs([tmp_path / "in"], tmp_path / "out")
