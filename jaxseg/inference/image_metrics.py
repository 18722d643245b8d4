"""What is measured of each image by itself, on the host, as predictions come in."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data import Source
from jaxseg.metadata import RunMetadata
from jaxseg.metrics import BoundaryF1, Confusion, ImageIoU, Trimap
from jaxseg.utils.files import write_atomically
from jaxseg.visualization.overlays import index_png


class ImageMetrics:
    """Counts of each image, and of the pixels near boundaries.

    card = ImageMetrics(source, metadata, boundary=True)
    evaluator(variables, source, watch=card.add)
    card.compute()
    """

    def __init__(
        self,
        source: Source,
        metadata: RunMetadata,
        *,
        boundary: bool = False,
        trimap: bool = False,
        predictions: Path | None = None,
    ):
        """Starts with no image.

        Args:
            source: the split that is scored.
            metadata: of the workdir: `class_names` and `palette`.
            boundary: whether to match boundaries, a fraction of a second an image.
            trimap: whether to count near boundaries.
            predictions: folder for the predictions as PNGs; None to keep none.
        """
        self._source = source
        self._metadata = metadata
        self._predictions = predictions
        self._names: dict[int, str] = {}
        k = metadata.num_classes
        self._iou: list[ImageIoU] = [ImageIoU.zeros(k)]
        self._boundary = [BoundaryF1.zeros(k)] if boundary else None
        self._trimap = Trimap.zeros(k) if trimap else None

    def add(self, index: int, prediction: np.ndarray) -> None:
        """Takes the prediction of one record, uint8 [H, W]."""
        record = self._source[index]
        label, k = record["label"], self._metadata.num_classes
        self._names[index] = record["name"]
        confusion = Confusion.of(prediction, label, k)
        self._iou.append(ImageIoU.of(index, confusion))
        if self._boundary is not None:
            self._boundary.append(BoundaryF1.of(index, prediction, label, k))
        if self._trimap is not None:
            self._trimap += Trimap.of(prediction, label, k)
        if self._predictions is not None:
            path = self._predictions / f"{record['name']}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            index_png(path, prediction, self._metadata.palette)

    def compute(self) -> dict[str, Any]:
        """The spread of the images' own mIoU, and what else was asked for."""
        names = self._metadata.class_names
        result: dict[str, Any] = {"image_miou": _joined(self._iou).compute()}
        if self._boundary is not None:
            boundary = _joined(self._boundary)
            result["boundary"] = {
                present: boundary.compute(names, present)
                for present in ("either", "truth")
            }
        if self._trimap is not None:
            result["trimap"] = self._trimap.compute(names)
        return result

    def summary(self) -> str:
        """The same in a few lines, in percent."""
        scores = self.compute()
        spread = scores["image_miou"]
        lines = [
            "mIoU of single images: median {median:.1%}, from {min:.1%} to {max:.1%}, "
            "nine in ten between {p5:.1%} and {p95:.1%}".format(**spread)
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
        """Writes the counts of each image, for `load_counts`, whole or not at all."""
        iou = _joined(self._iou)
        arrays = {"index": iou.index, "iou": iou.counts}
        if self._boundary is not None:
            arrays["boundary"] = _joined(self._boundary).counts
        about = {
            "class_names": list(self._metadata.class_names),
            "images": [self._names[i] for i in iou.index.tolist()],
        }
        content = io.BytesIO()
        np.savez_compressed(content, about=np.array(json.dumps(about)), **arrays)
        write_atomically(Path(path), content.getvalue())


def load_counts(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `ImageMetrics.save` wrote.

    Returns:
        `class_names` and `images`, their names; and by name of the score its counts:
        "iou", and "boundary" where it was measured.

    Raises:
        ValueError: if there is no such file, or it is none.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no {path}; `jaxseg evaluate` writes it.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            index = arrays["index"]
            counts: dict[str, Any] = {"iou": ImageIoU(index, arrays["iou"])}
            if "boundary" in arrays:
                counts["boundary"] = BoundaryF1(index, arrays["boundary"])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no counts of images.") from error
    return about, counts


def _joined(parts: list):
    """All images at once: adding them one by one would copy them all each time."""
    kind = type(parts[0])
    return kind(
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )
