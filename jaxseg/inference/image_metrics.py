"""Metrics of single images, computed on the host during an evaluation."""

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxseg.metrics import BoundaryF1, Confusion, ImageIoU, Trimap
from jaxseg.utils.files import read_file, write_atomically
from jaxseg.utils.json_file import parse_json
from jaxseg.visualization.overlays import Palette, index_png

MAX_BYTES = 2**30
"""Largest file of counts, and largest memory for its arrays."""

Counts = TypeVar("Counts", ImageIoU, BoundaryF1)


class ImageMetrics:
    """Counts of each image, and of the pixels near boundaries.

    image_metrics = ImageMetrics(class_names, source.name, boundary=True)
    evaluator(variables, source, watch=image_metrics.add)
    image_metrics.compute()
    """

    def __init__(
        self,
        class_names: Sequence[str],
        name: Callable[[int], str],
        *,
        boundary: bool = False,
        trimap: bool = False,
    ):
        """Starts without images.

        Args:
            class_names: K names.
            name: index of a record to its name, such as `Source.name`.
            boundary: whether to compute boundary F1, a fraction of a second per image.
            trimap: whether to compute the IoU near boundaries.
        """
        self._class_names = tuple(class_names)
        self._name = name
        k = len(self._class_names)
        self._iou: list[ImageIoU] = [ImageIoU.zeros(k)]
        self._boundary = [BoundaryF1.zeros(k)] if boundary else None
        self._trimap = Trimap.zeros(k) if trimap else None

    def add(self, index: int, prediction: np.ndarray, label: np.ndarray) -> None:
        """Adds a record with its prediction and label, uint8 [H, W]."""
        k = len(self._class_names)
        self._iou.append(ImageIoU.of(index, Confusion.of(prediction, label, k)))
        if self._boundary is not None:
            self._boundary.append(BoundaryF1.of(index, prediction, label, k))
        if self._trimap is not None:
            self._trimap += Trimap.of(prediction, label, k)

    @property
    def iou(self) -> ImageIoU:
        """Counts of all images so far."""
        return _concatenate(self._iou)

    @property
    def names(self) -> list[str]:
        """Names of the images, in the order of `iou`."""
        return [self._name(index) for index in self.iou.index.tolist()]

    def compute(self) -> dict[str, Any]:
        """Distribution of the images' mIoU, boundary F1 and IoU near boundaries.

        Returns:
            "image_miou", from `ImageIoU.compute`, and if requested "boundary", from
            `BoundaryF1.compute` for classes present in either map or in the truth, and
            "trimap", from `Trimap.compute`.
        """
        names = self._class_names
        result: dict[str, Any] = {"image_miou": self.iou.compute()}
        if self._boundary is not None:
            boundary = _concatenate(self._boundary)
            result["boundary"] = {
                present: boundary.compute(names, present)
                for present in ("either", "truth")
            }
        if self._trimap is not None:
            result["trimap"] = self._trimap.compute(names)
        return result

    def summary(self) -> str:
        """The result of `compute` as text, in percent."""
        scores = self.compute()
        spread = scores["image_miou"]
        lines = [
            "mIoU of single images: median {median:.1%}, minimum {min:.1%}, maximum "
            "{max:.1%}, 5th to 95th percentile {p5:.1%} to {p95:.1%}".format(**spread)
        ]
        if "boundary" in scores:
            either, truth = (
                scores["boundary"][present]["boundary_f1"]
                for present in ("either", "truth")
            )
            lines.append(
                f"boundary F1 {either:.1%} ({truth:.1%} over classes in the truth)"
            )
        if "trimap" in scores:
            near = (f"{r} px {s['miou']:.1%}" for r, s in scores["trimap"].items())
            lines.append(f"mIoU near boundaries: {', '.join(near)}")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the counts of each image atomically, for `load_counts`."""
        iou = self.iou
        about = {"class_names": list(self._class_names), "images": self.names}
        arrays: dict[str, Any] = {
            "about": np.array(json.dumps(about)),
            "index": iou.index,
            "iou": iou.counts,
        }
        if self._boundary is not None:
            arrays["boundary"] = _concatenate(self._boundary).counts
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(path, content.getvalue())


def load_counts(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the counts that `ImageMetrics.save` wrote.

    Returns:
        A dictionary of `class_names` and `images`, the names of the images; and the
        counts by metric, "iou" and, if it was computed, "boundary".

    Raises:
        ValueError: if the file does not exist or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; `jaxseg evaluate` writes it.")
    try:
        arrays = _read_arrays(path)
        about = parse_json(str(arrays["about"]), str(path))
        names, images = (about[key] for key in ("class_names", "images"))
        counts: dict[str, Any] = {"iou": ImageIoU(arrays["index"], arrays["iou"])}
        if "boundary" in arrays:
            counts["boundary"] = BoundaryF1(arrays["index"], arrays["boundary"])
        valid = (
            isinstance(names, list)
            and isinstance(images, list)
            and all(isinstance(name, str) for name in (*names, *images))
            and len(images) == len(counts["iou"].index)
            and all(len(names) == count.num_classes for count in counts.values())
        )
    except Exception as error:  # zip files and arrays raise many kinds of errors
        raise ValueError(
            f"{path} is damaged, or not a file of image counts ({str(error)[:200]})."
        ) from error
    if not valid:
        raise ValueError(f"{path} is damaged: its names do not match its counts.")
    return about, counts


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which need no more memory than `MAX_BYTES`."""
    content = io.BytesIO(read_file(path, MAX_BYTES))
    with zipfile.ZipFile(content) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise ValueError(f"its arrays have more than {MAX_BYTES:,} bytes")
        for entry in entries:
            with archive.open(entry) as file:
                np.lib.format.read_magic(file)
                # NumPy allocates memory for the shape before it reads.
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} ends early")
    content.seek(0)
    with np.load(content, allow_pickle=False) as arrays:
        return dict(arrays)


def _concatenate(counts: list[Counts]) -> Counts:
    """Concatenates all at once; adding one by one would copy the sum each time."""
    return type(counts[0])(
        np.concatenate([one.index for one in counts]),
        np.concatenate([one.counts for one in counts]),
    )


def prediction_writer(
    folder: Path, palette: Palette, name: Callable[[int], str]
) -> Callable[[int, np.ndarray, np.ndarray], None]:
    """A function that writes predictions as indexed PNGs, for `watch` of `Evaluator`.

    Args:
        folder: folder of the files, `<name>.png`; missing folders are created.
        palette: K RGB colors.
        name: index of a record to its name.

    Returns:
        The function; it raises a ValueError if a file would be outside the folder.
    """

    def write(index: int, prediction: np.ndarray, label: np.ndarray) -> None:
        del label
        path = folder / f"{name(index)}.png"
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"The prediction {path} would be outside {folder}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        index_png(path, prediction, palette)

    return write
