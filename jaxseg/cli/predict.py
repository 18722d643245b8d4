"""`jaxseg predict`: class maps of images of any size."""

import time
from pathlib import Path

from jaxseg.cli.common import (
    add_command,
    add_workdir,
    check_writable,
    complain,
    open_workdir,
)


def add(commands):
    """Describes `jaxseg predict`."""
    parser = add_command(
        commands,
        "predict",
        run,
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
    add_workdir(parser)
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


def run(args) -> int:
    """Does what `add` describes."""
    import jax

    from jaxseg.predictor import Predictor, plan_jobs, predict_file

    jobs = plan_jobs(args.paths, args.output)
    model, variables, metadata = open_workdir(args)
    check_writable(Path(args.output))
    predictor = Predictor(model, variables, metadata)
    failed = 0
    start = time.monotonic()
    for job in jobs:
        began = time.monotonic()
        try:
            predict_file(predictor, job)
        except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
            failed += 1
            complain(error, about=job.image)
        else:
            seconds = time.monotonic() - began
            print(f"{job.image} -> {job.index} ({seconds:.2f} s)", flush=True)
    done = f"{len(jobs) - failed} of {len(jobs)}" if failed else f"{len(jobs)}"
    print(
        f"{done} images in {time.monotonic() - start:.1f} s; "
        f"classes and overlays are in {args.output}"
    )
    return 1 if failed else 0
