"""What opens a mutated input, and what a right result is."""

import contextlib
import functools
import io
import json
import os
import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzzing.corpus import (
    BATCH_SIZE,
    CLASS_NAMES,
    MODEL,
    STEPS,
    VARIABLE,
    make_state,
)

CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that may change what a terminal shows."""


class WrongResult(Exception):
    """A mutated input was accepted, but the result is not right."""


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        share: part of all cases, relative to the other targets.
        open: opens the input, a folder or one file, and checks the result.
        one_file: whether the input is one file of the corpus rather than all of them.
        reads_only: whether opening must not change the input.
        plants: whether links are planted where jaxseg writes, instead of changing files.
    """

    share: int
    open: Callable[[Path, random.Random], None]
    one_file: bool = False
    reads_only: bool = True
    plants: bool = False


def require(condition: Any, message: str) -> None:
    """Raises a WrongResult unless the condition holds."""
    if not condition:
        raise WrongResult(message)


def open_metadata(case: Path, rng: random.Random) -> None:
    """A metadata.json."""
    del rng
    from jaxseg.checkpoints.run import read_metadata
    from jaxseg.metadata import RunMetadata

    metadata = read_metadata(case)
    text = json.dumps(metadata.to_json())
    again = RunMetadata.from_json(json.loads(text))
    require(json.dumps(again.to_json()) == text, "changes when written")
    std = np.array(metadata.normalization.std, np.float64)
    mean = np.array(metadata.normalization.mean, np.float64)
    require(np.isfinite([*mean, *std]).all() and (std > 0).all(), "normalization")
    require(0 < metadata.num_classes <= 255, f"{metadata.num_classes} classes")
    require(len(set(metadata.class_names)) == metadata.num_classes, "equal names")


def open_workdir(case: Path, rng: random.Random) -> None:
    """A workdir, by `jaxseg.load`."""
    import jaxseg

    model, variables, metadata = jaxseg.load(case, rng.choice(("best", "latest")))
    check_variables(model, variables, metadata.channels)


def check_variables(model: Any, variables: Any, channels: int) -> None:
    """Raises a WrongResult unless the variables are finite and fit the model."""
    from jaxseg.models.variables import abstract_variables
    from jaxseg.utils.trees import flatten

    like, given = flatten(abstract_variables(model, channels)), flatten(variables)
    require(given.keys() == like.keys(), "other variables than the model")
    for name, leaf in given.items():
        require(leaf.shape == like[name].shape, f"{name} has the shape {leaf.shape}")
        require(np.isfinite(leaf).all(), f"{name} has a number that is not finite")
        if name.endswith("/var"):
            require((np.asarray(leaf) >= 0).all(), f"{name} has a negative variance")


def open_checkpoints(case: Path, rng: random.Random) -> None:
    """Checkpoints of a run, to resume it."""
    import jax

    from jaxseg.checkpoints.manager import CheckpointManager
    from jaxseg.checkpoints.run import find_step

    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            np.shape(x),
            np.asarray(x).dtype,
            sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        ),
        make_state(exported_variables(), 0),
    )
    choice = rng.choice(("best", "latest", "restore_latest", "fallback"))
    if choice in ("best", "latest"):
        step = find_step(case, choice)
        with CheckpointManager(case) as checkpoints:
            require(step in checkpoints.steps(), f"step {step}")
            state, data = checkpoints.restore(step, like)
    else:
        with CheckpointManager(case) as checkpoints:
            restored = checkpoints.restore_latest(
                like,
                batch_size=BATCH_SIZE,
                fallback=choice == "fallback",
                accept_batch_size=False,
            )
            steps = checkpoints.steps()
        if restored is None:
            require(not steps, f"nothing restored of {steps}")
            return
        state, data = restored
        # After a fallback, what was damaged is no longer there. Folders may be renamed.
        latest = max(steps) not in STEPS or state["step"] == max(steps)
        require(latest, f"not the latest of {steps}")
    require(state["step"] in STEPS, f"step {state['step']}")
    # A changed number cannot be noticed; training stops at a loss that is not finite.
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(like)):
        same = leaf.shape == expected.shape and leaf.dtype == expected.dtype
        require(same, f"{leaf.dtype} {leaf.shape}")
    for key in ("batch_size", "next_sample"):
        value = data.get(key)
        require(type(value) is int and value >= 0, f"{key} is {value!r:.40}")


def corpus() -> Path:
    """The folder of the files before the changes."""
    return Path(os.environ[VARIABLE])


@functools.cache
def exported_variables() -> Any:
    """The variables of the corpus."""
    from jaxseg.weights.importer import import_weights

    path = corpus() / "weights" / "exported.safetensors"
    variables = import_weights(path).variables
    return {name: variables[name] for name in ("params", "batch_stats")}


def open_prepared(case: Path, rng: random.Random) -> None:
    """Prepared data: every record of every split."""
    del rng
    from jaxseg.data.source import Source

    source = Source(case, "train")
    for split in source.splits:
        source = Source(case, split)
        info = source.info
        require(info.channels in (1, 3), f"{info.channels} channels")
        require(len(info.palette) == info.num_classes, "palette")
        for number in range(len(source)):
            record = source[number]
            image, label = record["image"], record["label"]
            size = source.sizes[number]
            require(image.dtype == label.dtype == np.uint8, "dtype")
            require(image.shape == (*size, info.channels), f"image {image.shape}")
            require(label.shape == size, f"label {label.shape}")
            known = (label < info.num_classes) | (label == 255)
            require(known.all(), "a label is neither a class nor void")
            require(isinstance(record["name"], str), "name")
            require(np.array_equal(source.label(number), label), "label()")


_DOCUMENTED = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*"),
    *(b"GIF87a", b"GIF89a", b"BM"),
)
_BIG_TIFF = (b"II+\0", b"MM\0+")


def _check_format(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(16)
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    known = start.startswith((*_DOCUMENTED, *_BIG_TIFF)) or webp
    require(known, f"another format was opened: {start!r}")


def open_image(path: Path, rng: random.Random) -> None:
    """An image file."""
    from jaxseg.data import images
    from jaxseg.data.tiff import open_windows

    channels = rng.choice((1, 3))
    how = rng.choice(("whole", "encoded", "windows"))
    if how == "encoded":
        data, size = images.read_encoded_image(path)
        _check_format(path)
        image = images.decode_image(data, channels)
        require(image.shape == (*size, channels), f"{image.shape} for size {size}")
        if data.startswith(_DOCUMENTED[0]):  # JPEG decoders differ by rounding
            whole = images.read_image(path, channels)
            differs = np.abs(image.astype(int) - whole).max(initial=0)
            # OpenCV and PIL round the luma of a color differently.
            require(differs <= (channels == 1), f"decoders differ by {differs}")
        return
    windows = open_windows(path, channels) if how == "windows" else None
    if windows is None:
        image = images.read_image(path, channels)
    else:
        if windows.size > 2**28:  # more than the file holds; read in parts only
            return
        image = windows[0 : windows.shape[0], 0 : windows.shape[1]]
        require(image.shape == windows.shape, f"{image.shape} of {windows.shape}")
    _check_format(path)
    require(image.dtype == np.uint8 and image.size, "dtype or size")
    require(image.ndim == 3 and image.shape[2] == channels, f"shape {image.shape}")


def open_mask(path: Path, rng: random.Random) -> None:
    """A mask file, as numbers and as labels."""
    from jaxseg.data.datasets.classes import Classes
    from jaxseg.data.datasets.labels import LabelReader
    from jaxseg.data.masks import read_mask

    if rng.random() < 0.5:
        mask = read_mask(path)
        integers = np.issubdtype(mask.values.dtype, np.integer)
        require(integers and mask.values.ndim == 2, f"{mask.values.dtype}")
        if mask.shown is not None:
            require(
                mask.values.max(initial=0) < len(mask.shown), "a value has no color"
            )
    else:
        palette = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
        masks = rng.choice(("indices", "colors"))
        classes = Classes(("a", "b", "c"), (), ((255, 255, 255),), palette, masks)
        label = LabelReader(classes, path.parent).read(path)
        require(label.dtype == np.uint8 and label.ndim == 2 and label.size, "shape")
        require(((label < 3) | (label == 255)).all(), "neither a class nor void")
    _check_format(path)


def open_classes(path: Path, rng: random.Random) -> None:
    """A classes.json."""
    del rng
    from jaxseg.data.datasets.classes import read_classes

    classes = read_classes(path)
    names, palette = classes.names, classes.palette
    require(names and len(set(names)) == len(names) <= 255, "names")
    require(all(isinstance(name, str) for name in names or ()), "names")
    require(palette is None or len(palette) == len(names or ()), "palette")
    colors = np.array([*(palette or ()), *classes.void_colors]).reshape(-1, 3)
    values = np.array([*classes.void_values, *colors.ravel()])
    require(((values >= 0) & (values <= 255)).all(), "a value beyond a byte")
    require(classes.masks in ("indices", "colors"), "masks")


def open_folder(case: Path, rng: random.Random) -> None:
    """A folder of images and masks, which is prepared and read."""
    del rng
    from jaxseg.data import create_source

    with tempfile.TemporaryDirectory() as prepared:
        source = create_source("folder", "train", root=str(case), prepared_dir=prepared)
        open_prepared(source.directory, random.Random(0))


def open_weights(path: Path, rng: random.Random) -> None:
    """A weight file; all of the model for one that jaxseg exported."""
    del rng
    from jaxseg.models import create_model
    from jaxseg.weights import files, importer

    if path.suffix == ".safetensors":
        imported = importer.import_weights(path)
        assert imported.metadata is not None
        model = create_model(**imported.model)
        check_variables(model, imported.variables, imported.metadata.channels)
        require(np.isfinite(imported.metadata.normalization.std).all(), "std")
    else:
        for name, array in files.read(path).items():
            require(isinstance(name, str), "a name that is not text")
            require(array.dtype.kind in "biufc", f"{array.dtype}")
            require(array.nbytes <= 2**28, f"{array.nbytes} bytes")


def open_metrics(case: Path, rng: random.Random) -> None:
    """The metrics of a run: the report's page, and what a resumed run keeps."""
    from jaxseg.checkpoints.run import read_metadata
    from jaxseg.training.metric_writer import METRICS, MetricWriter, read_metrics
    from jaxseg.visualization import report

    if rng.random() < 0.5:
        metadata = read_metadata(corpus() / "workdir")
        page = report.render("title", {"mIoU": "50%"}, metadata, **_scores(case))
        require("</html>" in page and "title" in page, "no page")
        return
    path = case / METRICS
    before = _lines(path)
    with MetricWriter(case, 20, 40) as writer:
        writer.write(30, {"loss": 0.5})
    after = _lines(path)
    lost = [line for line in before if line not in after and _is_kept(line, 20)]
    require(not lost, f"lost {lost[:1]!r:.80}")
    require(read_metrics(case)[-1]["step"] == 30, "the new line is not the last")


def _scores(case: Path) -> dict[str, Any]:
    from jaxseg.metrics import Calibration, Confusion, ImageIoU
    from jaxseg.training.metric_writer import read_metrics

    count = len(CLASS_NAMES)
    confusion = Confusion(np.eye(count, dtype=int))
    return {
        "log": read_metrics(case),
        "confusion": confusion,
        "images": ImageIoU.of(0, confusion),
        "names": ["image"],
        "examples": [],
        "calibration": Calibration(*np.ones((3, 15))),
        "boundary": None,
    }


def _lines(path: Path) -> list[bytes]:
    small = path.is_file() and path.stat().st_size < 2**30
    return path.read_bytes().splitlines() if small else []


def _is_kept(line: bytes, step: int) -> bool:
    """Whether a line of metrics is one that jaxseg wrote, up to a step."""
    match = re.match(rb'{"step": (\d{1,9}), ["a-z_0-9.,: {}]*}$', line)
    return match is not None and int(match[1]) <= step


def open_counts(case: Path, rng: random.Random) -> None:
    """The counts of an evaluation, by `jaxseg compare`."""
    del rng
    good = corpus() / "counts" / "evaluation.npz"
    run_command("compare", str(good), str(case / "evaluation.npz"), about=case)


def open_command(case: Path, rng: random.Random) -> None:
    """A workdir, by the commands that use it."""
    _remember_data()
    with tempfile.TemporaryDirectory() as output:
        command, *options = rng.choice(
            (
                ("evaluate", "--output", f"{output}/evaluation.json"),
                ("report", "--output", f"{output}/report.html"),
                ("predict", str(corpus() / "image" / "color.png"), "--output", output),
                ("export-weights", "--output", f"{output}/exported.safetensors"),
            )
        )
        run_command(command, "--workdir", str(case), *options, about=case)


@functools.cache
def _remember_data() -> None:
    """Lets commands open the data that the workdir of the corpus names."""
    from jaxseg.checkpoints.known_data import remember_data
    from jaxseg.checkpoints.run import read_metadata

    remember_data(read_metadata(corpus() / "command"))


class NamedError(ValueError):
    """The error that a command printed."""


def run_command(*arguments: str, about: Path) -> None:
    """Runs a command of jaxseg, and raises the error that it prints as a NamedError."""
    from jaxseg.cli import main

    shown, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(errors):
        status = main(list(arguments))
    shown, errors = shown.getvalue(), errors.getvalue()
    for text in (shown, errors):
        found = CONTROL.search(text)
        require(not found, f"prints {found and found[0]!r}: {text!r:.200}")
        text.encode()
    if status:
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        require(len(lines) == 1, f"printed {errors!r:.300}")
        require("--debug" not in lines[0], f"an unexpected error: {lines[0]:.300}")
        raise NamedError(errors)


def open_planted(case: Path, rng: random.Random) -> None:
    """A folder with planted links, in which jaxseg writes."""
    from jaxseg.checkpoints.manager import CheckpointManager
    from jaxseg.checkpoints.run import read_metadata, save, write_metadata
    from jaxseg.data import create_source
    from jaxseg.training.metric_writer import MetricWriter
    from jaxseg.weights.importer import export_weights

    metadata = read_metadata(corpus() / "workdir")
    variables = exported_variables()
    what = rng.choice(("metadata", "metrics", "save", "checkpoint", "data", "export"))
    if what == "metadata":
        write_metadata(case, metadata)
        require(read_metadata(case).class_names == CLASS_NAMES, "other classes")
    elif what == "metrics":
        with MetricWriter(case, 0, 40) as writer:
            writer.write(10, {"loss": 0.5})
    elif what == "save":
        save(
            case,
            variables,
            model=MODEL,
            normalization=metadata.normalization,
        )
    elif what == "checkpoint":
        with CheckpointManager(case) as checkpoints:
            checkpoints.save(7, make_state(variables, 7), {"batch_size": 4})
        require((case / "checkpoints" / "7").is_dir(), "not saved")
    elif what == "export":
        path = case / "exported.safetensors"
        export_weights(path, variables, metadata)
        require(not path.is_symlink(), "wrote to a link")
    else:
        shapes = {"image_size": (16, 24), "train_examples": 2, "val_examples": 1}
        source = create_source("shapes", "train", prepared_dir=str(case), **shapes)
        open_prepared(source.directory, rng)


TARGETS: dict[str, Target] = {
    "metadata": Target(15, open_metadata),
    "workdir": Target(8, open_workdir),
    "checkpoints": Target(6, open_checkpoints, reads_only=False),
    "prepared": Target(12, open_prepared),
    "image": Target(18, open_image, one_file=True),
    "mask": Target(10, open_mask, one_file=True),
    "classes": Target(12, open_classes, one_file=True),
    "folder": Target(3, open_folder),
    "weights": Target(12, open_weights, one_file=True),
    "metrics": Target(5, open_metrics, reads_only=False),
    "counts": Target(3, open_counts),
    "planted": Target(2, open_planted, reads_only=False, plants=True),
    "command": Target(1, open_command, reads_only=False),
}
