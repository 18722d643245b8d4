"""Functions that several commands share."""

import argparse
import errno
import importlib
import importlib.util
import json
import math
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxseg.utils.registry import UnknownNameError
from jaxseg.utils.text import printable

if TYPE_CHECKING:
    import flax.linen as nn

    from jaxseg.data import Source
    from jaxseg.metadata import RunMetadata
    from jaxseg.models.variables import Variables

Commands: TypeAlias = "argparse._SubParsersAction[Any]"
"""What `add_subparsers` returns."""


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    example: str,
) -> argparse.ArgumentParser:
    """Adds a command with the options that all commands have.

    Args:
        commands: subparsers to add it to.
        name: name of the command.
        run: function that runs it and returns the exit status.
        summary: one line for the list of commands.
        description: text for `--help`.
        example: example command line for `--help`.

    Returns:
        The command's parser.
    """
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


def add_workdir(parser: argparse.ArgumentParser) -> None:
    """Adds the options of commands that open a workdir, for `open_workdir`."""
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
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="module to import first, or path of a .py file, which registers a model, a "
        "component or a data set that the workdir names; can be repeated",
    )


def import_modules(modules: Sequence[str]) -> None:
    """Imports what `--import` names.

    Args:
        modules: names of modules, which may be in the current directory, or paths of
            Python files, which can import their neighbors.

    Raises:
        ValueError: if one does not exist or cannot be imported.
    """
    for module in modules:
        try:
            _import(module)
        except Exception as error:
            name = (
                f"{type(error).__name__}: " if not isinstance(error, ValueError) else ""
            )
            raise ValueError(f"--import {module}: {name}{error}") from error


def _import(module: str) -> None:
    from jaxseg.cli.config_file import neighbors_importable

    path = Path(module)
    if path.suffix != ".py":
        with neighbors_importable(Path.cwd()):
            importlib.import_module(module)
        return
    path = path.resolve()
    known = getattr(sys.modules.get(path.stem), "__file__", None)
    if known is not None and Path(known).resolve() == path:
        return
    # Under its own name, so that a module that imports it later finds it; but not in
    # place of another one.
    name = path.stem if path.stem not in sys.modules else f"import_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        with neighbors_importable(path.parent):
            spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise


def import_advice(error: BaseException | None) -> str:
    """What to do about a workdir that names something that is not registered."""
    while error is not None:
        if isinstance(error, UnknownNameError):
            return (
                f" If {error.name!r} is your own, add --import MODULE with the module "
                "or the .py file that registers it."
            )
        error = error.__cause__
    return ""


def open_workdir(
    args: argparse.Namespace,
) -> "tuple[nn.Module, Variables, RunMetadata]":
    """Loads model, variables and metadata from the options of `add_workdir`.

    Raises:
        ValueError: if there is no such workdir or checkpoint; the message lists the
            existing ones.
    """
    from jaxseg.checkpoints.run import METADATA, load
    from jaxseg.parallel.compilation import enable_compilation_cache

    enable_compilation_cache()
    workdir = Path(args.workdir)
    if not (workdir / METADATA).is_file():
        near = sorted({*workdir.glob("*/"), *workdir.parent.glob("*/")})
        known = [str(path) for path in near if (path / METADATA).is_file()]
        raise ValueError(
            f"{workdir} is not the workdir of a training run: it has no {METADATA}. "
            + (
                f"Existing workdirs: {', '.join(known)}."
                if known
                else "Train a network first."
            )
        )
    return load(workdir, args.checkpoint)


def add_split(parser: argparse.ArgumentParser) -> None:
    """Adds the options of commands that evaluate on a split, for `open_split`."""
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="split to evaluate (default: the validation split)",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="data set, if it differs from the one used for training; it must have the "
        "same classes",
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="folder of the data set, if it differs from the one used for training",
    )
    add_data_options(parser, "as in training")
    parser.add_argument(
        "--batch-size",
        type=_positive,
        metavar="N",
        help="global batch size (default: as in training)",
    )


def add_data_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the options of a data set besides its name and its folder.

    Args:
        parser: of the command.
        default: what the folder of prepared data is by default, for the help.
    """
    parser.add_argument(
        "--options",
        type=json_object,
        default={},
        metavar="JSON",
        help="""further options of the data set, such as '{"channels": 1}'""",
    )
    parser.add_argument(
        "--prepared-dir",
        metavar="DIR",
        help=f"folder for prepared data (default: {default})",
    )
    parser.add_argument(
        "--trust-prepared",
        action="store_true",
        help="use prepared data that another user could have written",
    )


_OWN_SETTINGS = ("prepared_dir", "trust_prepared", "on_error")
"""Arguments of `create_source` that do not come from the metadata of a stranger."""


def _data_settings(
    args: argparse.Namespace, metadata: "RunMetadata"
) -> tuple[dict[str, Any], int]:
    """Arguments of `create_source`, and the batch size.

    A workdir may come from a stranger. Its folders and its batch size are used only if
    this user has trained with them.
    """
    from jaxseg.checkpoints.known_data import is_known_data
    from jaxseg.metadata import FOLDER_DATASET, RunMetadata

    data, batch_size = dict(metadata.data), metadata.eval_batch_size
    if not is_known_data(metadata):
        root = data.pop("root", "")
        if args.dataset is None and args.data_root is None:
            cure = f"--dataset {data.get('dataset')}"
            if root or data.get("dataset") == FOLDER_DATASET["dataset"]:
                cure = f"--data-root {shlex.quote(str(root)) if root else 'DIR'}"
            raise ValueError(
                "The data of a workdir are opened automatically only if you have trained "
                f"with them on this machine. To evaluate {args.workdir}, add {cure}"
            )
        data = {key: value for key, value in data.items() if key not in _OWN_SETTINGS}
        batch_size = RunMetadata.eval_batch_size
    if args.dataset not in (None, data.get("dataset")):
        data = {"dataset": args.dataset}
    given = {"root": args.data_root, "prepared_dir": args.prepared_dir}
    data |= {key: value for key, value in given.items() if value is not None}
    if args.trust_prepared:
        data["trust_prepared"] = True
    return data | args.options, args.batch_size or batch_size


def open_split(args: argparse.Namespace, metadata: "RunMetadata") -> "Source":
    """Opens the split to evaluate, from the options of `add_split`.

    Sets `args.split` and `args.batch_size` to those that are used.

    Raises:
        ValueError: if the data set does not exist or has other classes than the
            network, or its folder is known only from the metadata of a stranger.
    """
    from jaxseg.data import create_source

    arguments, args.batch_size = _data_settings(args, metadata)
    root = arguments.get("root")
    if root and not Path(root).is_dir():
        raise ValueError(
            f"The data set was not found: {root} is not a folder. Give its location "
            "with --data-root."
        )
    args.split = args.split or metadata.val_split
    source = create_source(split=args.split, **arguments)
    ours, theirs = metadata.class_names, source.info.class_names
    # A data set in which the last classes do not occur has the same labels.
    if theirs != ours[: len(theirs)]:
        raise ValueError(
            f"The classes of the network are {', '.join(ours)}, but those of the data "
            f"set are {', '.join(theirs)}. Add a classes.json to the data set with the "
            "network's classes in the same order."
        )
    return source


def check_writable(folder: Path) -> None:
    """Creates a folder, and checks before the work that files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"Cannot write to {folder} ({error.strerror}); use another --output."
        ) from error


def check_output_file(path: Path) -> None:
    """Checks before the work that `--output` can be written; creates its folder."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; --output must be a file.")
    check_writable(path.parent)


def complain(error: Exception, about: Path | None = None, advice: str = "") -> None:
    """Prints an error to stderr: the file that it is about, its message, and advice."""
    text = _explain(error)
    if about is not None and str(about) not in text:
        text = f"{about}: {text}"
    # No line of a message can pass for one of jaxseg's own.
    text = "\n".join(printable(line) for line in f"{text}{advice}".split("\n"))
    print(f"error: {textwrap.indent(text, '  ')[2:]}", file=sys.stderr, flush=True)


_CURES = {
    errno.ENOSPC: "free some space, and run the command again",
    errno.EDQUOT: "your quota is used up: free some space, and run the command again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "use a folder that you can write to",
}


def _explain(error: Exception) -> str:
    """The message of an error, with the file that it is about and the cure if known."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror is not None:
        place = "" if error.filename is None else f"{error.filename}: "
        cure = _CURES.get(error.errno or 0)
        return f"{place}{error.strerror}" + (f"; {cure}" if cure else "")
    if isinstance(error, MemoryError) or text.startswith("RESOURCE_EXHAUSTED"):
        from jaxseg.training.errors import OutOfMemoryError

        if isinstance(error, OutOfMemoryError):
            return text
        cause = text.partition("\n")[0][:200] or type(error).__name__
        return (
            f"not enough memory ({cause}); use smaller images or tiles (--tile), or a "
            "smaller --batch-size"
        )
    if isinstance(error, ValueError):
        return text
    return f"{type(error).__name__}: {text} (add --debug to print the traceback)"


def parse_size(text: str) -> tuple[int, int]:
    """Parses an option with a height and width in pixels, "HxW"."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) * int(width)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; give height x width in pixels, such as 360x480"
        )
    return int(height), int(width)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    """Parses an option with keyword arguments in JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a JSON object; give names and values, such as '{{\"width\": 32}}'"
        )
    return value


def without_nan(value: Any) -> Any:
    """Replaces NaN, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
