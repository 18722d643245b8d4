"""`jaxseg evaluate`: metrics of a network on a split of its data set."""

import json
import time
from argparse import Namespace
from pathlib import Path

from jaxseg.cli.common import (
    Commands,
    add_command,
    add_split,
    check_output_file,
    check_writable,
    open_split,
    without_nan,
)
from jaxseg.cli.scoring import add_scoring, open_scoring, score_split

REPORT = "report.json"
METRICS = ("boundary", "trimap", "calibration")


def add(commands: Commands) -> None:
    """Adds `jaxseg evaluate`."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        summary="evaluate a network on a split of its data set",
        description="Evaluates a network: IoU and accuracy of each class, their means,\n"
        "pixel accuracy and frequency-weighted IoU from one confusion matrix over the\n"
        "whole split, at the size of the labels; and the distribution of the mIoU of\n"
        "single images. Prints percentages, and writes a JSON file with values from 0\n"
        "to 1, null for classes that do not occur. An .npz file beside it has the\n"
        "counts of each image, for `jaxseg compare`.",
        example="jaxseg evaluate --workdir runs/camvid --split val "
        "--metrics boundary,trimap --crf deeplab --output camvid_val.json",
    )
    add_scoring(parser)
    add_split(parser)
    parser.add_argument(
        "--metrics",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help="additional metrics: boundary (F1 as in SegNet's script), trimap (IoU near "
        "boundaries), calibration (expected calibration error)",
    )
    parser.add_argument(
        "--save-predictions",
        metavar="DIR",
        type=Path,
        help="folder for the predictions as indexed PNG files",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"JSON file to write (default: {REPORT} in the workdir)",
    )


def run(args: Namespace) -> int:
    """Runs `jaxseg evaluate`; returns the exit status."""
    from jaxseg.inference.evaluator import Watch
    from jaxseg.inference.image_metrics import ImageMetrics, prediction_writer
    from jaxseg.metrics import format_table
    from jaxseg.utils.files import write_atomically

    unknown = sorted(set(args.metrics) - set(METRICS))
    if unknown:
        raise ValueError(
            f"Unknown --metrics {', '.join(unknown)}; known: {', '.join(METRICS)}."
        )
    output = Path(args.output or Path(args.workdir) / REPORT)
    scoring = open_scoring(args)
    metadata = scoring.metadata
    check_output_file(output)
    if args.save_predictions is not None:
        check_writable(args.save_predictions)
    source = open_split(args, metadata)
    print(f"{scoring.description}; {len(source)} images of {args.split}", flush=True)
    image_metrics = ImageMetrics(
        metadata.class_names,
        source.name,
        boundary="boundary" in args.metrics,
        trimap="trimap" in args.metrics,
    )
    watchers: list[Watch] = [image_metrics.add]
    if args.save_predictions is not None:
        watchers.append(
            prediction_writer(args.save_predictions, metadata.palette, source.name)
        )
    began = time.perf_counter()
    confusion, calibration = score_split(
        scoring,
        source,
        batch_size=args.batch_size,
        watchers=watchers,
        calibrate="calibration" in args.metrics,
    )
    seconds = time.perf_counter() - began
    result = confusion.compute(metadata.class_names, absent=metadata.absent)
    report = {
        "model": metadata.model_name,
        "scoring": scoring.description,
        "step": metadata.step,
        "split": args.split,
        "images": len(source),
        "seconds": seconds,
        **result,
        **image_metrics.compute(),
    }
    if "calibration" in args.metrics:
        report["calibration"] = calibration.compute()
    image_metrics.save(output.with_suffix(".npz"))
    write_atomically(output, json.dumps(without_nan(report), indent=2) + "\n")
    print(f"{format_table(result)}\n{image_metrics.summary()}")
    if "calibration" in report:
        print(f"expected calibration error {report['calibration']['ece']:.1%}")
    print(f"{seconds:.1f} seconds; written to {output}")
    return 0
