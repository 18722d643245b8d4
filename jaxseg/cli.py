"""The `jaxseg` command.

A command is two functions: `_add_<name>` describes its arguments, `_<name>` does the
work and returns the exit status. Heavy modules are imported inside the latter, so that
help appears at once.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPORT = "report.json"


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: its arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 for a failure, whose reason is on stderr as
        `error: ...`. A wrong usage ends the process with status 2.
    """
    args = _parser().parse_args(argv)
    if not args.debug:
        # When a file of a checkpoint is missing, TensorStore's threads would print a
        # traceback for every other read that was under way.
        sys.unraisablehook = lambda unraisable: None
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        _complain(error)
        return 1


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxseg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Uses networks that train.py has trained. A workdir is the folder\n"
        "that was given to train.py; it holds all that these commands need to know.",
        epilog="example:\n"
        "  python train.py --config configs/shapes.py --workdir runs/shapes\n"
        "  jaxseg evaluate --workdir runs/shapes\n"
        "  jaxseg predict --workdir runs/shapes photos --output predictions\n\n"
        "`jaxseg COMMAND --help` says more of a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_evaluate, _add_predict):
        add(commands)
    return parser


def _add_command(commands, name, run, *, summary, description, example):
    """A parser with what all commands have in common."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show where an error comes from"
    )
    parser.set_defaults(run=run)
    return parser


def _add_workdir(parser):
    """The arguments of commands that open a workdir, for `_open`."""
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder of a training run"
    )
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="best|latest|STEP",
        help="best by validation mIoU, the latest, or that of a step (default: best)",
    )


def _add_evaluate(commands):
    parser = _add_command(
        commands,
        "evaluate",
        _evaluate,
        summary="score a network on a split of its data set",
        description="Scores a network: IoU and accuracy of each class, their means,\n"
        "pixel accuracy and frequency-weighted IoU, summed over the whole split and\n"
        "taken at the size of the labels, at whatever size the network was trained.\n"
        "The figures are printed in percent and written as JSON, from 0 to 1, with\n"
        "null for those of classes that do not occur.",
        example="jaxseg evaluate --workdir runs/camvid --split val "
        "--data-root ../shared/camvid --output camvid_val.json",
    )
    _add_workdir(parser)
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


def _add_predict(commands):
    parser = _add_command(
        commands,
        "predict",
        _predict,
        summary="segment images of any size",
        description="Segments images of any size. Of each image NAME.* come\n\n"
        "  NAME.png          its classes as a PNG with palette: numbers for\n"
        "                    programs, colours for the eye\n"
        "  NAME_overlay.png  the image tinted with these colours, and a legend\n\n"
        "Images that cannot be read are named, the others are done, and the exit\n"
        "status is 1.",
        example="jaxseg predict --workdir runs/camvid photos street.jpg "
        "--output predictions",
    )
    _add_workdir(parser)
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="an image, or a folder that is searched for png, jpg, webp and tif with "
        "all its subfolders, whose structure is kept",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to write to"
    )


def _evaluate(args) -> int:
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
    model, variables, metadata = _open(args)
    _check_writable(output.parent)
    source = _open_split(args, metadata)
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
        **_without_nan(result),
    }
    write_atomically(output, json.dumps(report, indent=2) + "\n")
    print(f"{format_table(result)}\nwritten to {output}")
    return 0


def _predict(args) -> int:
    import jax

    from jaxseg.predictor import Predictor, plan_jobs, predict_file

    jobs = plan_jobs(args.paths, args.output)
    model, variables, metadata = _open(args)
    _check_writable(Path(args.output))
    predictor = Predictor(model, variables, metadata)
    failed = 0
    start = time.monotonic()
    for job in jobs:
        began = time.monotonic()
        try:
            predict_file(predictor, job)
        except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
            failed += 1
            _complain(error, about=job.image)
        else:
            seconds = time.monotonic() - began
            print(f"{job.image} -> {job.index} ({seconds:.2f} s)", flush=True)
    done = f"{len(jobs) - failed} of {len(jobs)}" if failed else f"{len(jobs)}"
    print(
        f"{done} images in {time.monotonic() - start:.1f} s; "
        f"classes and overlays are in {args.output}"
    )
    return 1 if failed else 0


def _complain(error: Exception, about: Path | None = None) -> None:
    """Says on stderr what went wrong, and with which file."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    if about is not None and str(about) not in text:
        text = f"{about}: {text}"
    print(f"error: {text}", file=sys.stderr, flush=True)


def _open(args) -> tuple[Any, Any, dict[str, Any]]:
    """Model, variables and metadata of the workdir and checkpoint that are asked for."""
    from jaxseg.checkpoint import METADATA, load
    from jaxseg.compilation import enable_compilation_cache

    enable_compilation_cache()
    workdir = Path(args.workdir)
    if not (workdir / METADATA).is_file():
        near = sorted({*workdir.glob("*/"), *workdir.parent.glob("*/")})
        known = [str(path) for path in near if (path / METADATA).is_file()]
        raise ValueError(
            f"{workdir} is not the workdir of a training run: it has no {METADATA}. "
            + (f"There are: {', '.join(known)}." if known else "Train into it first.")
        )
    return load(workdir, args.checkpoint)


def _open_split(args, metadata):
    """The split to score on, which must have the classes of the network."""
    from jaxseg.data import create_source

    arguments = dict(metadata["data"])
    if args.data_root is not None:
        arguments["root"] = args.data_root
    if arguments["root"] and not Path(arguments["root"]).is_dir():
        raise ValueError(
            f"The data set is not there: {arguments['root']} is no folder. Say by "
            "--data-root where it is."
        )
    args.split = args.split or metadata["val_split"]
    source = create_source(split=args.split, **arguments)
    ours, theirs = tuple(metadata["class_names"]), source.info.class_names
    # A set whose last classes happen not to occur still means the same by its labels.
    if theirs != ours[: len(theirs)]:
        raise ValueError(
            f"The network tells apart {', '.join(ours)}, but the data set has "
            f"{', '.join(theirs)}; give it a classes.json with the network's classes "
            "in their order."
        )
    return source


def _check_writable(folder: Path) -> None:
    """Makes a folder, and finds out before the work whether files can be put there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"Cannot write to {folder} ({error.strerror}); give another --output."
        ) from error


def _without_nan(value):
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if math.isnan(value) else value
