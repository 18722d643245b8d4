"""`jaxseg report`: an HTML page about a run."""

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxseg.cli.common import (
    Commands,
    add_command,
    add_split,
    check_output_file,
    open_split,
    without_nan,
)
from jaxseg.cli.evaluate import REPORT
from jaxseg.cli.scoring import Scoring, add_scoring, open_scoring, score_split
from jaxseg.utils.json_file import read_json

if TYPE_CHECKING:
    from jaxseg.data import Source
    from jaxseg.metrics import Calibration, ImageIoU
    from jaxseg.visualization.report import Example


def add(commands: Commands) -> None:
    """Adds `jaxseg report`."""
    parser = add_command(
        commands,
        "report",
        run,
        summary="write an HTML page about a run",
        description="Evaluates a network and writes one self-contained HTML page: summary,\n"
        "training curves, metrics and confusions of the classes, calibration, and the\n"
        "best, median and worst images with their label, prediction and errors.\n"
        "Boundary F1 is included if `jaxseg evaluate --metrics boundary` was run with\n"
        "the same options before.",
        example="jaxseg report --workdir runs/camvid --output report.html",
    )
    add_scoring(parser)
    add_split(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="HTML file to write"
    )


def run(args: Namespace) -> int:
    """Runs `jaxseg report`; returns the exit status."""
    from jaxseg.inference.image_metrics import ImageMetrics, prediction_writer
    from jaxseg.training.metric_writer import read_metrics
    from jaxseg.utils.files import write_atomically
    from jaxseg.visualization.report import render

    scoring = open_scoring(args)
    metadata = scoring.metadata
    check_output_file(args.output)
    evaluation = _read_evaluation(Path(args.workdir))
    source = open_split(args, metadata)
    print(f"{scoring.description}; {len(source)} images of {args.split}", flush=True)
    began = time.perf_counter()
    # On disk, because which images are shown is known only after all were scored.
    with tempfile.TemporaryDirectory() as folder:
        predictions = Path(folder)
        image_metrics = ImageMetrics(metadata.class_names, source.name)
        confusion, calibration = score_split(
            scoring,
            source,
            batch_size=args.batch_size,
            watchers=[
                image_metrics.add,
                prediction_writer(predictions, metadata.palette, source.name),
            ],
            calibrate=True,
        )
        images = image_metrics.iou
        scores = confusion.compute(metadata.class_names, absent=metadata.absent)
        boundary = _boundary(scoring, source, scores, evaluation)
        page = render(
            f"{Path(args.workdir).resolve().name}, step {metadata.step}",
            _facts(scoring, source, scores, calibration, images, boundary),
            metadata,
            log=read_metrics(args.workdir),
            confusion=confusion,
            images=images,
            names=image_metrics.names,
            examples=list(_examples(source, predictions, images)),
            calibration=calibration,
            boundary=boundary and boundary["by_class"],
        )
    write_atomically(args.output, page)
    print(
        f"{time.perf_counter() - began:.1f} seconds; {len(page) / 1e6:.1f} MB written "
        f"to {args.output}"
    )
    return 0


def _read_evaluation(workdir: Path) -> dict[str, Any]:
    """What `jaxseg evaluate` wrote to the workdir; empty if it was not run.

    Raises:
        ValueError: if the file is damaged.
    """
    path = workdir / REPORT
    evaluation = read_json(path) if path.is_file() else {}
    if not isinstance(evaluation, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object.")
    if "boundary" in evaluation:
        try:
            boundary = evaluation["boundary"]["either"]
            scores = [boundary["boundary_f1"], *boundary["by_class"].values()]
            valid = boundary["by_class"].keys() == evaluation["iou"].keys()
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: boundary is not complete.") from error
        if not valid or not all(x is None or isinstance(x, float) for x in scores):
            raise ValueError(f"{path} is damaged: boundary has invalid values.")
    return evaluation


def _boundary(
    scoring: Scoring,
    source: "Source",
    scores: dict[str, Any],
    evaluation: dict[str, Any],
) -> dict[str, Any] | None:
    """Boundary F1 from `jaxseg evaluate`, if it had the same result."""
    here = {
        "scoring": scoring.description,
        "split": source.split,
        "images": len(source),
        "iou": without_nan(scores["iou"]),
    }
    if {key: evaluation.get(key) for key in here} != here:
        return None
    return evaluation.get("boundary", {}).get("either")


def _facts(
    scoring: Scoring,
    source: "Source",
    scores: dict[str, Any],
    calibration: "Calibration",
    images: "ImageIoU",
    boundary: dict[str, Any] | None,
) -> dict[str, str]:
    import jax

    spread = images.compute()
    parameters = sum(x.size for x in jax.tree.leaves(scoring.variables["params"]))
    f1 = boundary and boundary["boundary_f1"]  # None without any boundary
    measured = {} if f1 is None else {"boundary F1": f"{f1:.1%}"}
    return {
        "mIoU": f"{scores['miou']:.1%}",
        **measured,
        "pixel accuracy": f"{scores['pixel_accuracy']:.1%}",
        "mean accuracy": f"{scores['mean_accuracy']:.1%}",
        "frequency-weighted IoU": f"{scores['fw_iou']:.1%}",
        "calibration error": f"{calibration.compute()['ece']:.1%}",
        "mIoU of single images": "median {median:.1%}, from {min:.1%} to "
        "{max:.1%}".format(**spread),
        "scored": scoring.description,
        "parameters": f"{parameters:,}",
        "data": f"{len(source)} images of {source.info.name}, {source.split}",
    }


def _examples(
    source: "Source", predictions: Path, images: "ImageIoU"
) -> "Iterator[Example]":
    import numpy as np
    from PIL import Image

    from jaxseg.visualization.report import Example, choose_examples

    miou = images.miou()
    for kind, number in choose_examples(images):
        record = source[int(images.index[number])]
        with Image.open(
            predictions / f"{record['name']}.png", formats=["PNG"]
        ) as picture:
            prediction = np.asarray(picture)
        yield Example(
            kind,
            record["name"],
            float(miou[number]),
            record["image"],
            record["label"],
            prediction,
        )
