"""Prediction of files and folders of images: what is read, and what is written."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxseg.data.images import IMAGE_SUFFIXES, read_image
from jaxseg.data.tiff import ROWS, open_windows
from jaxseg.inference.predictor import Predictor
from jaxseg.inference.tiled import TiledPredictor
from jaxseg.utils.rounding import divide_up
from jaxseg.visualization.heatmap import heatmap
from jaxseg.visualization.overlays import index_png_rows, overlay_with_legend, write_png

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


def find_input_files(
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
    image = _open(predictor, job.image)
    size, palette = image.shape[:2], metadata.palette
    classes = _Small(size, cv2.INTER_NEAREST)
    entropies = _Small(size)
    job.index.parent.mkdir(parents=True, exist_ok=True)
    with index_png_rows(job.index, size, palette) as write:
        for rows, entropy in _strips(predictor, image, job.entropy is not None):
            write(rows)
            classes.add(rows)
            if entropy is not None:
                entropies.add(entropy.astype(np.float32))
    shown = _Small(size)
    for top in range(0, size[0], ROWS):
        shown.add(image[top : top + ROWS, :])
    picture = overlay_with_legend(
        shown.picture(), classes.picture(), palette, metadata.class_names
    )
    write_png(job.overlay, picture)
    if job.entropy is not None:
        picture = heatmap(entropies.picture(), "sure", "all classes alike")
        write_png(job.entropy, picture)


def _open(predictor, path):
    """The image, to be read by windows where it need not be in memory."""
    channels = predictor.metadata.channels
    windows = None
    if isinstance(predictor, TiledPredictor):
        windows = open_windows(path, channels)
    return read_image(path, channels) if windows is None else windows


def _strips(predictor, image, uncertain):
    """Classes, and entropies or None, some rows at a time."""
    if isinstance(predictor, TiledPredictor):
        yield from predictor.strips(image, uncertain)
    elif uncertain:
        yield predictor.with_entropy(image)
    else:
        yield predictor(image), None


class _Small:
    """What comes in rows, shrunk by a whole factor to `PICTURE_PX` or less.

    Args:
        size: height and width.
        how: to shrink.
    """

    def __init__(self, size: tuple[int, int], how: int = cv2.INTER_AREA):
        self._factor = divide_up(max(size), PICTURE_PX)
        self._how = how
        self._rest: list[np.ndarray] = []
        self._done: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """Takes the next rows, [h, W] or [h, W, C]."""
        rows = np.concatenate([*self._rest, rows])
        whole = len(rows) - len(rows) % self._factor
        self._shrink(rows[:whole])
        # A copy, so that no more than these are kept alive.
        self._rest = [rows[whole:].copy()]

    def picture(self) -> np.ndarray:
        """All of them."""
        self._shrink(self._rest.pop())
        return np.concatenate(self._done)

    def _shrink(self, rows):
        if not len(rows):
            return
        height, width = (divide_up(n, self._factor) for n in rows.shape[:2])
        small = cv2.resize(rows, (width, height), interpolation=self._how)
        # OpenCV drops a single channel's axis.
        self._done.append(small.reshape(height, width, *rows.shape[2:]))


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
