"""Class maps of single images of any size, and of files and folders of them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.data.images import IMAGE_SUFFIXES, read_image
from jaxseg.data.transforms import resize_image
from jaxseg.ops.resize import resize_bilinear_to
from jaxseg.steps import Normalization, Variables, predict_logits
from jaxseg.visualize import index_png, overlay_with_legend, write_png

FED_MULTIPLE_PX = 8
"""Images fed at their own size are padded to a multiple of it: photographs of many
sizes then share compiled programs, and the usual sizes of video, 360x480 and 1080x1920
among them, pass as they are."""

SHOWN_MULTIPLE_PX = 64
"""Likewise for the size that logits are resized to, where padding changes nothing."""


class Predictor:
    """Predicts the class of every pixel of an image of any size.

        predict = Predictor(*jaxseg.load(workdir))
        classes = predict(image)

    A network trained at one size is fed at that size, and its logits are resized back
    to the image's own, bilinearly: as evaluation does it. Any other is fed the image at
    its own size, its last row and column repeated up to a multiple of 8 pixels.

    Attributes:
        metadata: of the workdir; `class_names` and `palette` say what classes mean.
    """

    def __init__(self, model: nn.Module, variables: Variables, metadata: dict):
        """Takes what `jaxseg.load` returns; nothing is compiled yet.

        Args:
            model: the network.
            variables: of the model.
            metadata: at least `channels`, `normalization`, `image_size` and, for
                `predict_file`, `class_names` and `palette`.
        """
        self.metadata = metadata
        self._variables = variables
        size = metadata["image_size"]
        self._image_size = None if size is None else tuple(size)
        normalization = Normalization(**metadata["normalization"])
        self._classes = jax.jit(
            partial(_classes, model=model, normalization=normalization),
            static_argnames="shape",
        )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Maps an image to classes.

        Args:
            image: uint8 [H, W, C] of the network's channels, RGB for three.

        Returns:
            uint8 [H, W], numbers into `metadata["class_names"]`.

        Raises:
            ValueError: if the image is no such array, or has no pixel.
        """
        channels = self.metadata["channels"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
            raise ValueError(
                f"The network takes images uint8 [H, W, {channels}], not {image.dtype} "
                f"{list(image.shape)}; jaxseg.data.read_image(path, {channels}) reads "
                "a file so."
            )
        if not image.size:
            raise ValueError(f"An image of {image.shape[:2]} pixels is empty.")
        height, width = image.shape[:2]
        if self._image_size is None:
            shape = None
            bottom, right = (-side % FED_MULTIPLE_PX for side in (height, width))
            fed = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge")
        else:
            shape = tuple(side + -side % SHOWN_MULTIPLE_PX for side in (height, width))
            fed = resize_image(image, self._image_size)
        size = np.array([[height, width]], np.int32)
        classes = self._classes(self._variables, fed[None], size, shape=shape)
        return np.asarray(classes)[0, :height, :width]


def _classes(
    variables: Variables,
    image: jax.Array,
    size: jax.Array,
    *,
    model: nn.Module,
    normalization: Normalization,
    shape: tuple[int, int] | None,
) -> jax.Array:
    """Classes of images, uint8 [B, h, w, C]; resized to `size` within `shape` if given."""
    logits = predict_logits(variables, image, model=model, normalization=normalization)
    if shape is not None:
        logits = resize_bilinear_to(logits, size, shape)
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)


@dataclass(frozen=True)
class Job:
    """An image file and the two files that its prediction goes to.

    Attributes:
        image: to read.
        index: PNG with palette, of class numbers.
        overlay: PNG of the image tinted by class, with a legend.
    """

    image: Path
    index: Path
    overlay: Path


def plan_jobs(
    paths: Sequence[str | os.PathLike], output: str | os.PathLike
) -> list[Job]:
    """Finds the images and decides where their predictions go; touches no file.

    A file goes to `<output>/<stem>.png`. Folders are searched with their subfolders
    for png, jpg, webp and tif, hidden ones and `output` itself left out, and their
    inner structure is kept: `a/b/x.jpg` of folder `a` goes to `<output>/b/x.png`. A
    file that does not exist is planned like any other, and fails when it is read.

    Args:
        paths: files and folders. A file that is named twice is done once.
        output: folder of the predictions.

    Returns:
        One job a file, in the order of `paths`; those of a folder by name.

    Raises:
        ValueError: if a folder has no image, two images would go to one file, or an
            image would be overwritten.
    """
    output = Path(os.path.abspath(output))
    jobs: dict[Path, Job] = {}
    for path in map(Path, paths):
        found = list(_search(path, output)) if path.is_dir() else [path]
        if not found:
            raise ValueError(
                f"{path} has no image ({', '.join(IMAGE_SUFFIXES)}) in it; give another "
                "folder, or files by name."
            )
        for image in found:
            inner = image.relative_to(path if path.is_dir() else path.parent)
            index = output / inner.with_suffix(".png")
            overlay = index.with_name(f"{index.stem}_overlay.png")
            jobs.setdefault(Path(os.path.abspath(image)), Job(image, index, overlay))
    _check_distinct(jobs)
    return list(jobs.values())


def predict_file(predictor: Predictor, job: Job) -> None:
    """Reads an image and writes its classes and its overlay, each whole or not at all.

    Args:
        predictor: of a workdir.
        job: what to read and where to write; folders are made.

    Raises:
        ValueError: if the file is no image; the message names it.
        OSError: if it cannot be read, or its predictions cannot be written.
    """
    metadata = predictor.metadata
    image = read_image(job.image, metadata["channels"])
    classes = predictor(image)
    job.index.parent.mkdir(parents=True, exist_ok=True)
    index_png(job.index, classes, metadata["palette"])
    picture = overlay_with_legend(
        image, classes, metadata["palette"], metadata["class_names"]
    )
    write_png(job.overlay, picture)


def _search(folder: Path, output: Path) -> Iterator[Path]:
    """Images in a folder and its subfolders by name."""
    for place, folders, files in os.walk(folder):
        # Editing the list keeps os.walk out of what is taken from it.
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and Path(os.path.abspath(place)) / name != output
        )
        for name in sorted(files):
            path = Path(place, name)
            if not name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES:
                yield path


def _check_distinct(jobs: dict[Path, Job]) -> None:
    written: dict[Path, Any] = {}
    for job in jobs.values():
        for target in (job.index, job.overlay):
            if target in jobs:
                raise ValueError(
                    f"The prediction of {job.image} would overwrite the image {target};"
                    " give another --output."
                )
            if target in written:
                raise ValueError(
                    f"{written[target]} and {job.image} would both be written to "
                    f"{target}; rename one, or predict them into different folders."
                )
            written[target] = job.image
