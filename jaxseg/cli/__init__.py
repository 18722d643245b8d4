"""The `jaxseg` command.

Each command is a module with two functions: `add` adds its parser, and `run` does the
work and returns the exit status. `run` imports the heavy modules, so that `--help` is
fast.
"""

import argparse
import sys
from typing import NoReturn

import jaxseg
from jaxseg.cli import (
    compare,
    configs,
    evaluate,
    export,
    plan,
    predict,
    report,
    train,
    upper_bounds,
    weights,
)
from jaxseg.cli.common import complain, import_advice, import_modules
from jaxseg.utils.text import printable_output

COMMANDS = (
    configs.add,
    train.add,
    evaluate.add,
    compare.add,
    upper_bounds.add,
    report.add,
    predict.add,
    export.add,
    plan.add,
    weights.add_import,
    weights.add_export,
)


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: command line arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 after an error, which is printed to stderr as
        `error: ...`. Invalid arguments exit the process with status 2.
    """
    # Names of classes and files may come from a stranger.
    with printable_output():
        return _main(argv)


def _main(argv: list[str] | None) -> int:
    parser = _parser()
    args, others = parser.parse_known_args(argv)
    if others and not args.takes_config:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    args.overrides = others
    if not args.debug:
        # If a file of a checkpoint is missing, TensorStore's threads would print a
        # traceback for every other read in progress.
        sys.unraisablehook = lambda unraisable: None
    try:
        import_modules(args.imports or ())
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        complain(error, advice="" if args.imports is None else import_advice(error))
        return 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxseg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Semantic segmentation in JAX: train networks and use trained ones.\n\n"
        "A workdir is the folder of a training run; it contains everything that the\n"
        "other commands need.",
        epilog="example:\n"
        "  jaxseg configs shapes --output shapes.py\n"
        "  jaxseg train --config shapes.py --workdir runs/shapes\n"
        "  jaxseg evaluate --workdir runs/shapes\n"
        "  jaxseg predict --workdir runs/shapes photos --output predictions\n\n"
        "`jaxseg COMMAND --help` describes a command.",
    )
    parser.add_argument(
        "--version", action="version", version=f"jaxseg {jaxseg.__version__}"
    )
    # Unknown arguments set keys of the config, for commands that have one.
    # Commands that open a workdir have --import.
    parser.set_defaults(takes_config=False, imports=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return parser
