"""`jaxseg plan`: the cost of a training step on devices that are not available."""

import argparse
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxseg.cli.common import Commands, add_command, check_output_file, parse_size

if TYPE_CHECKING:
    from ml_collections import ConfigDict

DOES_NOT_FIT = 3
"""Exit status if the step does not fit into memory, for scripts that start runs."""


def add(commands: Commands) -> None:
    """Adds `jaxseg plan`."""
    parser = add_command(
        commands,
        "plan",
        run,
        summary="predict memory and speed of training on TPUs",
        description="Compiles the training step of a config for TPUs (with libtpu; no\n"
        "TPU is needed) or fake CPU devices, and prints its memory, FLOPs and collectives,\n"
        "lower bounds on its time, and the largest batch that fits. Keys of the config\n"
        "are set as for training: --config.train.batch_size=64. docs/plan.md explains\n"
        "the results. Each compilation of a large network takes minutes. The exit\n"
        "status is 3 if the step does not fit into the memory of a device.",
        example="jaxseg configs unet_camvid\n"
        "  jaxseg plan --config unet_camvid.py --classes 11 \\\n"
        "    --topology v5e:16x16 --mesh data=64,space=4 --output plan.json",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="config file, as for jaxseg train",
    )
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="TPU slice, such as v5e:16x16 or v5p:4x4x4, or fake devices, such as cpu:8",
    )
    parser.add_argument(
        "--mesh",
        type=_mesh,
        default={},
        metavar="data=N,space=N",
        help="shape of the device mesh (default: config.parallel)",
    )
    parser.add_argument(
        "--slices",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help="other slices of the same chip, to predict their speed without compiling again",
    )
    parser.add_argument(
        "--classes",
        type=int,
        metavar="K",
        help="number of classes, to plan without the data set (RGB images)",
    )
    parser.add_argument(
        "--image-size",
        type=parse_size,
        metavar="HxW",
        help="size of training images, if the config does not set it",
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="stage to plan, if the config has stages"
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="memory of a device (default: what libtpu makes available on the chip)",
    )
    parser.add_argument(
        "--compilations",
        type=int,
        default=6,
        metavar="N",
        help="maximum number of compilations to find the largest batch (default: 6)",
    )
    parser.add_argument(
        "--no-search",
        action="store_true",
        help="estimate the largest batch instead of finding it by compilation",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON file to write"
    )
    parser.set_defaults(takes_config=True)


def run(args: argparse.Namespace) -> int:
    """Runs `jaxseg plan`; returns the exit status."""
    import json
    import platform
    from datetime import date

    import jax

    from jaxseg.cli.config_file import read_config
    from jaxseg.plan.planner import make_plan
    from jaxseg.plan.report import format_plan
    from jaxseg.plan.topology import GIB, open_topology, parse_topology
    from jaxseg.utils.files import write_atomically

    if args.output is not None:
        check_output_file(args.output)
    topology = open_topology(args.topology)
    config = _stage(read_config(args.config, args.overrides), args.stage)
    config.update({"parallel": args.mesh})
    num_classes, image_shape = _images(config, args.classes, args.image_size)
    plan = make_plan(
        config,
        topology,
        num_classes=num_classes,
        image_shape=image_shape,
        memory=args.memory and round(args.memory * GIB),
        slices=[parse_topology(name) for name in args.slices],
        compilations=0 if args.no_search else args.compilations,
        report_progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(format_plan(plan))
    if args.output is not None:
        made = {
            "config": [args.config, *args.overrides],
            "date": date.today().isoformat(),
            "jax": jax.__version__,
            "libtpu": metadata.version("libtpu") if topology.chip else None,
            "python": platform.python_version(),
        }
        write_atomically(args.output, json.dumps(made | plan, indent=1) + "\n")
    return DOES_NOT_FIT if plan["step"]["fits"] is False else 0


def _stage(config: "ConfigDict", name: str | None) -> "ConfigDict":
    """The config, or one of its stages."""
    if not config.stages:
        return config
    from jaxseg.training.config import split_stages

    known = {folder.name: stage for stage, folder in split_stages(config, Path())}
    if name not in known:
        raise ValueError(
            "The config has stages, and only one can be planned at a time: give --stage "
            f"with one of {', '.join(known)}."
        )
    return known[name]


def _images(
    config: Any, classes: int | None, size: tuple[int, int] | None
) -> tuple[int, tuple[int, int, int]]:
    """Number of classes and (H, W, C) of training images, as in a run."""
    from jaxseg import data
    from jaxseg.training.config import source_kwargs, training_image_size

    fixed = training_image_size(config)
    if fixed and size and fixed != size:
        raise ValueError(
            f"--image-size is {size[0]}x{size[1]}, but the config sets "
            f"{fixed[0]}x{fixed[1]}; change augment.crop_px or data.image_size instead."
        )
    size = size or fixed
    if classes is not None and size:
        height, width = size
        return classes, (height, width, 3)
    try:
        source = data.create_source(
            split=config.data.train_split, **source_kwargs(config)
        )
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{error}\nTo plan without the data set, give --classes K"
            f"{'' if size else ' and --image-size HxW'}."
        ) from error
    info = source.info
    height, width = size or source.sizes[0]
    return classes or info.num_classes, (height, width, info.channels)


def _mesh(text: str) -> dict[str, int]:
    mesh = {}
    for part in text.split(","):
        axis, _, count = part.partition("=")
        if axis not in ("data", "space") or not count.removeprefix("-").isdecimal():
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a mesh; give numbers of devices, such as "
                "data=64,space=4"
            )
        mesh[axis] = int(count)
    return mesh
