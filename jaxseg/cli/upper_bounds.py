"""`jaxseg upper-bounds`: the best possible scores of coarse predictions."""

import json
from argparse import Namespace
from pathlib import Path

from jaxseg.cli.common import (
    Commands,
    add_command,
    add_data_options,
    check_output_file,
    without_nan,
)
from jaxseg.utils.files import PREPARED_DIR


def add(commands: Commands) -> None:
    """Adds `jaxseg upper-bounds`."""
    parser = add_command(
        commands,
        "upper-bounds",
        run,
        summary="compute the best possible scores of coarse predictions",
        description="Evaluates the labels of a data set at reduced resolution as if they\n"
        "were predictions: each cell of FACTOR x FACTOR pixels gets its most frequent\n"
        "class. The result bounds the scores of any network whose output is FACTOR\n"
        "times smaller than the image (FCN, appendix A). No network is needed.",
        example="jaxseg upper-bounds --dataset camvid --data-root data/camvid",
    )
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help="data set: camvid, folder or shapes",
    )
    parser.add_argument(
        "--data-root", default="", metavar="DIR", help="folder of the images and masks"
    )
    parser.add_argument(
        "--split",
        default="val",
        metavar="NAME",
        help="split of the data set (default: val)",
    )
    add_data_options(parser, PREPARED_DIR)
    parser.add_argument(
        "--factors",
        nargs="+",
        type=int,
        metavar="FACTOR",
        help="reduction factors of height and width (default: 128 64 32 16 8 4 2 1)",
    )
    parser.add_argument(
        "--upsample",
        choices=("nearest", "bilinear"),
        default="nearest",
        help="interpolation from cells to pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="JSON file to write, with the metrics of `jaxseg evaluate` for each factor",
    )


def run(args: Namespace) -> int:
    """Runs `jaxseg upper-bounds`; returns the exit status."""
    from jaxseg.data import create_source
    from jaxseg.metrics import upper_bounds
    from jaxseg.metrics.upper_bound import FACTORS
    from jaxseg.utils.files import write_atomically

    if args.output is not None:
        check_output_file(args.output)
    source = create_source(
        args.dataset,
        args.split,
        root=args.data_root,
        prepared_dir=args.prepared_dir or PREPARED_DIR,
        trust_prepared=args.trust_prepared,
        **args.options,
    )
    info = source.info
    bounds = upper_bounds(
        map(source.label, range(len(source))),
        info.num_classes,
        args.factors or FACTORS,
        args.upsample,
    )
    scores = {str(f): bound.compute(info.class_names) for f, bound in bounds.items()}
    print(
        f"{info.name}: {len(source)} label maps of {args.split}, "
        f"{args.upsample} upsampling\n"
    )
    print(_table(scores))
    if args.output is not None:
        write_atomically(args.output, json.dumps(without_nan(scores), indent=2) + "\n")
        print(f"written to {args.output}")
    return 0


def _table(scores: dict[str, dict]) -> str:
    lines = [f"{'factor':>6}  {'mIoU':>6}  pixel accuracy"]
    for factor, result in scores.items():
        miou, accuracy = 100 * result["miou"], 100 * result["pixel_accuracy"]
        lines.append(f"{factor:>6}  {miou:6.1f}  {accuracy:14.1f}")
    return "\n".join(lines)
