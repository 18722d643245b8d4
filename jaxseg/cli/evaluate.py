"""`jaxseg evaluate`: a network's scores on a split of its data set."""

import json
import math
from pathlib import Path

from jaxseg.cli.common import (
    add_command,
    add_workdir,
    check_writable,
    open_split,
    open_workdir,
    without_nan,
)

REPORT = "report.json"


def add(commands):
    """Describes `jaxseg evaluate`."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        summary="score a network on a split of its data set",
        description="Scores a network: IoU and accuracy of each class, their means,\n"
        "pixel accuracy and frequency-weighted IoU, summed over the whole split and\n"
        "taken at the size of the labels, at whatever size the network was trained.\n"
        "The figures are printed in percent and written as JSON, from 0 to 1, with\n"
        "null for those of classes that do not occur.",
        example="jaxseg evaluate --workdir runs/camvid --split val "
        "--data-root ../shared/camvid --output camvid_val.json",
    )
    add_workdir(parser)
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
        "--output",
        metavar="FILE",
        help=f"the JSON file to write (default: {REPORT} in the workdir)",
    )


def run(args) -> int:
    """Does what `add` describes."""
    import jax
    from tqdm import tqdm

    from jaxseg.data.prepare import write_atomically
    from jaxseg.evaluator import Evaluator
    from jaxseg.metrics import format_table
    from jaxseg.sharding import create_parallel
    from jaxseg.steps import Normalization

    output = Path(args.output or Path(args.workdir) / REPORT)
    if output.is_dir():
        raise ValueError(f"{output} is a folder; give --output the name of a file.")
    model, variables, metadata = open_workdir(args)
    check_writable(output.parent)
    source = open_split(args, metadata)
    batch_size = metadata["eval"]["batch_size"]
    # The figures do not depend on the devices, so take those the batch divides by.
    parallel = create_parallel(data=math.gcd(batch_size, jax.device_count()))
    size = metadata["image_size"]
    evaluator = Evaluator(
        model,
        normalization=Normalization(**metadata["normalization"]),
        num_classes=len(metadata["class_names"]),
        batch_size=batch_size,
        parallel=parallel,
        image_size=size and tuple(size),
    )
    name, step = metadata["model"]["name"], metadata["step"]
    print(f"{name}, step {step}, on {len(source)} images of {args.split}", flush=True)
    confusion, _ = evaluator(
        variables,
        source,
        progress=lambda batches: tqdm(batches, unit="batch", disable=None, leave=False),
    )
    result = confusion.compute(
        metadata["class_names"], absent=metadata["eval"]["absent"]
    )
    report = {
        "model": name,
        "step": step,
        "split": args.split,
        "images": len(source),
        **without_nan(result),
    }
    write_atomically(output, json.dumps(report, indent=2) + "\n")
    print(f"{format_table(result)}\nwritten to {output}")
    return 0
