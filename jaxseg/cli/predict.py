"""`jaxseg predict`: class maps of images of any size."""

import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from jaxseg.cli.common import Commands, add_command, check_writable, complain
from jaxseg.cli.scoring import Scoring, add_scoring, open_scoring
from jaxseg.utils.text import printable

if TYPE_CHECKING:
    from jaxseg.inference.predictor import Predictor
    from jaxseg.inference.tiled import TiledPredictor


def add(commands: Commands) -> None:
    """Adds `jaxseg predict`."""
    parser = add_command(
        commands,
        "predict",
        run,
        summary="segment images of any size",
        description="Segments images of any size. For each image NAME.* it writes\n\n"
        "  NAME.png          the classes as an indexed PNG with a palette\n"
        "  NAME_overlay.png  the image blended with the class colors, and a legend\n"
        "  NAME_entropy.png  with --uncertainty, the entropy of the probabilities\n\n"
        "For images that do not fit into memory use --tile, which needs memory for the\n"
        "image and one row of tiles; TIFF files are read in windows if `jaxseg[tiff]`\n"
        "is installed. Images that cannot be read are reported and skipped; the exit\n"
        "status is then 1.",
        example="jaxseg predict --workdir runs/camvid photos street.jpg "
        "--output predictions",
    )
    add_scoring(parser)
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="image, or folder to search for png, jpg, webp, tif, bmp and gif files, "
        "with its subfolders",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the predictions"
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="also write the entropy of the probabilities as an image, from 0 (one class "
        "is certain) to 1 (all classes are equally likely)",
    )


def run(args: Namespace) -> int:
    """Runs `jaxseg predict`; returns the exit status."""
    import jax

    from jaxseg.data.images import ImageTooLargeError, expect_large_images
    from jaxseg.inference.files import find_input_files, predict_file

    files = find_input_files(args.paths, args.output, args.uncertainty)
    scoring = open_scoring(args)
    if scoring.tiling is not None:
        expect_large_images()
    predictor = _create_predictor(scoring)
    check_writable(Path(args.output))
    print(scoring.description, flush=True)
    failed = 0
    start = time.monotonic()
    for file in files:
        began = time.monotonic()
        try:
            predict_file(predictor, file)
        except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
            failed += 1
            small = isinstance(error, ImageTooLargeError) and scoring.tiling is None
            advice = " To predict it in tiles, use --tile HxW." if small else ""
            complain(error, about=file.image, advice=advice)
        else:
            seconds = time.monotonic() - began
            done = f"{printable(file.image)} -> {printable(file.index)}"
            print(f"{done} ({seconds:.2f} s)", flush=True)
    done = f"{len(files) - failed} of {len(files)}" if failed else f"{len(files)}"
    print(
        f"{done} images in {time.monotonic() - start:.1f} s; "
        f"predictions are in {args.output}"
    )
    return 1 if failed else 0


def _create_predictor(scoring: Scoring) -> "Predictor | TiledPredictor":
    from jaxseg.inference.predictor import Predictor
    from jaxseg.inference.tiled import TiledPredictor

    if scoring.tiling is not None:
        arguments = scoring.scorer, scoring.variables, scoring.metadata
        return TiledPredictor(*arguments, **scoring.tiling)
    metadata = scoring.metadata.replace(image_size=scoring.image_size)
    arguments = scoring.scorer, scoring.variables, metadata, scoring.refine
    return Predictor(*arguments, space=scoring.space)
