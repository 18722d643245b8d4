"""What the commands share."""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any


def add_command(commands, name, run, *, summary, description, example):
    """A parser with what all commands have in common."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug", action="store_true", help="print the traceback of an error"
    )
    parser.set_defaults(run=run)
    return parser


def add_workdir(parser):
    """The arguments of commands that open a workdir, for `open_workdir`."""
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder of the training run"
    )
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="best|latest|STEP",
        help="checkpoint to use: the best by validation mIoU, the latest, or the one of "
        "a step (default: best)",
    )


def open_workdir(args) -> tuple[Any, Any, Any]:
    """Model, variables and metadata of the workdir and checkpoint that are asked for."""
    from jaxseg.checkpoints.run import METADATA, load
    from jaxseg.parallel.compilation import enable_compilation_cache

    enable_compilation_cache()
    workdir = Path(args.workdir)
    if not (workdir / METADATA).is_file():
        near = sorted({*workdir.glob("*/"), *workdir.parent.glob("*/")})
        known = [str(path) for path in near if (path / METADATA).is_file()]
        raise ValueError(
            f"{workdir} is not the workdir of a training run: it has no {METADATA}. "
            + (f"Existing workdirs: {', '.join(known)}." if known else "Train first.")
        )
    return load(workdir, args.checkpoint)


def open_split(args, metadata):
    """The split to score on, which must have the classes of the network."""
    from jaxseg.data import create_source

    arguments = dict(metadata.data)
    if args.data_root is not None:
        arguments["root"] = args.data_root
    if arguments["root"] and not Path(arguments["root"]).is_dir():
        raise ValueError(
            f"The data set was not found: {arguments['root']} is not a folder. Give its "
            "location with --data-root."
        )
    args.split = args.split or metadata.val_split
    source = create_source(split=args.split, **arguments)
    ours, theirs = metadata.class_names, source.info.class_names
    # A set whose last classes happen not to occur still means the same by its labels.
    if theirs != ours[: len(theirs)]:
        raise ValueError(
            f"The network's classes are {', '.join(ours)}, and the data set's are "
            f"{', '.join(theirs)}; give the data set a classes.json with the network's "
            "classes in the same order."
        )
    return source


def check_writable(folder: Path) -> None:
    """Makes a folder, and finds out before the work whether files can be put there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"Cannot write to {folder} ({error.strerror}); give another --output."
        ) from error


def complain(error: Exception, about: Path | None = None) -> None:
    """Says on stderr what went wrong, and with which file."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror is not None:
        # A full disk has no name.
        place = "" if error.filename is None else f"{error.filename}: "
        text = f"{place}{error.strerror}"
    elif not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text} (add --debug to print the traceback)"
    if about is not None and str(about) not in text:
        text = f"{about}: {text}"
    print(f"error: {text}", file=sys.stderr, flush=True)


def json_object(text: str) -> dict[str, Any]:
    """Parses an argument that is keyword arguments in JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a JSON object; give names and values, such as '{{\"width\": 32}}'"
        )
    return value


def without_nan(value):
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
