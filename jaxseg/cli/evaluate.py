"""`jaxseg evaluate`: a network's scores on a split of its data set."""

import json
import time
from pathlib import Path

from jaxseg.cli.common import add_command, check_writable, open_split, without_nan
from jaxseg.cli.scoring import add_scoring, open_scoring, score_split

REPORT = "report.json"
METRICS = ("boundary", "trimap", "calibration")


def add(commands):
    """Describes `jaxseg evaluate`."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        summary="score a network on a split of its data set",
        description="Scores a network: IoU and accuracy of each class, their means,\n"
        "pixel accuracy and frequency-weighted IoU, summed over the whole split and\n"
        "taken at the size of the labels, at whatever size the network was trained;\n"
        "and how each image's own mIoU is spread. The figures are printed in percent\n"
        "and written as JSON, from 0 to 1, with null for those of classes that do not\n"
        "occur; beside it, as .npz, the counts of each image, for `jaxseg compare`.",
        example="jaxseg evaluate --workdir runs/camvid --split val "
        "--metrics boundary,trimap --crf deeplab --output camvid_val.json",
    )
    add_scoring(parser)
    parser.add_argument(
        "--split", metavar="NAME", help="of the data set (default: the validation one)"
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="folder of the data set, where it is not where it was for training; "
        "another data set of the same classes may lie there",
    )
    parser.add_argument(
        "--metrics",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help="what else to measure: boundary (F1 of SegNet's script), trimap (IoU near "
        "boundaries), calibration (expected error of the confidence)",
    )
    parser.add_argument(
        "--save-predictions",
        metavar="DIR",
        type=Path,
        help="folder for the predictions, as PNGs with palette",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"the JSON file to write (default: {REPORT} in the workdir)",
    )


def run(args) -> int:
    """Does what `add` describes."""
    from jaxseg.inference.image_metrics import ImageMetrics, prediction_writer
    from jaxseg.metrics import format_table
    from jaxseg.utils.files import write_atomically

    unknown = sorted(set(args.metrics) - set(METRICS))
    if unknown:
        raise ValueError(
            f"--metrics has no {', '.join(unknown)}; known: {', '.join(METRICS)}."
        )
    output = Path(args.output or Path(args.workdir) / REPORT)
    if output.is_dir():
        raise ValueError(f"{output} is a folder; give --output the name of a file.")
    scoring = open_scoring(args)
    metadata = scoring.metadata
    check_writable(output.parent)
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
    watchers = [image_metrics.add]
    if args.save_predictions is not None:
        watchers.append(
            prediction_writer(args.save_predictions, metadata.palette, source.name)
        )
    began = time.perf_counter()
    confusion, calibration = score_split(
        scoring, source, watchers=watchers, calibrate="calibration" in args.metrics
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
