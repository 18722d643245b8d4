"""`jaxseg export`: export a trained network as a StableHLO file."""

import argparse
from pathlib import Path

from jaxseg.cli.common import (
    Commands,
    add_command,
    add_workdir,
    check_output_file,
    open_workdir,
    parse_size,
)


def add(commands: Commands) -> None:
    """Adds `jaxseg export`."""
    parser = add_command(
        commands,
        "export",
        run,
        summary="export a network to a file that runs without jaxseg",
        description="Writes a StableHLO function from images, uint8 [B, H, W, C], to\n"
        "classes, uint8 [B, H, W], with weights, normalization and resizing included.\n"
        "It runs with JAX alone; see examples/run_exported.py. A .json file beside it\n"
        "describes classes, colors and shapes. The function is compared with the\n"
        "network before it is written.",
        example="jaxseg export --workdir runs/camvid --output camvid.stablehlo",
    )
    add_workdir(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="file to write"
    )
    parser.add_argument(
        "--platforms",
        type=lambda text: tuple(text.split(",")),
        default=("cpu", "cuda", "tpu"),
        metavar="P,...",
        help="platforms to export for: cpu, cuda, rocm, tpu (default: cpu,cuda,tpu)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N|dynamic",
        help="batch size (default: dynamic, chosen at each call)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="HxW|dynamic",
        help="height and width of the images (default: dynamic)",
    )
    parser.add_argument(
        "--output-kind",
        choices=("classes", "probabilities"),
        default="classes",
        help="output of the function: classes, or probabilities as float32 [B, H, W, K] "
        "(default: classes)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs `jaxseg export`; returns the exit status."""
    from jax import export

    from jaxseg.inference.export import DynamicShapeError, export_network, verify, write

    model, variables, metadata = open_workdir(args)
    check_output_file(args.output)
    try:
        exported = export_network(
            model,
            variables,
            metadata,
            platforms=args.platforms,
            batch=args.batch,
            size=args.size,
            output=args.output_kind,
        )
    except DynamicShapeError as error:
        flags = {"size": "--size HxW", "batch": "--batch N"}
        advice = ", and if that is not enough ".join(flags[x] for x in error.missing)
        raise ValueError(f"{error}. Add {advice}.") from error
    here = export.default_export_platform()
    if here in args.platforms:
        # Checks the serialized function, as a reader of the file gets it.
        written = export.deserialize(exported.serialize())
        agreement = verify(written, model, variables, metadata)
        shapes = ", ".join("x".join(map(str, shape)) for shape in agreement.shapes)
        result = (
            f"images {shapes}: {agreement.differing} of {agreement.pixels} pixels "
            f"differ from the network, scores by {agreement.error:.1e}"
        )
    else:
        result = f"not checked: the export does not include this platform, {here}"
    write(args.output, exported, metadata)
    print(
        f"{result}\nstep {metadata.step} written to {args.output} "
        f"({args.output.stat().st_size / 1e6:.1f} MB)"
    )
    return 0


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a batch size; give a number or dynamic"
        )
    return int(text)


def _size(text: str) -> tuple[int, int] | None:
    return None if text == "dynamic" else parse_size(text)
