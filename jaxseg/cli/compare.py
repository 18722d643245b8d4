"""`jaxseg compare`: differences between runs, with confidence intervals."""

import json
import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxseg.cli.common import Commands, add_command, check_output_file, without_nan
from jaxseg.cli.evaluate import REPORT
from jaxseg.utils.text import printable

LEVEL = 0.95
TITLES = {"iou": "IoU", "boundary": "boundary F1"}


def add(commands: Commands) -> None:
    """Adds `jaxseg compare`."""
    parser = add_command(
        commands,
        "compare",
        run,
        summary="compare runs, with confidence intervals",
        description="Compares runs that `jaxseg evaluate` scored on the same images: the\n"
        "IoU of each class and the mean, boundary F1 if all runs have it, and the\n"
        "difference of each run from the first with a 95 % confidence interval (paired\n"
        "bootstrap, 10,000 samples of the images). The interval covers the choice of\n"
        "images only: it is too narrow if images resemble each other, as frames of a\n"
        "video do, and it does not cover the seed of the training.",
        example="jaxseg compare runs/plain runs/deeper --output difference.json",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help=f"a workdir with a {REPORT}, or a file that `jaxseg evaluate --output` wrote",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="JSON file to write; values from 0 to 1, null for missing ones",
    )


@dataclass(frozen=True)
class Run:
    """The counts of one evaluation.

    Attributes:
        name: workdir or file, as given.
        class_names: K names.
        counts: counts of the images, by metric.
        images: names of the images, sorted, in the order of the counts.
    """

    name: str
    class_names: list[str]
    counts: dict[str, Any]
    images: list[str]


def run(args: Namespace) -> int:
    """Runs `jaxseg compare`; returns the exit status."""
    from jaxseg.metrics import paired_bootstrap
    from jaxseg.utils.files import write_atomically

    if len(args.runs) < 2:
        raise ValueError("Give at least two runs to compare.")
    if args.output is not None:
        check_output_file(args.output)
    first, *others = (_open(name) for name in args.runs)
    for other in others:
        _check_same_data(first, other)
    scores = [s for s in TITLES if all(s in r.counts for r in (first, *others))]
    compared = []
    for other in others:
        entry: dict[str, Any] = {"run": other.name}
        for score in scores:
            pair = first.counts[score], other.counts[score]
            mean, classes = paired_bootstrap(*pair, first.class_names, level=LEVEL)
            before, after = (_figures(counts) for counts in pair)
            intervals = {**classes, "mean": mean}
            entry[score] = {
                name: {"first": a, "second": b, **interval._asdict()}
                for (name, interval), a, b in zip(intervals.items(), before, after)
            }
            print(_table(first.name, other.name, TITLES[score], entry[score]) + "\n")
        compared.append(entry)
    print(
        f"Percentages over {len(first.images)} images, with {LEVEL:.0%} confidence "
        "intervals in brackets;\n* marks intervals that exclude 0."
    )
    if args.output is not None:
        result = {"first": first.name, "level": LEVEL, "compared": compared}
        text = json.dumps(without_nan(result), indent=2)
        write_atomically(args.output, text + "\n")
        print(f"written to {args.output}")
    return 0


def _open(name: str) -> Run:
    """Reads the counts of a run, and sorts its images by name."""
    import numpy as np

    from jaxseg.inference.image_metrics import load_counts

    path = Path(name)
    if not path.exists():
        raise ValueError(f"{name} does not exist.")
    command = f"`jaxseg evaluate --workdir {name}`"
    if path.is_dir():
        path = path / REPORT
    elif path.suffix not in (".json", ".npz"):
        raise ValueError(
            f"{name} is not a workdir, nor a .json or .npz file of `jaxseg evaluate`."
        )
    else:
        command = f"`jaxseg evaluate --output {path.with_suffix('.json')}`"
    path = path.with_suffix(".npz")
    if not path.is_file():
        raise ValueError(
            f"{name} has not been evaluated: {path} does not exist. Run {command}."
        )
    about, counts = load_counts(path)
    # Data sets that were prepared separately may have their records in another order.
    order = np.argsort(about["images"])
    index = np.argsort(order)
    return Run(
        name,
        about["class_names"],
        {score: type(c)(index, c.counts) for score, c in counts.items()},
        [about["images"][i] for i in order],
    )


def _check_same_data(first: Run, other: Run) -> None:
    """Raises a ValueError if two runs differ in classes, images or labels."""
    import numpy as np

    pair = f"{first.name} and {other.name}"
    if first.class_names != other.class_names:
        raise ValueError(
            f"{pair} cannot be compared: their classes are "
            f"{', '.join(first.class_names)} and {', '.join(other.class_names)}."
        )
    if first.images != other.images:
        alone = sorted(set(first.images) ^ set(other.images))
        where = first if alone[0] in first.images else other
        raise ValueError(
            f"{pair} cannot be compared: they were evaluated on {len(first.images)} "
            f"and {len(other.images)} images, of which {alone[0]} is only in "
            f"{where.name}. Evaluate both on the same split."
        )
    truths = (run.counts["iou"].counts[..., 0] for run in (first, other))
    differ = np.any(np.not_equal(*truths), axis=1)
    if differ.any():
        raise ValueError(
            f"{pair} cannot be compared: the labels of {differ.sum()} images differ, "
            f"{first.images[differ.argmax()]} among them. Evaluate both on the same "
            "data."
        )


def _figures(counts: Any) -> list[float]:
    """Scores of the classes, followed by their mean."""
    import numpy as np

    mean, *classes = counts.figures(np.ones((1, len(counts.index))))[0].tolist()
    return [*classes, mean]


def _table(first: str, second: str, title: str, rows: dict[str, dict]) -> str:
    rows = {printable(name): row for name, row in rows.items()}
    width = max(len(name) for name in rows)
    lines = []
    for name, row in rows.items():
        sure = row["low"] > 0 or row["high"] < 0
        low, high = _percent(row["low"], "+"), _percent(row["high"], "+")
        lines.append(
            f"{name:<{width}}  {_percent(row['first']):>6}  "
            f"{_percent(row['second']):>6}  {_percent(row['difference'], '+'):>10}  "
            f"[{low:>5}, {high:>5}]{' *' if sure else ''}"
        )
    header = f"{'':<{width}}  {'A':>6}  {'B':>6}  {'difference':>10}"
    rule = "-" * (len(header) + 16)
    named = f"{title}\nA  {printable(first)}\nB  {printable(second)}\n"
    return "\n".join([named, header, rule, *lines[:-1], rule, lines[-1]])


def _percent(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{100 * value:{sign}.1f}"
