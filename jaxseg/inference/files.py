"""Predicts files and folders of images: which files are read and written."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxseg.data.images import IMAGE_SUFFIXES, read_image
from jaxseg.data.tiff import ROWS, TiffWindows, open_windows
from jaxseg.inference.predictor import Predictor
from jaxseg.inference.tiled import TiledPredictor
from jaxseg.utils.rounding import divide_up
from jaxseg.visualization.heatmap import heatmap
from jaxseg.visualization.overlays import index_png_rows, overlay_with_legend, write_png

PICTURE_PX = 4096
"""Longest side of overlays and heatmaps, which most image viewers can open."""


@dataclass(frozen=True)
class InputFile:
    """An image file and the files of its prediction.

    Attributes:
        image: file to read.
        index: indexed PNG of the classes, with a palette.
        overlay: PNG of the image blended with the class colors, and a legend.
        entropy: PNG of the normalized entropy; None if it is not written.
    """

    image: Path
    index: Path
    overlay: Path
    entropy: Path | None = None


def find_input_files(
    paths: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    uncertainty: bool = False,
) -> list[InputFile]:
    """Finds the images and determines the files of their predictions; writes nothing.

    The prediction of a file is `<output>/<stem>.png`. Folders are searched recursively
    for png, jpg, webp, tif, bmp and gif files, except hidden ones and those in `output`,
    and their structure is kept: for `a/b/x.jpg` in folder `a` it is `<output>/b/x.png`. A file
    that does not exist is included, and fails when it is read.

    Args:
        paths: files and folders. A file that is given twice is included once.
        output: folder of the predictions.
        uncertainty: whether to write the entropy too, as `<stem>_entropy.png`.

    Returns:
        The files in the order of `paths`; those of a folder sorted by name.

    Raises:
        ValueError: if a folder has no images, two images would be written to the same
            file, or an image would be overwritten.
    """
    output = Path(os.path.abspath(output))
    files: dict[Path, InputFile] = {}
    for path in map(Path, paths):
        found = list(_search(path, output)) if path.is_dir() else [path]
        if not found:
            raise ValueError(
                f"{path} has no images ({', '.join(IMAGE_SUFFIXES)}); give another "
                "folder, or files."
            )
        for image in found:
            inner = image.relative_to(path if path.is_dir() else path.parent)
            index = output / inner.with_suffix(".png")
            overlay = index.with_name(f"{index.stem}_overlay.png")
            entropy = index.with_name(f"{index.stem}_entropy.png")
            file = InputFile(image, index, overlay, entropy if uncertainty else None)
            files.setdefault(Path(os.path.abspath(image)), file)
    _check_distinct(files)
    return list(files.values())


def predict_file(predictor: Predictor | TiledPredictor, file: InputFile) -> None:
    """Reads an image and writes its prediction, atomically.

    The classes have the size of the image; overlay and entropy are reduced to
    `PICTURE_PX`.

    Args:
        predictor: predictor of a workdir.
        file: files to read and write; missing folders are created.

    Raises:
        ValueError: if the file is not an image; the message names it.
        OSError: if a file cannot be read or written.
    """
    metadata = predictor.metadata
    image = _open(predictor, file.image)
    size, palette = image.shape[:2], metadata.palette
    classes = _Small(size, cv2.INTER_NEAREST)
    entropies = _Small(size)
    file.index.parent.mkdir(parents=True, exist_ok=True)
    with index_png_rows(file.index, size, palette) as write:
        for rows, entropy in _strips(predictor, image, file.entropy is not None):
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
    write_png(file.overlay, picture)
    if file.entropy is not None:
        picture = heatmap(entropies.picture(), "certain", "all classes equally likely")
        write_png(file.entropy, picture)


def _open(
    predictor: Predictor | TiledPredictor, path: Path
) -> np.ndarray | TiffWindows:
    """The image, or windows into it if the predictor and the file allow that."""
    channels = predictor.metadata.channels
    windows = None
    if isinstance(predictor, TiledPredictor):
        windows = open_windows(path, channels)
    return read_image(path, channels) if windows is None else windows


def _strips(
    predictor: Predictor | TiledPredictor, image: Any, with_entropy: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Classes and entropies, or None, in strips of rows."""
    if isinstance(predictor, TiledPredictor):
        yield from predictor.strips(image, with_entropy)
    elif with_entropy:
        yield predictor.with_entropy(image)
    else:
        yield predictor(image), None


class _Small:
    """A picture that arrives in rows, reduced by an integer factor to `PICTURE_PX`.

    Args:
        size: (height, width) of the original.
        interpolation: OpenCV's, for reducing.
    """

    def __init__(self, size: tuple[int, ...], interpolation: int = cv2.INTER_AREA):
        self._factor = divide_up(max(size), PICTURE_PX)
        self._interpolation = interpolation
        self._rest: list[np.ndarray] = []
        self._done: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """Adds the next rows, [h, W] or [h, W, C]."""
        rows = np.concatenate([*self._rest, rows])
        whole = len(rows) - len(rows) % self._factor
        self._shrink(rows[:whole])
        # A copy, to release the rest of the array.
        self._rest = [rows[whole:].copy()]

    def picture(self) -> np.ndarray:
        """The reduced picture, after the last rows."""
        self._shrink(self._rest.pop())
        return np.concatenate(self._done)

    def _shrink(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        height, width = (divide_up(n, self._factor) for n in rows.shape[:2])
        small = cv2.resize(rows, (width, height), interpolation=self._interpolation)
        # OpenCV drops the axis of a single channel.
        self._done.append(small.reshape(height, width, *rows.shape[2:]))


def _search(folder: Path, output: Path) -> Iterator[Path]:
    """Images in a folder and its subfolders, sorted by name."""
    for place, folders, files in os.walk(folder):
        # os.walk skips the folders that are removed from the list.
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


def _check_distinct(files: dict[Path, InputFile]) -> None:
    written: dict[Path, Path] = {}
    for file in files.values():
        for target in filter(None, (file.index, file.overlay, file.entropy)):
            if target in files:
                raise ValueError(
                    f"The prediction of {file.image} would overwrite the image {target};"
                    " use another output folder."
                )
            if target in written:
                raise ValueError(
                    f"{written[target]} and {file.image} would both be written to "
                    f"{target}; rename one, or use different output folders."
                )
            written[target] = file.image
