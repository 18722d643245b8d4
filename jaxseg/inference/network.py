"""A forward pass, scores at the original size, and the evaluation step: pure functions.

A step is written for the local part of a batch; see `jaxseg.training.step`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.metrics import calibration_counts, confusion_counts
from jaxseg.models.variables import Variables
from jaxseg.ops.image_normalization import Normalization
from jaxseg.ops.probabilities import log_probabilities
from jaxseg.ops.resize import resize_bilinear_to
from jaxseg.parallel.mesh import Batch
from jaxseg.utils.classes import check_max_classes
from jaxseg.utils.collectives import psum_over

Scorer = Callable[[Variables, jax.Array], jax.Array]
"""Variables and images, uint8 [B, H, W, C], to scores; see `inference.scorers`."""

Refine = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Refines probabilities [B, H, W, K] by images, uint8 [B, H, W, C], and their heights and
widths without padding, int32 [B, 2]; such as a CRF."""


class NonFiniteScoresError(ValueError):
    """A network's scores are NaN or infinite, so its classes would mean nothing."""

    def __init__(self, image: str = "this image"):
        """Names the image."""
        super().__init__(
            f"The network's scores for {image} are NaN or infinite. Use weights from "
            "before the training diverged, and images like those of the training; with "
            "a dtype of 16 bits, float32."
        )


def predict_logits(
    variables: Variables,
    image: jax.Array,
    *,
    model: nn.Module,
    normalization: Normalization,
) -> jax.Array:
    """Maps images, uint8 [B, H, W, C], to float32 logits [B, H, W, K], for inference."""
    logits: Any = model.apply(variables, normalization(image), train=False)
    return logits


def score_images(
    variables: Variables,
    batch: Batch,
    *,
    scorer: Scorer,
    out_shape: tuple[int, int] | None = None,
    refine: Refine | None = None,
) -> jax.Array:
    """Scores images, resizes the scores back to the original size, and refines them.

    Args:
        variables: variables for the scorer.
        batch: `image`, uint8 [B, h, w, C], as the scorer expects it, and `size`, int32
            [B, 2], the original height and width without padding. With both `out_shape`
            and `refine`, also `original`, uint8 [B, *out_shape, C].
        scorer: variables and images to scores [B, h, w, K].
        out_shape: (height, width) of the result, at least `size`, if images were resized
            from their original size; None if they were not.
        refine: refinement at the original size.

    Returns:
        Scores, float32 [B, *out_shape, K]; log-probabilities if refined.
    """
    scores = scorer(variables, batch["image"])
    if out_shape is not None:
        scores = resize_bilinear_to(scores, batch["size"], out_shape)
    if refine is None:
        return scores
    image = batch["image" if out_shape is None else "original"]
    return log_probabilities(refine(jax.nn.softmax(scores), image, batch["size"]))


def choose_classes(scores: jax.Array) -> jax.Array:
    """The class of highest score of each pixel.

    Args:
        scores: [..., K].

    Returns:
        uint8 [...].

    Raises:
        ValueError: if there are more classes than uint8 can hold beside void.
    """
    check_max_classes(scores.shape[-1])
    return jnp.argmax(scores, axis=-1).astype(jnp.uint8)


def are_finite(scores: jax.Array, size: jax.Array) -> jax.Array:
    """Whether all scores of each image are finite, without its padding.

    Args:
        scores: [B, H, W, K].
        size: height and width of each image without padding, int32 [B, 2].

    Returns:
        bool [B].
    """
    rows, columns = (jnp.arange(n) for n in scores.shape[1:3])
    padding = rows[None, :, None] >= size[:, 0, None, None]
    padding |= columns[None, None, :] >= size[:, 1, None, None]
    finite = jnp.all(jnp.isfinite(scores), axis=-1)
    return jnp.all(finite | padding, axis=(1, 2))


def eval_step(
    variables: Variables,
    batch: Batch,
    *,
    scorer: Scorer,
    num_classes: int,
    resized: bool,
    refine: Refine | None = None,
    calibrate: bool = False,
    axis_name: str | None = None,
) -> tuple[tuple[jax.Array, jax.Array], dict[str, Any]]:
    """Evaluates one batch at the size of its labels.

    Args:
        variables: variables for the scorer.
        batch: as for `score_images`, and `label`, uint8 [B, H, W].
        scorer: variables and images to scores [B, h, w, K].
        num_classes: K.
        resized: whether images were resized from the size of their labels.
        refine: refinement at the size of the labels.
        calibrate: whether to count confidence against accuracy.
        axis_name: mapped axis of the batch; None under `jit`.

    Returns:
        Predictions, uint8 [B, H, W], and whether the scores are finite, bool [B]; and
        counts of the global batch: "confusion", int32 [K, K], truth by prediction, and
        with `calibrate` "calibration", from `calibration_counts`.
    """
    label = batch["label"]
    height, width = label.shape[1:3]
    scores = score_images(
        variables,
        batch,
        scorer=scorer,
        out_shape=(height, width) if resized else None,
        refine=refine,
    )
    prediction = choose_classes(scores)
    finite = are_finite(scores, batch["size"])
    counts: dict[str, Any] = {
        "confusion": confusion_counts(prediction, label, num_classes)
    }
    if calibrate:
        counts["calibration"] = calibration_counts(jax.nn.softmax(scores), label)
    counts = jax.tree.map(lambda count: psum_over(count, axis_name), counts)
    return (prediction, finite), counts
