"""An HTML report of a run: curves, scores, confusion matrix and example images.

The page is one file that needs no network access: the template `report.html` with the
data as JSON, from which its script draws everything. Strings are inserted as text, never
as HTML, so a class may be called `<b>`.
"""

import base64
import html
import io
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from jaxseg.metadata import RunMetadata
from jaxseg.metrics import Calibration, Confusion, ImageIoU
from jaxseg.utils.text import printable
from jaxseg.visualization.overlays import VOID, VOID_COLOR, colorize

EXAMPLES_PER_KIND = 3
"""Number of best, of median and of worst images."""

MAX_SIDE_PX = 640
"""Largest side of an image in the page; larger images are shown smaller."""

MAX_POINTS = 2000
"""Largest number of points of a curve; longer curves are subsampled."""

RIGHT, WRONG, HATCH = 255, 0, (150, 225)
"""Gray levels of the error map; void is hatched in two of them."""


@dataclass(frozen=True)
class Example:
    """An example image.

    Attributes:
        kind: "best", "median" or "worst".
        name: of the record.
        miou: of this image.
        image: uint8 [H, W, C].
        truth: uint8 [H, W], 255 for void.
        prediction: uint8 [H, W].
    """

    kind: str
    name: str
    miou: float
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def choose_examples(
    images: ImageIoU, per_kind: int = EXAMPLES_PER_KIND
) -> list[tuple[str, int]]:
    """Chooses the best, the median and the worst images by their mIoU.

    Args:
        images: counts of each image; images of only void pixels are left out.
        per_kind: number of images of each kind; smaller if there are too few images,
            since no image is chosen twice.

    Returns:
        Kind and index into `images` of each, from the best to the worst.
    """
    miou = images.miou()
    order = [int(i) for i in np.argsort(miou, kind="stable") if not np.isnan(miou[i])]
    per_kind = min(per_kind, max(1, len(order) // 3))
    middle = (len(order) - per_kind) // 2
    kinds = {
        "best": order[::-1][:per_kind],
        "worst": order[:per_kind],
        "median": order[middle : middle + per_kind],
    }
    chosen: dict[int, str] = {}
    for kind, indices in kinds.items():
        for index in indices:
            chosen.setdefault(index, kind)
    ranked = sorted(chosen, key=order.index, reverse=True)
    return [(chosen[index], index) for index in ranked]


def render(
    title: str,
    facts: dict[str, str],
    metadata: RunMetadata,
    *,
    log: Sequence[dict[str, Any]],
    confusion: Confusion,
    images: ImageIoU,
    names: Sequence[str],
    examples: Sequence[Example],
    calibration: Calibration | None = None,
    boundary: dict[str, float | None] | None = None,
) -> str:
    """Renders the report.

    Args:
        title: of the page.
        facts: values of the summary, by name.
        metadata: of the workdir, shown completely.
        log: lines of the run's `metrics.jsonl`.
        confusion: confusion matrix of all pixels.
        images: counts of each image.
        names: names of the images.
        examples: example images.
        calibration: of all pixels, if it was measured.
        boundary: boundary F1 by class, if it was measured.

    Returns:
        HTML.
    """
    charts = [*_curves(log), _image_chart(images, names)]
    if calibration is not None:
        charts.append(_reliability(calibration))
    data = {
        "facts": list(facts.items()),
        "charts": charts,
        "classes": _classes(confusion, metadata, boundary),
        "confusion": confusion.counts.tolist(),
        "examples": [_example(example, metadata) for example in examples],
        "metadata": metadata.to_json(),
    }
    # "<" is the only character that could end the element or begin another.
    filled = {
        "title": html.escape(printable(title)),
        "data": json.dumps(_shown(data), allow_nan=False).replace("<", "\\u003c"),
    }
    template = resources.files("jaxseg.visualization").joinpath("report.html")
    page = template.read_text(encoding="utf-8")
    return re.sub("{{(title|data)}}", lambda match: filled[match[1]], page)


def _shown(value: Any) -> Any:
    """JSON values with control and bidirectional characters escaped, and no NaN."""
    if isinstance(value, dict):
        return {printable(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    if isinstance(value, str):
        return printable(value)
    return _number(value) if isinstance(value, float) else value


def _curves(log):
    """Charts of the training log."""
    kinds = (
        ("Loss", ("loss",), False),
        ("Learning rate", ("learning_rate",), False),
        ("Validation", ("val_miou", "val_pixel_accuracy", "val_mean_accuracy"), True),
    )
    titles = {
        "val_miou": "mIoU",
        "val_pixel_accuracy": "pixel accuracy",
        "val_mean_accuracy": "mean accuracy",
    }
    for title, keys, percent in kinds:
        lines = [line for line in log if keys[0] in line]
        lines = _subsample(lines)
        if lines:
            yield {
                "title": title,
                "axis": "step",
                "percent": percent,
                "x": [line["step"] for line in lines],
                "series": [
                    {
                        "name": titles.get(key, title.lower()),
                        "y": [_number(line.get(key)) for line in lines],
                    }
                    for key in keys
                ],
            }


def _subsample(points: list) -> list:
    return points[:: max(1, math.ceil(len(points) / MAX_POINTS))]


def _image_chart(images, names):
    """The mIoU of each image, sorted."""
    miou = images.miou()
    order = [i for i in np.argsort(miou, kind="stable") if not np.isnan(miou[i])]
    order = _subsample(order)
    return {
        "title": "mIoU of each image, sorted",
        "axis": "image",
        "percent": True,
        "x": list(range(1, len(order) + 1)),
        "notes": [names[i] for i in order],
        "series": [{"name": "mIoU", "y": [float(miou[i]) for i in order]}],
    }


def _reliability(calibration):
    """Accuracy by confidence."""
    bins = calibration.compute()["bins"]
    full = [i for i, count in enumerate(bins["count"]) if count]
    confidence = [bins["confidence"][i] for i in full]
    fraction = np.asarray(bins["count"], np.float64) / max(1, sum(bins["count"]))
    return {
        "title": "Reliability",
        "axis": "confidence",
        "percent": True,
        "x": confidence,
        "notes": [f"{fraction[i]:.1%} of the pixels" for i in full],
        "series": [
            {"name": "accuracy", "y": [bins["accuracy"][i] for i in full]},
            {"name": "calibrated", "y": confidence},
        ],
    }


def _classes(confusion, metadata, boundary):
    names = metadata.class_names
    scores = confusion.compute(names)
    truth = confusion.counts.sum(axis=1)
    fractions = truth / max(1, truth.sum())
    return [
        {
            "name": name,
            "color": _hex(color),
            "iou": _number(scores["iou"][name]),
            "accuracy": _number(scores["accuracy"][name]),
            "fraction": float(fraction),
            **({} if boundary is None else {"boundary": _number(boundary[name])}),
        }
        for name, color, fraction in zip(names, metadata.palette, fractions)
    ]


def _example(example, metadata):
    names, palette = metadata.class_names, metadata.palette
    height, width = example.truth.shape
    shrink = min(1, MAX_SIDE_PX / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))

    def small(classes):
        picture = Image.fromarray(classes).resize(size, Image.Resampling.NEAREST)
        return np.asarray(picture)

    image = example.image[..., 0] if example.image.shape[2] == 1 else example.image
    truth, prediction = small(example.truth), small(example.prediction)
    return {
        "kind": example.kind,
        "name": example.name,
        "miou": example.miou,
        "size": size,
        "present": [
            ["void", _hex(VOID_COLOR)] if k == VOID else [names[k], _hex(palette[k])]
            for k in np.union1d(example.truth, example.prediction)
        ],
        "layers": [
            _uri(Image.fromarray(image).resize(size, Image.Resampling.BOX), "JPEG"),
            _uri(Image.fromarray(colorize(truth, palette)), "PNG"),
            _uri(Image.fromarray(colorize(prediction, palette)), "PNG"),
            _uri(Image.fromarray(error_map(truth, prediction)), "PNG"),
        ],
    }


def error_map(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """A gray picture of the errors of a prediction.

    Args:
        truth: [H, W], 255 for void.
        prediction: [H, W].

    Returns:
        uint8 [H, W]: white if correct, black if wrong, hatched in gray if void.
    """
    rows, columns = np.indices(truth.shape)
    hatch = np.where((rows + columns) // 3 % 2, *HATCH)
    errors = np.where(truth == prediction, RIGHT, WRONG)
    return np.where(truth == VOID, hatch, errors).astype(np.uint8)


def _uri(picture, kind):
    content = io.BytesIO()
    picture.save(content, format=kind, optimize=True, quality=85)
    encoded = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"


def _hex(color):
    return "#{:02x}{:02x}{:02x}".format(*color)


def _number(value):
    """The number; None for NaN, which JSON does not have, and for other values."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Huge integers cannot be converted; their comparison is exact.
    return value if abs(value) <= sys.float_info.max else None
