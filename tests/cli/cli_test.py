"""The commands on a workdir with a narrow, untrained SegNet and a tiny data set."""

import ast
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from jaxseg import cli
from jaxseg.checkpoints.known_data import is_known_data, remember_data
from jaxseg.checkpoints.manager import CheckpointManager
from jaxseg.checkpoints.run import load, save, write_metadata
from jaxseg.data import create_source
from jaxseg.data.images import read_image
from jaxseg.inference import evaluator
from jaxseg.inference.image_metrics import load_counts
from jaxseg.inference.predictor import Predictor
from jaxseg.metadata import FOLDER_DATASET
from jaxseg.models import create_model
from jaxseg.ops.crf import PRESETS
from jaxseg.ops.image_normalization import Normalization
from jaxseg.training.step import create_state
from tests.helpers import make_metadata

NAMES = ("road", "sky", "tree", "unicorn")
PALETTE = ((128, 64, 128), (70, 130, 180), (0, 90, 0), (255, 0, 255))
MODEL = {"name": "segnet", "num_classes": 4, "width": 4}


@pytest.fixture(autouse=True)
def isolated(monkeypatch):
    """Leaves the user's compilation cache alone, and this process as it was."""
    name = "jaxseg.parallel.compilation.enable_compilation_cache"
    monkeypatch.setattr(name, lambda: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


def draw_data(root, split, count, names=NAMES):
    """Colored noise; labels 0 to 2 and a void row, so that there is no unicorn."""
    rng = np.random.default_rng(count)
    for kind in ("images", "masks"):
        (root / split / kind).mkdir(parents=True)
    for i in range(count):
        image = rng.integers(0, 256, (32, 48, 3), np.uint8)
        label = rng.integers(0, 3, (32, 48), np.uint8)
        label[i] = 255
        Image.fromarray(image).save(root / split / "images" / f"{i}.png")
        Image.fromarray(label).save(root / split / "masks" / f"{i}.png")
    description = {"classes": names, "void": 255}
    (root / "classes.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the workdir `run`, of steps 1 (the best) and 2, and the data."""
    # One level down, so that the runs of other tests are no neighbors of these.
    folder = tmp_path_factory.mktemp("cli") / "trained"
    folder.mkdir()
    draw_data(folder / "data", "train", 1)
    draw_data(folder / "data", "val", 5)
    create = partial(
        create_state, create_model(**MODEL), optax.sgd(0.1), image_shape=(32, 32, 3)
    )
    state = jax.jit(create)(key=jax.random.key(0))
    head = state.params["head"]
    never = head["bias"].at[3].set(-1e6)
    with CheckpointManager(folder / "run") as checkpoints:
        for step, miou, sign in ((1, 0.9, 1), (2, 0.1, -1)):
            # So large that classes differ by more than rounding.
            changed = {"kernel": sign * 1e4 * head["kernel"], "bias": never}
            params = state.params | {"head": changed}
            checkpoints.save(step, state.replace(params=params), {}, miou)
    metadata = make_metadata(
        model=MODEL,
        class_names=NAMES,
        palette=PALETTE,
        normalization=Normalization((120.0,) * 3, (60.0,) * 3),
        data={
            "dataset": "folder",
            "root": str(folder / "data"),
            "prepared_dir": str(folder / "prepared"),
        },
        eval_batch_size=4,
    )
    write_metadata(folder / "run", metadata)
    remember_data(metadata)
    # The same net, fed at another size.
    shutil.copytree(folder / "run", folder / "resized")
    write_metadata(folder / "resized", metadata.replace(image_size=(24, 40)))
    return folder


def run(*argv):
    return cli.main([str(arg) for arg in argv])


def score(workdir, data, split="val"):
    """IoU and accuracy by numpy, from what a `Predictor` says of each image."""
    predict = Predictor(*load(workdir))
    truth, prediction = [], []
    for path in sorted((data / split / "images").iterdir()):
        prediction.append(predict(read_image(path)).ravel())
        mask = Image.open(data / split / "masks" / path.name)
        truth.append(np.asarray(mask).ravel())
    truth, prediction = np.concatenate(truth), np.concatenate(prediction)
    prediction, truth = prediction[truth != 255], truth[truth != 255]
    assert len(np.unique(prediction)) == 3
    iou, accuracy, weights = [], [], []
    for k in range(3):
        hits = np.sum((truth == k) & (prediction == k))
        iou.append(hits / np.sum((truth == k) | (prediction == k)))
        accuracy.append(hits / np.sum(truth == k))
        weights.append(np.mean(truth == k))
    return {
        "miou": np.mean(iou),
        "mean_accuracy": np.mean(accuracy),
        "pixel_accuracy": np.mean(truth == prediction),
        "fw_iou": np.dot(weights, iou),
        "iou": dict(zip(NAMES, [*iou, None])),
        "accuracy": dict(zip(NAMES, [*accuracy, None])),
    }


@pytest.mark.parametrize("workdir", ["run", "resized"])
def test_evaluate_reports_what_a_count_of_predictions_gives(
    trained, tmp_path, workdir, capsys
):
    output = tmp_path / "new" / "report.json"
    assert run("evaluate", "--workdir", trained / workdir, "--output", output) == 0
    report = json.loads(output.read_text())
    for key, value in score(trained / workdir, trained / "data").items():
        assert report.pop(key) == pytest.approx(value, abs=1e-12)
    assert report.pop("seconds") > 0
    spread = report.pop("image_miou")
    assert 0 < spread["min"] <= spread["median"] <= spread["max"] < 1
    assert report == {
        "model": "segnet",
        "scoring": "segnet, step 1",
        "step": 1,
        "split": "val",
        "images": 5,
    }
    assert {path.name for path in output.parent.iterdir()} == {
        "report.json",
        "report.npz",
    }
    printed = capsys.readouterr().out
    assert "segnet, step 1; 5 images of val" in printed
    assert "unicorn       -         -" in printed
    assert f"written to {output}" in printed


def test_evaluate_takes_the_split_and_checkpoint_asked_for(trained):
    args = ("evaluate", "--workdir", trained / "run")
    assert run(*args, "--split", "train", "--checkpoint", "latest") == 0
    report = json.loads((trained / "run" / "report.json").read_text())
    assert (report["split"], report["step"], report["images"]) == ("train", 2, 1)
    assert run(*args, "--split", "train", "--checkpoint", "1") == 0
    other = json.loads((trained / "run" / "report.json").read_text())
    assert other["step"] == 1
    assert other["miou"] != report["miou"]


def test_evaluate_scores_a_data_set_that_lies_elsewhere(trained, tmp_path):
    data = draw_data(tmp_path / "elsewhere", "val", 3)
    output = tmp_path / "report.json"
    args = ("--data-root", data, "--output", output)
    assert run("evaluate", "--workdir", trained / "run", *args) == 0
    report = json.loads(output.read_text())
    assert report["images"] == 3
    assert report["miou"] == pytest.approx(score(trained / "run", data)["miou"])


@pytest.fixture
def foreign(trained, tmp_path, monkeypatch):
    """The same workdir as if a stranger had sent it, with settings of its own."""
    metadata = load(trained / "run")[2].replace(step=None, eval_batch_size=60_000)
    planted = {"prepared_dir": str(tmp_path / "planted"), "trust_prepared": True}
    planted["on_error"] = "skip"
    shutil.copytree(trained / "run", tmp_path / "foreign")
    write_metadata(
        tmp_path / "foreign", metadata.replace(data={**metadata.data, **planted})
    )
    monkeypatch.setattr("jaxseg.data.source.PREPARED_DIR", str(tmp_path / "default"))
    return tmp_path / "foreign"


def test_a_strangers_workdir_opens_no_folder_unasked(
    foreign, trained, tmp_path, capsys
):
    for command in ("evaluate", "report"):
        args = (command, "--workdir", foreign, "--output", tmp_path / "out")
        assert run(*args) == 1
        error = capsys.readouterr().err
        assert "only if you have trained" in error
        assert f"add --data-root {trained / 'data'}" in error
    assert not (tmp_path / "planted").exists()


def test_a_strangers_workdir_is_evaluated_on_the_data_asked_for(
    foreign, trained, tmp_path, monkeypatch
):
    sizes, create = [], evaluator.Evaluator.__init__
    settings = []

    def watched(self, *args, batch_size, **kwargs):
        sizes.append(batch_size)
        create(self, *args, batch_size=batch_size, **kwargs)

    def watched_source(**kwargs):
        settings.append(kwargs)
        return create_source(**kwargs)

    monkeypatch.setattr(evaluator.Evaluator, "__init__", watched)
    monkeypatch.setattr("jaxseg.data.create_source", watched_source)
    args = ("evaluate", "--workdir", foreign, "--data-root", trained / "data")
    assert run(*args, "--prepared-dir", tmp_path / "chosen") == 0
    assert run(*args, "--prepared-dir", tmp_path / "chosen", "--batch-size", "5") == 0
    assert sizes == [8, 5]
    assert not any({"trust_prepared", "on_error"} & {*given} for given in settings)
    assert (tmp_path / "chosen" / "folder").is_dir()
    assert not (tmp_path / "planted").exists()


def test_settings_are_known_only_as_a_whole(trained):
    metadata = load(trained / "run")[2]
    assert is_known_data(metadata)
    data = dict(metadata.data)
    for changed in (
        metadata.replace(data=data | {"prepared_dir": "/elsewhere"}),
        metadata.replace(data=data | {"root": "/elsewhere"}),
        metadata.replace(data=data | {"channels": 1}),
        metadata.replace(eval_batch_size=5),
    ):
        assert not is_known_data(changed)


def test_hostile_names_are_escaped(trained, tmp_path, capsys):
    names = ("a\x1b[2Jb", "c\u202ed", "e\nf", "unicorn")
    data = draw_data(tmp_path / "data", "val", 1, names)
    shutil.copytree(trained / "run", tmp_path / "w")
    metadata = load(trained / "run")[2].replace(step=None, class_names=names)
    metadata = metadata.replace(data={"dataset": "folder", "root": str(data)})
    write_metadata(tmp_path / "w", metadata)
    args = ("--data-root", data, "--prepared-dir", tmp_path / "p")
    report = tmp_path / "page.html"
    assert run("evaluate", "--workdir", tmp_path / "w", *args) == 0
    assert run("report", "--workdir", tmp_path / "w", *args, "--output", report) == 0
    image = tmp_path / "x\x1b]0;y\x07\nerror: z.png"
    shutil.copy(data / "val/images/0.png", image)
    bad = tmp_path / os.fsdecode(b"bad\xff\nerror: z.png")
    bad.write_bytes(b"")
    predict = ("predict", "--workdir", tmp_path / "w", "--output", tmp_path / "out")
    assert run(*predict, image, bad) == 1
    with pytest.raises(SystemExit):
        run("predict", "--workdir", tmp_path / "w", "\x1b[2J", "--nonsense=\x1b")
    out, err = capsys.readouterr()
    for text in (out, err):
        assert all(c == "\n" or (c.isascii() and c.isprintable()) for c in text)
        assert not any(line.startswith("error: z") for line in text.splitlines())
    assert r"a\x1b[2Jb" in out and r"c\u202ed" in out and r"e\nf" in out
    assert r"bad\udcff" in err
    page = report.read_text()
    assert "\x1b" not in page and "\u202e" not in page
    assert r"c\\u202ed" in page and not re.search(r"(?<!\\)\\u202e", page)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--split", "test"], "has no split 'test'; it has train, val"),
        (["--checkpoint", "7"], "no checkpoint '7'; use best, latest or one of 1, 2."),
        (
            ["--data-root", "/nowhere"],
            "/nowhere is not a folder. Give its location with --data-root",
        ),
        (["--output", "/"], "/ is a folder; --output must be a file"),
        (["--output", "{tmp}/file/x.json"], "Cannot write to {tmp}/file (File exists)"),
        (
            ["--data-root", "{tmp}/other"],
            "road, sky, tree, unicorn, but those of the data set are sky",
        ),
        (
            ["--workdir", "{trained}"],
            "Existing workdirs: {trained}/resized, {trained}/run.",
        ),
        (
            ["--workdir", "{trained}/rum"],
            "Existing workdirs: {trained}/resized, {trained}/run.",
        ),
        (
            ["--workdir", "{tmp}/none/none"],
            "has no metadata.json. Train a network first.",
        ),
    ],
)
def test_what_evaluate_cannot_do_is_said_in_a_line(
    trained, tmp_path, capsys, args, message
):
    (tmp_path / "file").touch()
    draw_data(tmp_path / "other", "val", 1, names=("sky", "road", "tree"))
    places = {"trained": trained, "tmp": tmp_path}
    args = [arg.format(**places) for arg in args]
    status = run("evaluate", "--workdir", trained / "run", *args)
    printed = capsys.readouterr()
    assert status == 1
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message.format(**places) in printed.err


def test_debug_shows_where_an_error_comes_from(trained):
    with pytest.raises(ValueError, match="no checkpoint '7'"):
        run("evaluate", "--workdir", trained / "run", "--checkpoint", "7", "--debug")


def test_a_damaged_checkpoint_is_named_without_tracebacks(trained, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(trained / "run", workdir)
    for path in (workdir / "checkpoints" / "1" / "state" / "d").iterdir():
        path.unlink()
    argv = ["evaluate", "--workdir", str(workdir)]
    # As a process of its own, for other threads write to its stderr.
    done = subprocess.run(
        [sys.executable, "-c", f"from jaxseg.cli import main; exit(main({argv}))"],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: The checkpoint {workdir}/checkpoints/1 ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--tta"], ["--tile=16x24", "--crf=deeplab"]], ids=lambda x: x[0]
)
def test_figures_do_not_depend_on_the_number_of_devices(
    trained, tmp_path, monkeypatch, options
):
    """Of all metrics, in the figures and in the counts of each image."""
    reports, counts = [], []
    for devices in (1, 4):
        monkeypatch.setattr(jax, "device_count", lambda: devices)  # noqa: B023
        output = tmp_path / f"{devices}.json"
        args = ("--workdir", trained / "resized", "--output", output, *options)
        assert run("evaluate", *args, "--metrics=boundary,trimap,calibration") == 0
        report = json.loads(output.read_text())
        del report["seconds"]
        # Sums of confidences, in float32, are the only figures that are not counted.
        reports.append((report.pop("calibration"), report))
        counts.append(load_counts(output.with_suffix(".npz"))[1])
    (one, plain), (four, sharded) = reports
    assert plain == sharded
    assert one["bins"]["count"] == four["bins"]["count"]
    assert one["ece"] == pytest.approx(four["ece"], rel=1e-5)
    for name in ("iou", "boundary"):
        np.testing.assert_array_equal(counts[0][name].counts, counts[1][name].counts)


@pytest.fixture
def images(trained, tmp_path):
    """Three images in a folder and its subfolder."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    image = Image.open(trained / "data" / "val" / "images" / "0.png")
    image.save(folder / "a.png")
    image.convert("L").save(folder / "sub" / "a.png")
    image.resize((41, 33)).save(folder / "b.jpg")
    return folder


def test_predict_does_the_good_files_and_names_the_bad(
    trained, images, tmp_path, capsys
):
    (images / "empty.png").touch()
    (images / "text.jpg").write_text("no image")
    missing, out = images / "missing.png", tmp_path / "out"
    args = ("--workdir", trained / "run", "--output", out)
    assert run("predict", *args, images, missing) == 1
    printed = capsys.readouterr()

    errors = printed.err.splitlines()
    assert len(errors) == 3
    for line, name in zip(errors, ("empty.png", "text.jpg", "missing.png")):
        assert line.startswith(f"error: {images / name}: ")
    first, *done, last = printed.out.splitlines()
    assert first == "segnet, step 1"
    assert len(done) == 3
    assert done[0].startswith(f"{images / 'a.png'} -> {out / 'a.png'} (")
    assert last.startswith("3 of 6 images in ")
    assert str(out) in last
    written = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    names = ("a", "b", "sub/a")
    assert written == {f"{n}{end}" for n in names for end in (".png", "_overlay.png")}

    predict = Predictor(*load(trained / "run"))
    for name, source in (("a", "a.png"), ("b", "b.jpg"), ("sub/a", "sub/a.png")):
        with Image.open(out / f"{name}.png") as index:
            classes = predict(read_image(images / source))
            np.testing.assert_array_equal(np.asarray(index), classes)
            assert tuple(index.getpalette()[:12]) == sum(PALETTE, ())


def test_a_full_disk_is_called_so(trained, images, tmp_path, capsys, monkeypatch):
    def fails(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", fails)
    args = ("--workdir", trained / "run", "--output", tmp_path / "out")
    assert run("predict", images / "a.png", *args) == 1
    picture = tmp_path / "out" / "a_overlay.png"
    assert capsys.readouterr().err == (
        f"error: {images / 'a.png'}: {picture}: No space left on device; free some "
        "space, and run the command again\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"
        ),
    ],
)
def test_little_memory_is_one_line_with_the_cure(
    trained, images, tmp_path, capsys, monkeypatch, error
):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr("jaxseg.inference.predictor.Predictor.__call__", fails)
    args = ("--workdir", trained / "run", "--output", tmp_path / "out")
    assert run("predict", images / "a.png", *args) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "not enough memory (" in said and "--tile" in said


def test_predict_of_good_files_alone_succeeds(trained, images, tmp_path, capsys):
    args = ("--workdir", trained / "run", "--output", tmp_path / "out")
    assert run("predict", images / "a.png", *args) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines()[-1].startswith("1 images in ")


def test_an_image_too_large_to_be_scored_whole_is_sent_to_tiles(
    trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("jaxseg.data.images.LARGEST_WHOLE_PX", 1000)
    image = trained / "data" / "val" / "images" / "0.png"
    args = ("--workdir", trained / "run", image, "--output", tmp_path / "out")
    assert run("predict", *args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {image}: too large") and "--tile" in line
    assert not list((tmp_path / "out").iterdir())


def test_predict_by_more_devices_than_there_are(trained, tmp_path, capsys):
    image = trained / "data" / "val" / "images" / "0.png"
    args = (
        "predict",
        "--workdir",
        trained / "run",
        image,
        "--output",
        tmp_path / "out",
    )
    for space, message in (
        ("9", "from 1 to 4, the number of devices"),
        ("0", "from 1 to 4, the number of devices"),
    ):
        assert run(*args, "--space", space) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert run(*args, "--space", "2", "--tile", "16x16") == 1
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("tile", ["16x24", "40x30"])
def test_predict_by_tiles_gives_what_evaluate_gives(trained, tmp_path, tile):
    """The one strip by strip, the other by tiles of the whole image, if it is larger."""
    args = ("--workdir", trained / "resized", "--tile", tile)
    saved, out = tmp_path / "saved", tmp_path / "out"
    more = ("--output", tmp_path / "report.json", "--save-predictions", saved)
    assert run("evaluate", *args, *more) == 0
    folder = trained / "data" / "val" / "images"
    assert run("predict", *args, folder, "--output", out, "--uncertainty") == 0
    differing = 0
    for i in range(5):
        with Image.open(out / f"{i}.png") as ours, Image.open(saved / f"{i}.png") as it:
            differing += np.sum(np.asarray(ours) != np.asarray(it))
        assert (out / f"{i}_entropy.png").is_file()
    # Two programs round differently; classes whose scores are equal may change places.
    assert differing <= 5 * 32 * 48 / 1000


def test_tiles_must_be_larger_than_the_context(trained, tmp_path, capsys):
    model = {"name": "unet_valid", "num_classes": 4, "width": 2, "levels": 3}
    network = create_model(**model)
    variables = network.init(
        jax.random.key(0), np.zeros((1, 44, 44, 3), np.float32), train=False
    )
    save(
        tmp_path / "valid",
        variables,
        model=model,
        normalization={"mean": [120.0], "std": [60.0]},
    )
    image = trained / "data" / "val" / "images" / "0.png"
    args = ("predict", "--workdir", tmp_path / "valid", "--output", tmp_path / "out")
    assert run(*args, image, "--tile", "32x40") == 1
    said = capsys.readouterr().err
    assert "20 pixels of context" in said and "at least 80 pixels" in said
    # An image smaller than what the network can take is mirrored until it fits.
    assert run(*args, image) == 0
    with Image.open(tmp_path / "out" / "0.png") as written:
        assert written.size == (48, 32)


def test_predict_needs_an_output_that_can_be_written(trained, images, tmp_path, capsys):
    (tmp_path / "file").touch()
    args = ("--workdir", trained / "run", images)
    assert run("predict", *args, "--output", tmp_path / "file") == 1
    assert f"error: Cannot write to {tmp_path / 'file'} (" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [
        ((), "required: COMMAND"),
        (("evaluate",), "required: --workdir"),
        (("predict", "--workdir", "w", "x.png"), "required: --output"),
        (("fit",), "invalid choice: 'fit'"),
    ],
)
def test_wrong_usage_ends_with_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


@pytest.mark.parametrize("command", [(), ("evaluate",), ("predict",)])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*command, "--help")
    assert stop.value.code == 0
    assert "example:\n" in capsys.readouterr().out


def test_help_loads_nothing_heavy():
    code = (
        "import sys, jaxseg.cli\n"
        "try: jaxseg.cli.main(['--help'])\n"
        "finally: print({name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = ast.literal_eval(done.stdout.splitlines()[-1])
    heavy = {"jax", "flax", "numpy", "cv2", "scipy", "orbax", "grain", "ml_collections"}
    assert "jaxseg" in loaded and not loaded & heavy


def test_weights_go_out_and_come_back(trained, tmp_path, capsys):
    """The workdir that comes back gives the same scores and explains itself."""
    file, back = tmp_path / "run.safetensors", tmp_path / "back"
    command = ["export-weights", f"--workdir={trained}/run"]
    assert cli.main([*command, f"--output={tmp_path}/run.npz"]) == 1
    assert "end in .safetensors" in capsys.readouterr().err
    assert (
        cli.main(["export-weights", f"--workdir={trained}/run", f"--output={file}"])
        == 0
    )
    assert cli.main(["import-weights", str(file), f"--output={back}"]) == 0
    assert "new: none\nleft out: none" in capsys.readouterr().out
    (_, ours, before), (_, theirs, after) = load(trained / "run"), load(back)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert after.step == 0
    for key in ("class_names", "palette", "normalization", "model"):
        assert getattr(before, key) == getattr(after, key)
    # A stranger's file must not choose folders.
    assert after.data == FOLDER_DATASET and after.eval_batch_size == 8

    assert cli.main(["import-weights", str(file), f"--output={back}"]) == 1
    assert "already exists" in capsys.readouterr().err


def test_foreign_weights_become_a_workdir(trained, tmp_path, capsys):
    """Encoder by torchvision's names, a new head for the classes that a file names."""
    rng = np.random.default_rng(0)
    shapes = {"classifier.0": (4, 98), "classifier.3": (4, 4), "classifier.6": (9, 4)}
    for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        shapes[f"features.{i}"] = (2, 3 if i == 0 else 2, 3, 3)
    tensors = {f"{name}.weight": rng.normal(size=x) for name, x in shapes.items()}
    tensors |= {f"{name}.bias": rng.normal(size=x[0]) for name, x in shapes.items()}
    file, output = tmp_path / "vgg16.npz", tmp_path / "fcn"
    np.savez(file, **tensors)
    kwargs = {"hidden": 4, "encoder_kwargs": {"widths": [2] * 5}}
    command = ["import-weights", str(file), "--model=fcn32s", "--num-classes=4"]
    command += [f"--model-kwargs={json.dumps(kwargs)}", f"--output={output}"]
    command += [f"--classes={trained / 'data' / 'classes.json'}"]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert "params/neck/score/kernel" in error and "classifier.6.weight" in error
    assert not output.exists()

    assert cli.main([*command, "--head=new"]) == 0
    assert "left out: classifier.6.bias, classifier.6.weight" in capsys.readouterr().out
    _, variables, metadata = load(output)
    assert metadata.class_names == NAMES
    assert metadata.normalization.mean == (123.675, 116.28, 103.53)
    kernel = variables["params"]["encoder"]["stage1"]["conv1"]["kernel"]
    np.testing.assert_allclose(
        kernel, tensors["features.0.weight"].transpose(2, 3, 1, 0), rtol=1e-6
    )
    command = ["evaluate", f"--workdir={output}", f"--prepared-dir={tmp_path / 'p'}"]
    assert cli.main(command) == 1
    assert "add --data-root DIR" in capsys.readouterr().err
    assert cli.main([*command, f"--data-root={trained / 'data'}"]) == 0


def test_the_help_names_every_crf(capsys):
    for name in PRESETS:
        with pytest.raises(SystemExit):
            cli.main(["predict", "--help"])
        assert re.search(rf"\b{name}\b", capsys.readouterr().out)
