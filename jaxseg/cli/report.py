"""`jaxseg report`: an HTML page about a run."""

import json
import tempfile
import time
from pathlib import Path

from jaxseg.cli.common import add_command, check_writable, open_split, without_nan
from jaxseg.cli.evaluate import REPORT
from jaxseg.cli.scoring import add_scoring, open_scoring, score_split


def add(commands):
    """Describes `jaxseg report`."""
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
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="split to evaluate (default: the validation split)",
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="folder of the data set, if it differs from the one used for training",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="HTML file to write"
    )


def run(args) -> int:
    """Does what `add` describes."""
    from jaxseg.inference.image_metrics import ImageMetrics, prediction_writer
    from jaxseg.training.metric_writer import read_metrics
    from jaxseg.utils.files import write_atomically
    from jaxseg.visualization.report import render

    if args.output.is_dir():
        raise ValueError(f"{args.output} is a folder; --output must be a file.")
    scoring = open_scoring(args)
    metadata = scoring.metadata
    check_writable(args.output.parent)
    source = open_split(args, metadata)
    print(f"{scoring.description}; {len(source)} images of {args.split}", flush=True)
    began = time.perf_counter()
    # On disk: which images are shown is known only when all have been scored.
    with tempfile.TemporaryDirectory() as folder:
        predictions = Path(folder)
        image_metrics = ImageMetrics(metadata.class_names, source.name)
        confusion, calibration = score_split(
            scoring,
            source,
            watchers=[
                image_metrics.add,
                prediction_writer(predictions, metadata.palette, source.name),
            ],
            calibrate=True,
        )
        images = image_metrics.iou
        scores = confusion.compute(metadata.class_names, absent=metadata.absent)
        boundary = _boundary(scoring, source, scores, Path(args.workdir))
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


def _boundary(scoring, source, scores, workdir):
    """Boundary F1 that `jaxseg evaluate` has left in the workdir, if of this very run."""
    path = workdir / REPORT
    try:
        evaluation = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    here = {
        "scoring": scoring.description,
        "split": source.split,
        "images": len(source),
        "iou": without_nan(scores["iou"]),
    }
    if {key: evaluation.get(key) for key in here} != here:
        return None
    return evaluation.get("boundary", {}).get("either")


def _facts(scoring, source, scores, calibration, images, boundary):
    import jax

    spread = images.compute()
    parameters = sum(x.size for x in jax.tree.leaves(scoring.variables["params"]))
    measured = {"boundary F1": f"{boundary['boundary_f1']:.1%}"} if boundary else {}
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


def _examples(source, predictions, images):
    import numpy as np
    from PIL import Image

    from jaxseg.visualization.report import Example, choose_examples

    miou = images.miou()
    for kind, number in choose_examples(images):
        record = source[int(images.index[number])]
        with Image.open(predictions / f"{record['name']}.png") as picture:
            prediction = np.asarray(picture)
        yield Example(
            kind,
            record["name"],
            float(miou[number]),
            record["image"],
            record["label"],
            prediction,
        )
