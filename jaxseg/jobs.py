"""Prediction of files and folders of images: what is read, and what is written."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxseg.data.images import IMAGE_SUFFIXES, read_image
from jaxseg.heatmap import heatmap
from jaxseg.predictor import Predictor
from jaxseg.tiled_predictor import TiledPredictor
from jaxseg.visualize import index_png, overlay_with_legend, write_png

PICTURE_PX = 4096
"""The longest side of pictures for the eye: what most viewers open at once."""


@dataclass(frozen=True)
class Job:
    """An image file and the two files that its prediction goes to.

    Attributes:
        image: to read.
        index: PNG with palette, of class numbers.
        overlay: PNG of the image tinted by class, with a legend.
        entropy: PNG of how uncertain each pixel is, or None for no such file.
    """

    image: Path
    index: Path
    overlay: Path
    entropy: Path | None = None


def plan_jobs(
    paths: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    uncertainty: bool = False,
) -> list[Job]:
    """Finds the images and decides where their predictions go; touches no file.

    A file goes to `<output>/<stem>.png`. Folders are searched with their subfolders
    for png, jpg, webp and tif, hidden ones and `output` itself left out, and their
    inner structure is kept: `a/b/x.jpg` of folder `a` goes to `<output>/b/x.png`. A
    file that does not exist is planned like any other, and fails when it is read.

    Args:
        paths: files and folders. A file that is named twice is done once.
        output: folder of the predictions.
        uncertainty: whether the entropy is written as well, as `<stem>_entropy.png`.

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
            entropy = index.with_name(f"{index.stem}_entropy.png")
            job = Job(image, index, overlay, entropy if uncertainty else None)
            jobs.setdefault(Path(os.path.abspath(image)), job)
    _check_distinct(jobs)
    return list(jobs.values())


def predict_file(predictor: Predictor | TiledPredictor, job: Job) -> None:
    """Reads an image and writes its classes and pictures of them.

    Each file appears whole or not at all. Pictures for the eye are shrunk to
    `PICTURE_PX`; the classes have the image's own size.

    Args:
        predictor: of a workdir, with `class_names` and `palette` in its metadata.
        job: what to read and where to write; folders are made.

    Raises:
        ValueError: if the file is no image; the message names it.
        OSError: if it cannot be read, or its predictions cannot be written.
    """
    metadata = predictor.metadata
    image = read_image(job.image, metadata["channels"])
    if job.entropy is None:
        classes, entropy = predictor(image), None
    else:
        classes, entropy = predictor.with_entropy(image)
    job.index.parent.mkdir(parents=True, exist_ok=True)
    index_png(job.index, classes, metadata["palette"])
    # From here on only the small ones are held.
    image, classes = _shrunk(image), _shrunk(classes, cv2.INTER_NEAREST)
    write_png(
        job.overlay,
        overlay_with_legend(
            image, classes, metadata["palette"], metadata["class_names"]
        ),
    )
    if entropy is not None:
        picture = heatmap(
            _shrunk(entropy.astype(np.float32)), "sure", "all classes alike"
        )
        write_png(job.entropy, picture)


def _shrunk(image: np.ndarray, how: int = cv2.INTER_AREA) -> np.ndarray:
    """An image as it is, or with its longest side shrunk to `PICTURE_PX`."""
    height, width = image.shape[:2]
    scale = PICTURE_PX / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # OpenCV drops a single channel's axis.
    return cv2.resize(image, size, interpolation=how).reshape(
        size[1], size[0], *image.shape[2:]
    )


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
        for target in filter(None, (job.index, job.overlay, job.entropy)):
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
