"""`jaxseg predict`: class maps of images of any size."""

import time
from pathlib import Path

from jaxseg.cli.common import add_command, check_writable, complain
from jaxseg.cli.scoring import Scoring, add_scoring, open_scoring


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
        "  NAME_overlay.png  the image tinted with these colours, and a legend\n"
        "  NAME_entropy.png  with --uncertainty, how undecided the network is\n\n"
        "Images too large for memory take --tile, which needs no more of it than one\n"
        "strip of tiles and the image; and of TIFFs, which are read by windows where\n"
        "the extra `tiff` is installed, not even that. Images that cannot be read are\n"
        "named, the others are done, and the exit status is 1.",
        example="jaxseg predict --workdir runs/camvid photos street.jpg "
        "--output predictions",
    )
    add_scoring(parser)
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
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="write the entropy of the probabilities too, as a picture from 0 (one "
        "class is certain) to 1 (all are alike)",
    )


def run(args) -> int:
    """Does what `add` describes."""
    import jax

    from jaxseg.data.images import expect_large_images
    from jaxseg.inference.files import find_input_files, predict_file

    jobs = find_input_files(args.paths, args.output, args.uncertainty)
    scoring = open_scoring(args)
    if scoring.tiling is not None:
        expect_large_images()
    predictor = _create_predictor(scoring)
    check_writable(Path(args.output))
    print(scoring.description, flush=True)
    failed = 0
    start = time.monotonic()
    for job in jobs:
        began = time.monotonic()
        try:
            predict_file(predictor, job)
        except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
            failed += 1
            complain(error, about=job.image)
        else:
            seconds = time.monotonic() - began
            print(f"{job.image} -> {job.index} ({seconds:.2f} s)", flush=True)
    done = f"{len(jobs) - failed} of {len(jobs)}" if failed else f"{len(jobs)}"
    print(
        f"{done} images in {time.monotonic() - start:.1f} s; "
        f"classes and pictures are in {args.output}"
    )
    return 1 if failed else 0


def _create_predictor(scoring: Scoring):
    from jaxseg.inference.predictor import Predictor
    from jaxseg.inference.tiled import TiledPredictor

    if scoring.tiling is not None:
        arguments = scoring.scorer, scoring.variables, scoring.metadata
        return TiledPredictor(*arguments, **scoring.tiling)
    metadata = scoring.metadata.replace(image_size=scoring.image_size)
    arguments = scoring.scorer, scoring.variables, metadata, scoring.refine
    return Predictor(*arguments, space=scoring.space)
