"""One pass through a network, and the evaluation step around it: pure functions.

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
from jaxseg.ops.resize import resize_bilinear_to
from jaxseg.parallel.mesh import Batch, psum_over


def predict_logits(
    variables: Variables,
    image: jax.Array,
    *,
    model: nn.Module,
    normalization: Normalization,
) -> jax.Array:
    """Maps images, uint8 [B, H, W, C], to float32 logits [B, H, W, K], not training."""
    return model.apply(variables, normalization(image), train=False)


def eval_step(
    variables: Variables,
    batch: Batch,
    *,
    scorer: Callable[[Variables, jax.Array], jax.Array],
    num_classes: int,
    resized: bool,
    refine: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
    calibrate: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Scores one batch at the size of its labels.

    Args:
        variables: of the model.
        batch: `image` uint8 [B, h, w, C], `label` uint8 [B, H, W] and `size` int32
            [B, 2], the height and width of each label without its padding; to refine
            what was resized, also `original` uint8 [B, H, W, C].
        scorer: from variables and images to scores, [B, h, w, K]; see `inference`.
        num_classes: K.
        resized: whether images were resized from their labels' size; the scores are
            then resized back to it, bilinearly.
        refine: from probabilities [B, H, W, K], images uint8 [B, H, W, C] and sizes to
            better probabilities.
        calibrate: whether to count how sure the model is and how often right.
        axis_name: mapped axis of the batch, None under `jit`.

    Returns:
        Predictions, uint8 [B, H, W], and counts of the whole batch: "confusion", int32
        [K, K], truth by prediction, and with `calibrate` "calibration", as
        `calibration_counts` gives it.
    """
    scores = scorer(variables, batch["image"])
    if resized:
        scores = resize_bilinear_to(scores, batch["size"], batch["label"].shape[1:3])
    if refine is not None:
        image = batch["original" if resized else "image"]
        scores = refine(jax.nn.softmax(scores), image, batch["size"])
    prediction = jnp.argmax(scores, axis=-1).astype(jnp.uint8)
    counts = {"confusion": confusion_counts(prediction, batch["label"], num_classes)}
    if calibrate:
        probabilities = jax.nn.softmax(scores) if refine is None else scores
        counts["calibration"] = calibration_counts(probabilities, batch["label"])
    return prediction, jax.tree.map(lambda count: psum_over(count, axis_name), counts)
