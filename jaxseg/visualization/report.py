"""One page about a run: its curves, scores and confusions, and images to look at.

The page is one file that needs no network: `report.html` with the data put into it as
JSON, from which its script draws everything. Text reaches the page as text alone, never
as HTML, so that a class may be called `<b>`.
"""

import base64
import html
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from jaxseg.metadata import RunMetadata
from jaxseg.metrics import Calibration, Confusion, ImageIoU
from jaxseg.visualization.overlays import VOID, VOID_COLOR, colorize

EACH = 3
"""Images of each kind."""

SHOWN_PX = 640
"""The longer side of an image in the page, at most."""

MOST_POINTS = 2000
"""Of a curve; of a longer record every so many lines are left out."""

RIGHT, WRONG, HATCH = 255, 0, (150, 225)
"""Lightness in the error map; void is hatched in two grays."""


@dataclass(frozen=True)
class Example:
    """An image to look at.

    Attributes:
        kind: "best", "median" or "worst".
        name: of the record.
        miou: of this image alone.
        image: uint8 `[H, W, C]`.
        truth: uint8 `[H, W]`, 255 for void.
        prediction: uint8 `[H, W]`.
    """

    kind: str
    name: str
    miou: float
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def choose(images: ImageIoU, each: int = EACH) -> list[tuple[str, int]]:
    """The best, the median and the worst images by their own mIoU.

    Args:
        images: counts of each; those of nothing but void are left out.
        each: how many of each kind. No image is taken twice: of few there are fewer.

    Returns:
        Kind and place in `images`, the best first and the worst last.
    """
    miou = images.miou()
    order = [int(i) for i in np.argsort(miou, kind="stable") if not np.isnan(miou[i])]
    each = min(each, max(1, len(order) // 3))
    middle = (len(order) - each) // 2
    kinds = {
        "best": order[::-1][:each],
        "worst": order[:each],
        "median": order[middle : middle + each],
    }
    chosen: dict[int, str] = {}
    for kind, places in kinds.items():
        for place in places:
            chosen.setdefault(place, kind)
    ranked = sorted(chosen, key=order.index, reverse=True)
    return [(chosen[place], place) for place in ranked]


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
    """Makes the page.

    Args:
        title: of the page.
        facts: the summary, by name.
        metadata: of the workdir; all of it is shown, `class_names` and `palette` used.
        log: the lines of a run's `metrics.jsonl`.
        confusion: of all pixels.
        images: counts of each image.
        names: of the images.
        examples: to look at.
        calibration: of all pixels, where it was measured.
        boundary: boundary F1 by class, where it was measured.

    Returns:
        HTML.
    """
    charts = [*_curves(log), _spread(images, names)]
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
    # "<" is the one character that could end the element or begin another.
    filled = {
        "title": html.escape(title),
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    template = resources.files("jaxseg.visualization").joinpath("report.html")
    page = template.read_text(encoding="utf-8")
    return re.sub("{{(title|data)}}", lambda match: filled[match[1]], page)


def _curves(log):
    """Charts of what a run wrote down."""
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
        lines = lines[:: max(1, math.ceil(len(lines) / MOST_POINTS))]
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


def _spread(images, names):
    """The images in the order of their own mIoU."""
    miou = images.miou()
    order = [i for i in np.argsort(miou, kind="stable") if not np.isnan(miou[i])]
    order = order[:: max(1, math.ceil(len(order) / MOST_POINTS))]
    return {
        "title": "Images by their own mIoU",
        "axis": "image",
        "percent": True,
        "x": list(range(1, len(order) + 1)),
        "notes": [names[i] for i in order],
        "series": [{"name": "mIoU", "y": [float(miou[i]) for i in order]}],
    }


def _reliability(calibration):
    """How often the model is right, by how sure it is."""
    figures = calibration.compute()
    bins = figures["bins"]
    full = [i for i, count in enumerate(bins["count"]) if count]
    sure = [bins["confidence"][i] for i in full]
    share = np.asarray(bins["count"], np.float64) / max(1, sum(bins["count"]))
    return {
        "title": "Reliability",
        "axis": "confidence",
        "percent": True,
        "x": sure,
        "notes": [f"{share[i]:.1%} of the pixels" for i in full],
        "series": [
            {"name": "accuracy", "y": [bins["accuracy"][i] for i in full]},
            {"name": "calibrated", "y": sure},
        ],
    }


def _classes(confusion, metadata, boundary):
    names = metadata.class_names
    scores = confusion.compute(names)
    truth = confusion.counts.sum(axis=1)
    share = truth / max(1, truth.sum())
    return [
        {
            "name": name,
            "color": _hex(color),
            "iou": _number(scores["iou"][name]),
            "accuracy": _number(scores["accuracy"][name]),
            "share": float(part),
            **({} if boundary is None else {"boundary": _number(boundary[name])}),
        }
        for name, color, part in zip(names, metadata.palette, share)
    ]


def _example(example, metadata):
    names, palette = metadata.class_names, metadata.palette
    height, width = example.truth.shape
    shrink = min(1, SHOWN_PX / max(height, width))
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
    """Where a prediction is wrong, told by lightness and pattern alone.

    Args:
        truth: `[H, W]`, 255 for void.
        prediction: `[H, W]`.

    Returns:
        uint8 `[H, W]`: white where it is right, black where it is wrong, hatched in
        grays where the truth is void.
    """
    rows, columns = np.indices(truth.shape)
    hatch = np.where((rows + columns) // 3 % 2, *HATCH)
    errors = np.where(truth == prediction, RIGHT, WRONG)
    return np.where(truth == VOID, hatch, errors).astype(np.uint8)


def _uri(picture, kind):
    content = io.BytesIO()
    picture.save(content, format=kind, optimize=True, quality=85)
    coded = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{coded}"


def _hex(color):
    return "#{:02x}{:02x}{:02x}".format(*color)


def _number(value):
    """None for NaN, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None
