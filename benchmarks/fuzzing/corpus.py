"""Small files of each kind, written by jaxseg and the libraries that it reads from."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASS_NAMES = ("ground", "disc", "ring", "square", "triangle", "cross")
MODEL: dict[str, Any] = {
    "name": "segnet_basic",
    "num_classes": len(CLASS_NAMES),
    "width": 8,  # so that arrays are in files of their own
}
BATCH_SIZE, STEPS = 4, (10, 20)
VARIABLE = "JAXSEG_FUZZ_CORPUS"
"""Environment variable of the workers with the folder of the corpus."""


def build_corpus(folder: Path) -> None:
    """Writes the files that are changed, a folder for each target."""
    import jax

    from jaxseg.checkpoints.manager import CheckpointManager
    from jaxseg.checkpoints.run import read_metadata, save
    from jaxseg.data import create_source
    from jaxseg.models import create_model
    from jaxseg.models.variables import initial_variables
    from jaxseg.ops.image_normalization import Normalization
    from jaxseg.training.metric_writer import MetricWriter
    from jaxseg.weights.importer import export_weights

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shapes = {"image_size": (16, 24), "train_examples": 4, "val_examples": 2}
    source = create_source("shapes", "train", prepared_dir=str(folder), **shapes)
    shutil.copytree(source.directory, folder / "prepared")
    shutil.rmtree(folder / "shapes")

    variables = initial_variables(create_model(**MODEL), jax.random.key(0), 3)
    variables = jax.tree.map(np.asarray, variables)
    run = folder / "workdir"
    save(
        run,
        variables,
        model=MODEL,
        normalization=Normalization((120.0,), (60.0,)),
        class_names=CLASS_NAMES,
        data={"dataset": "shapes", "prepared_dir": "~/.cache/jaxseg/data", **shapes},
        config={"train": {"steps": 20}, "model": {"name": "segnet_basic"}},
    )
    with MetricWriter(run, 0, 40, silent=False) as metrics:
        for step in (10, 20, 30, 40):
            metrics.write(step, {"loss": 1 / step, "learning_rate": 0.1})
            metrics.write(step, {"val_miou": 0.5, "iou": dict.fromkeys("ab", 0.5)})

    with CheckpointManager(folder / "checkpoints") as checkpoints:
        for step in STEPS:
            data = {"batch_size": BATCH_SIZE, "next_sample": BATCH_SIZE * step}
            checkpoints.save(step, make_state(variables, step), data, 0.5)

    (folder / "metadata").mkdir()
    shutil.copy(run / "metadata.json", folder / "metadata")
    (folder / "metrics").mkdir()
    for name in ("metrics.jsonl", "metadata.json"):
        shutil.copy(run / name, folder / "metrics")
    shutil.copytree(run, folder / "command")
    report = {"scoring": "", "split": "val", "boundary": {"either": {"by_class": {}}}}
    (folder / "command" / "report.json").write_text(json.dumps(report))
    export_weights(
        folder / "weights" / "exported.safetensors", variables, read_metadata(run)
    )
    _weight_files(folder / "weights")
    _images(folder / "image")
    _masks(folder / "mask")
    (folder / "classes").mkdir()
    for number, content in enumerate(_CLASSES):
        (folder / "classes" / f"{number}.json").write_text(json.dumps(content))
    split = folder / "folder" / "train"
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (split / kind).mkdir(parents=True)
        for number in range(2):
            picture = _labels() if mode == "L" else _colors()
            Image.fromarray(picture, mode).save(split / kind / f"{number}.png")
    (folder / "folder" / "classes.json").write_text(json.dumps(_CLASSES[0]))
    _counts(folder / "counts")
    (folder / "planted").mkdir()


_CLASSES: list[dict[str, Any]] = [
    {"classes": ["road", "sky", "tree"], "void": [255, 9]},
    {
        "classes": ["road", "sky", "tree"],
        "palette": [[128, 64, 128], [0, 0, 0], [0, 90, 0]],
        "void": [[1, 2, 3], 200],
        "masks": "colors",
    },
    {"classes": ["a", "b"], "palette": "voc", "void": None},
]


def make_state(variables: Any, step: int) -> dict[str, Any]:
    """A training state."""
    momentum = [np.zeros(3, np.float32)] * 2
    return {**variables, "step": np.int32(step), "opt_state": momentum}


def _colors() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (13, 17, 3), np.uint8)


def _labels() -> np.ndarray:
    return np.random.default_rng(0).choice([0, 1, 2, 255], (13, 17)).astype(np.uint8)


def _images(folder: Path) -> None:
    folder.mkdir()
    color = Image.fromarray(_colors())
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    color.save(folder / "color.png")
    color.save(folder / "color.jpg")
    color.save(folder / "rotated.jpg", exif=exif)
    color.save(folder / "rotated.png", exif=exif)
    color.save(folder / "progressive.jpeg", progressive=True, subsampling=0)
    color.save(folder / "lossless.webp", lossless=True)
    color.save(folder / "lossy.webp")
    color.save(folder / "plain.tif")
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        color.save(folder / f"{compression}.tiff", compression=compression)
    color.convert("L").save(folder / "gray.png")
    color.convert("L").save(folder / "gray.tif")
    color.convert("L").save(folder / "gray.jpg")
    color.convert("1").save(folder / "bits.png")
    color.convert("P").save(folder / "palette.png")
    color.convert("RGBA").save(folder / "alpha.png")
    color.convert("LA").save(folder / "gray_alpha.png")
    color.convert("CMYK").save(folder / "cmyk.jpg")
    color.quantize(7).save(folder / "transparent.png", transparency=3)
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(folder / "deep.png")


def _masks(folder: Path) -> None:
    folder.mkdir()
    gray = Image.fromarray(_labels())
    palette = gray.copy()
    palette.putpalette([value for index in range(256) for value in (index,) * 3])
    for name, picture in (("gray", gray), ("palette", palette)):
        picture.save(folder / f"{name}.png")
        picture.save(folder / f"{name}.tif")
    gray.save(folder / "lzw.tif", compression="tiff_lzw")
    gray.convert("RGB").save(folder / "color.webp", lossless=True)
    Image.fromarray(_labels() > 0).save(folder / "bits.png")
    Image.fromarray(_labels().astype(np.uint16)).save(folder / "deep.png")


def _weight_files(folder: Path) -> None:
    """Files of other libraries with the same three arrays."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "conv.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "conv.bias": rng.normal(size=4).astype(np.float32),
        "norm.running_var": rng.uniform(1, 2, 4).astype(np.float32),
    }
    np.savez(folder / "stored.npz", **arrays)
    np.savez_compressed(folder / "deflated.npz", **arrays)
    np.save(folder / "one.npy", arrays["conv.weight"])
    (folder / "net.caffemodel").write_bytes(_caffemodel(arrays))
    try:
        import torch
    except ImportError:
        return
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    torch.save(tensors, folder / "zipped.pth")
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "nested.pt")
    torch.save(tensors, folder / "legacy.pth", _use_new_zipfile_serialization=False)


def _caffemodel(arrays: dict[str, np.ndarray]) -> bytes:
    def chunk(field: int, content: bytes) -> bytes:
        return _varint(field << 3 | 2) + _varint(len(content)) + content

    layers = b""
    for name, array in arrays.items():
        shape = chunk(7, chunk(1, b"".join(map(_varint, array.shape))))
        blob = chunk(7, chunk(5, array.tobytes()) + shape)
        layers += chunk(100, chunk(1, name.encode()) + chunk(2, b"Convolution") + blob)
    return layers


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _counts(folder: Path) -> None:
    from jaxseg.inference.image_metrics import ImageMetrics

    folder.mkdir()
    rng = np.random.default_rng(0)
    metrics = ImageMetrics(("road", "sky", "tree"), "image_{}".format)
    for number in range(4):
        prediction, label = rng.integers(0, 3, (2, 8, 8), np.uint8)
        metrics.add(number, prediction, label)
    metrics.save(folder / "evaluation.npz")
