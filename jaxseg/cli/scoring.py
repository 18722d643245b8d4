"""Options of `evaluate`, `predict` and `report`: how images are scored."""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jaxseg.cli.common import add_workdir, open_workdir, parse_size
from jaxseg.metadata import RunMetadata

TILE_OVERLAP = 0.5


@dataclass(frozen=True)
class Scoring:
    """A model of a workdir with the way to score images by it.

    Attributes:
        scorer: from variables and images, or tiles of them, to scores.
        variables: for it.
        metadata: of the workdir.
        image_size: height and width that whole images are resized to; None for their
            own.
        refine: from probabilities, images and sizes to better probabilities, or None.
        description: of the options, for the eye.
        tiling: size, overlap and margin of the tiles; None for whole images.
        space: number of devices that share each image, by its rows.
    """

    scorer: Any
    variables: Any
    metadata: RunMetadata
    image_size: tuple[int, int] | None
    refine: Any
    description: str
    tiling: dict[str, Any] | None = None
    space: int = 1

    @property
    def of_images(self) -> Any:
        """The scorer of whole images."""
        from jaxseg.inference import scorers

        if self.tiling is None:
            return self.scorer
        return scorers.tiles(self.scorer, **self.tiling)


def add_scoring(parser: ArgumentParser) -> None:
    """Describes the options, for `open_scoring`."""
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
        help="score tiles of this size in pixels, with half a tile of overlap, and blend "
        "them",
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
        choices=("deeplab", "deeplab_v2", "deconvnet"),
        help="refine with a fully connected CRF that has the parameters of this paper",
    )


def open_scoring(args: Namespace) -> Scoring:
    """Opens the workdir and puts together what the options ask for."""
    import jax

    from jaxseg.inference import scorers

    if not 1 <= args.space <= jax.device_count():
        raise ValueError(
            f"--space {args.space}: there are {jax.device_count()} devices; give a "
            "number from 1 to that."
        )
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
            raise ValueError("--crf needs color images; the network has others.")
        scoring = _with(scoring, f"CRF of {args.crf}", refine=_crf(args.crf))
    if args.tile is not None:
        scoring = _tiled(scoring, args.tile, scorers.context(model))
    return scoring


def score_split(
    scoring: Scoring, source: Any, *, watchers: Sequence[Any], calibrate: bool
):
    """Scores every image of a split, with a bar; see `Evaluator`.

    Args:
        scoring: from `open_scoring`.
        source: the split.
        watchers: each called with the index, the prediction and the label of each
            record.
        calibrate: whether to count how sure the network is and how often right.

    Returns:
        Confusion and calibration.
    """
    import jax
    from tqdm import tqdm

    from jaxseg.inference.evaluator import Evaluator
    from jaxseg.parallel.mesh import create_parallel

    def watch(index, prediction, label):
        for watcher in watchers:
            watcher(index, prediction, label)

    batch_size = scoring.metadata.eval_batch_size
    # The figures do not depend on the devices, so take those the batch divides by.
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
        progress=lambda batches: tqdm(batches, unit="batch", disable=None, leave=False),
    )


def _with(scoring: Scoring, description: str, **changes) -> Scoring:
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
    """Each tile an image of its own, with all that is done to one."""
    from jaxseg.inference import scorers

    scorer, overlap = scoring.scorer, TILE_OVERLAP
    if scoring.image_size is not None:
        # A margin would be one of the image as it is fed.
        scorer, context = scorers.resized(scorer, scoring.image_size), 0
    if scoring.refine is not None:
        scorer = scorers.refined(scorer, scoring.refine)
    if context:
        # No averages: each pixel has its whole context in the one tile that counts.
        overlap = (2 * context + 1) / min(tile)
        if overlap >= 1:
            raise ValueError(
                f"--tile {tile[0]}x{tile[1]} is too small: the network needs {context} "
                f"pixels of context on each side; use at least {4 * context} pixels."
            )
    shown = f"tiles of {tile[0]}x{tile[1]}"
    tiling = {"size": tile, "overlap": overlap, "margin": context}
    return _with(
        scoring, shown, scorer=scorer, image_size=None, refine=None, tiling=tiling
    )


def _crf(preset: str):
    from jaxseg.ops.crf import PRESETS

    return partial(_refine, parameters=PRESETS[preset])


def _refine(probabilities, image, size, *, parameters):
    """The CRF within each image's true size, int32 [B, 2]; the rest is padding."""
    import jax.numpy as jnp

    from jaxseg.ops.crf import dense_crf

    rows, columns = (jnp.arange(n) for n in image.shape[1:3])
    inside = rows[None, :, None] < size[:, 0, None, None]
    inside &= columns[None, None, :] < size[:, 1, None, None]
    return dense_crf(probabilities, image, valid=inside, **parameters)
