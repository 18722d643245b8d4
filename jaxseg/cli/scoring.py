"""Options of `evaluate`, `predict` and `report`: how images are scored."""

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxseg.cli.common import add_workdir, open_workdir, parse_size
from jaxseg.utils.names import suggest_name
from jaxseg.utils.text import direct

if TYPE_CHECKING:
    import jax

    from jaxseg.data import Source
    from jaxseg.inference.evaluator import Watch
    from jaxseg.inference.network import Refine, Scorer
    from jaxseg.metadata import RunMetadata
    from jaxseg.metrics import Calibration, Confusion
    from jaxseg.models.variables import Variables


@dataclass(frozen=True)
class Scoring:
    """A model of a workdir and how it scores images.

    Attributes:
        scorer: variables and images, or tiles of them, to scores.
        variables: variables for the scorer.
        metadata: metadata of the workdir.
        image_size: (height, width) that whole images are resized to; None if they keep
            their size.
        refine: from probabilities, images and sizes to refined probabilities, or None.
        description: description of the options, for people.
        tiling: size, overlap and margin of the tiles; None for whole images.
        space: number of devices that the rows of each image are split over.
    """

    scorer: "Scorer"
    variables: "Variables"
    metadata: "RunMetadata"
    image_size: tuple[int, int] | None
    refine: "Refine | None"
    description: str
    tiling: dict[str, Any] | None = None
    space: int = 1

    @property
    def of_images(self) -> "Scorer":
        """The scorer of whole images."""
        from jaxseg.inference import scorers

        if self.tiling is None:
            return self.scorer
        return scorers.tiles(self.scorer, **self.tiling)


def add_scoring(parser: ArgumentParser) -> None:
    """Adds the options for `open_scoring`."""
    add_workdir(parser)
    group = parser.add_argument_group("averages and refinement (can be combined)")
    group.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: average over scales 0.75, 1 and 1.25, each also "
        "flipped",
    )
    group.add_argument(
        "--dropout-samples",
        type=int,
        metavar="N",
        help="average over N dropout masks (Monte Carlo dropout, Bayesian SegNet)",
    )
    group.add_argument(
        "--ensemble",
        nargs="+",
        metavar="STEP",
        help="average over the checkpoints of these steps",
    )
    group.add_argument(
        "--tile",
        type=parse_size,
        metavar="HxW",
        help="score overlapping tiles of this size in pixels, and blend them",
    )
    parser.add_argument(
        "--space",
        type=int,
        default=1,
        metavar="N",
        help="number of devices that each image is split over, by rows, for images that "
        "do not fit into the memory of one device",
    )
    group.add_argument(
        "--crf",
        metavar="PAPER",
        help="refine with a fully connected CRF that has the parameters of a paper: "
        "deeplab, deeplab_v2 or deconvnet",
    )


def open_scoring(args: Namespace) -> Scoring:
    """Opens the workdir and combines the options.

    Raises:
        ValueError: if the workdir cannot be opened or an option cannot be used.
    """
    import jax

    from jaxseg.inference import scorers
    from jaxseg.ops.crf import PRESETS

    if not 1 <= args.space <= jax.device_count():
        raise ValueError(
            f"--space {args.space} is out of range: give a number from 1 to "
            f"{jax.device_count()}, the number of devices."
        )
    if args.crf is not None and args.crf not in PRESETS:
        raise ValueError(f"Unknown --crf {args.crf!r}{suggest_name(args.crf, PRESETS)}")
    if args.space != 1 and args.tile is not None:
        raise ValueError("--space and --tile cannot be combined; give one of them.")
    model, variables, metadata = open_workdir(args)
    normalization = metadata.normalization
    scoring = Scoring(
        scorer=scorers.network(model, normalization),
        variables=variables,
        metadata=metadata,
        image_size=metadata.image_size,
        refine=None,
        description=f"{metadata.model_name}, step {metadata.step}",
        space=args.space,
    )
    if args.dropout_samples is not None:
        scorer = scorers.dropout_samples(model, normalization, args.dropout_samples)
        scoring = _with(scoring, f"{args.dropout_samples} dropout masks", scorer=scorer)
    if args.tta:
        scorer = scorers.test_time_augmentation(scoring.scorer)
        scoring = _with(scoring, "test-time augmentation", scorer=scorer)
    if args.ensemble:
        scoring = _ensemble(scoring, args)
    if args.crf is not None:
        if metadata.channels != 3:
            raise ValueError(
                f"--crf requires RGB images, but the network is for {metadata.channels} "
                "channels."
            )
        refine = partial(_refine, parameters=PRESETS[args.crf])
        scoring = _with(scoring, f"CRF of {args.crf}", refine=refine)
    if args.tile is not None:
        scoring = _tiled(scoring, args.tile, scorers.context(model))
    return scoring


def score_split(
    scoring: Scoring,
    source: "Source",
    *,
    batch_size: int,
    watchers: "Sequence[Watch]",
    calibrate: bool,
) -> "tuple[Confusion, Calibration]":
    """Evaluates every image of a split, with a progress bar; see `Evaluator`.

    Args:
        scoring: from `open_scoring`.
        source: the split.
        batch_size: global batch size.
        watchers: functions called with the index, prediction and label of each record.
        calibrate: whether to count confidence against accuracy.

    Returns:
        Confusion and calibration.
    """
    import jax
    import numpy as np
    from tqdm import tqdm

    from jaxseg.inference.evaluator import Evaluator
    from jaxseg.parallel.mesh import create_parallel

    def watch(index: int, prediction: np.ndarray, label: np.ndarray) -> None:
        for watcher in watchers:
            watcher(index, prediction, label)

    # The result does not depend on the devices, so use a number that divides the batch.
    space = scoring.space
    devices = math.gcd(batch_size, max(jax.device_count() // space, 1))
    evaluate = Evaluator(
        scoring.of_images,
        num_classes=scoring.metadata.num_classes,
        batch_size=batch_size,
        parallel=create_parallel(data=devices, space=space),
        image_size=scoring.image_size,
        refine=scoring.refine,
        calibrate=calibrate,
    )
    return evaluate(
        scoring.variables,
        source,
        watch=watch,
        progress=partial(
            tqdm, file=direct(sys.stderr), unit="batch", disable=None, leave=False
        ),
    )


def _with(scoring: Scoring, description: str, **changes: Any) -> Scoring:
    description = f"{scoring.description}, {description}"
    return replace(scoring, description=description, **changes)


def _ensemble(scoring: Scoring, args: Namespace) -> Scoring:
    from jaxseg.checkpoints.run import load
    from jaxseg.inference import scorers

    steps = args.ensemble
    variables = scorers.stack([load(args.workdir, step)[1] for step in steps])
    scorer = scorers.ensemble(scoring.scorer)
    scoring = replace(scoring, description=scoring.metadata.model_name)
    return _with(
        scoring, f"steps {', '.join(steps)}", scorer=scorer, variables=variables
    )


def _tiled(scoring: Scoring, tile: tuple[int, int], context: int) -> Scoring:
    """Scores tiles, each resized and refined like an image."""
    from jaxseg.inference import scorers
    from jaxseg.ops.tiling import choose_overlap

    scorer = scoring.scorer
    if scoring.image_size is not None:
        # The context is in pixels of the resized image, so it is no margin of tiles.
        scorer, context = scorers.resized(scorer, scoring.image_size), 0
    if scoring.refine is not None:
        scorer = scorers.refined(scorer, scoring.refine)
    shown = f"tiles of {tile[0]}x{tile[1]}"
    overlap = choose_overlap(tile, context)
    tiling = {"size": tile, "overlap": overlap, "margin": context}
    return _with(
        scoring, shown, scorer=scorer, image_size=None, refine=None, tiling=tiling
    )


def _refine(
    probabilities: "jax.Array",
    image: "jax.Array",
    size: "jax.Array",
    *,
    parameters: Mapping[str, float],
) -> "jax.Array":
    """The CRF on the pixels that are not padding; sizes are int32 [B, 2]."""
    import jax.numpy as jnp

    from jaxseg.ops.crf import dense_crf

    rows, columns = (jnp.arange(n) for n in image.shape[1:3])
    inside = rows[None, :, None] < size[:, 0, None, None]
    inside &= columns[None, None, :] < size[:, 1, None, None]
    return dense_crf(probabilities, image, valid=inside, **dict[str, Any](parameters))
