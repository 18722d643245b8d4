"""Losses of overlap: one family, of which Dice and Jaccard are members."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseg.losses.averages import average, check_average, select_weights, sum_pixels
from jaxseg.losses.targets import (
    Targets,
    check_range,
    choose,
    read_pixel_weights,
    read_targets,
)

TRANSFORMS = ("none", "log_cosh")


class Overlap(NamedTuple):
    """Soft counts of each class, float32 [B, K], or [1, K] for the whole batch."""

    true_positives: jax.Array
    false_positives: jax.Array
    false_negatives: jax.Array
    volume: jax.Array


def tversky(
    logits: jax.Array,
    label: jax.Array,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    transform: str = "none",
    squared: bool = False,
    smooth: float = 0.0,
    per: str = "image",
    absent: str = "skip",
    classes: Sequence[int] | None = None,
    class_weights: jax.Array | None = None,
    ignore_index: int = 255,
    pixel_weights: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Tversky loss: one minus the overlap of prediction and label, for each class.

        TP = sum_i v_i p_ik g_ik,  FP = sum_i v_i p_ik (1 - g_ik),
        FN = sum_i v_i (1 - p_ik) g_ik
        loss_k = (1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth))^gamma

    with the softmax probabilities p, g_ik = [k = label_i] and the weights v of the
    pixels. The other losses of the family are this one with other arguments:

        dice            alpha = beta = 0.5; with `squared`, V-Net's
        jaccard         alpha = beta = 1
        focal_tversky   alpha = 0.3, beta = 0.7, gamma = 0.75
        log_cosh_dice   dice with transform = "log_cosh"

    The loss of an image, or of the batch, is the mean over its classes, weighted by
    `class_weights`. With per = "batch" the sums run over the batch on all devices.

    Void pixels are ignored: their logits, even if infinite or NaN, change neither the
    value nor any gradient. An image without valid pixels, or in which no class counts,
    is left out of the mean over images; without any image both results are 0. A label
    that is neither a class nor void makes the sum NaN.

    Args:
        logits: [B, H, W, K], any float dtype; computed in float32.
        label: [B, H, W], integers in 0..K-1 or `ignore_index`.
        alpha: weight of the false positives, at least 0.
        beta: weight of the false negatives, at least 0.
        gamma: exponent, above 0; below 1 it stresses classes that are segmented well.
        transform: "none", or "log_cosh" for log(cosh(loss_k)).
        squared: whether FP has p^2 in place of p, so that TP + FP is the sum of p^2.
        smooth: added to both sides of the fraction, in pixels, at least 0. MONAI's and
            nnU-Net's smooth for Dice, which add it to 2 TP, is twice this one.
        per: "image" or "batch", what the sums run over.
        absent: what happens to a class that no pixel of the image or batch has as its
            label: "skip" leaves it out of the mean; "count" gives it the formula's loss,
            which is 1 where `smooth` is 0 and any of it is predicted.
        classes: the classes that count, such as all but the background; None for all.
        class_weights: weight of each class in the mean, [K]; None for equal weights.
        ignore_index: label of the void pixels.
        pixel_weights: weight of each pixel, [B, H, W], at least 0; None for equal ones.
        axis_name: mapped axis of the batch; None if the batch is whole.

    Returns:
        (sum, denominator), float32 scalars: the sum over the images and their number.
        With per = "batch", the loss and 1 on each device.

    Raises:
        ValueError: if shapes do not match or an argument is out of range.

    Source: Salehi et al. 2017; Milletari et al. 2016 (V-Net); Abraham and Khan 2019
        (focal); Jadon 2020 (log-cosh).
    """
    check_average(per, absent)
    choose("transform", transform, TRANSFORMS)
    check_range(alpha=alpha, beta=beta, gamma=gamma, smooth=smooth)
    if not gamma:
        raise ValueError("gamma is 0; it must be above 0")
    targets = read_targets(logits, label, ignore_index, ndim=4)
    weights = select_weights(class_weights, classes, logits.shape[-1])
    overlap = _overlap(targets, pixel_weights, squared, per, axis_name)
    error = alpha * overlap.false_positives + beta * overlap.false_negatives
    losses = _ratio(error, overlap.true_positives + error + smooth)
    if gamma != 1:
        # The slope of a power below 1 is infinite at 0.
        wrong = losses > 0
        losses = jnp.where(wrong, jnp.where(wrong, losses, 1.0) ** gamma, losses)
    if transform == "log_cosh":
        losses = jnp.log(jnp.cosh(losses))
    return average(
        losses,
        overlap.volume > 0,
        weights,
        targets,
        absent=absent,
        per=per,
        axis_name=axis_name,
    )


dice = tversky
jaccard = partial(tversky, alpha=1.0, beta=1.0)
focal_tversky = partial(tversky, alpha=0.3, beta=0.7, gamma=0.75)
log_cosh_dice = partial(tversky, transform="log_cosh")


def generalized_dice(
    logits: jax.Array,
    label: jax.Array,
    *,
    power: float = 2.0,
    squared: bool = False,
    smooth: float = 0.0,
    per: str = "image",
    classes: Sequence[int] | None = None,
    class_weights: jax.Array | None = None,
    ignore_index: int = 255,
    pixel_weights: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Dice loss of all classes together, in which small classes count as much as large.

        loss = 1 - (sum_k u_k TP_k + smooth)
                   / (sum_k u_k (TP_k + FP_k / 2 + FN_k / 2) + smooth)
        u_k  = w_k / volume_k^power

    where the volume is the number of pixels with the label k. A class without any has
    the weight 0. Everything else is as in `tversky`.

    Args:
        logits: [B, H, W, K], any float dtype; computed in float32.
        label: [B, H, W], integers in 0..K-1 or `ignore_index`.
        power: of the volume, at least 0; 2 in the paper.
        squared: as in `tversky`.
        smooth: added to both sides of the fraction, at least 0.
        per: "image" or "batch", what the sums run over.
        classes: the classes that count; None for all.
        class_weights: w, [K]; None for equal weights.
        ignore_index: label of the void pixels.
        pixel_weights: weight of each pixel, [B, H, W], at least 0; None for equal ones.
        axis_name: mapped axis of the batch; None if the batch is whole.

    Returns:
        (sum, denominator), float32 scalars, as `tversky`.

    Raises:
        ValueError: if shapes do not match or an argument is out of range.

    Source: Sudre et al. 2017, Generalised Dice overlap as a deep learning loss function.
    """
    check_average(per, "skip")
    check_range(power=power, smooth=smooth)
    targets = read_targets(logits, label, ignore_index, ndim=4)
    weights = select_weights(class_weights, classes, logits.shape[-1])
    overlap = _overlap(targets, pixel_weights, squared, per, axis_name)
    present = (overlap.volume > 0) & (weights > 0)[None]
    weights = jnp.broadcast_to(weights[None], present.shape)
    weights = jnp.where(
        present, weights / jnp.where(present, overlap.volume, 1.0) ** power, 0.0
    )
    error = 0.5 * (overlap.false_positives + overlap.false_negatives)
    losses = _ratio(
        jnp.sum(weights * error, axis=1, keepdims=True),
        jnp.sum(weights * (overlap.true_positives + error), axis=1, keepdims=True)
        + smooth,
    )
    return average(
        losses,
        jnp.any(present, axis=1, keepdims=True),
        jnp.ones(1, jnp.float32),
        targets,
        absent="skip",
        per=per,
        axis_name=axis_name,
    )


def _overlap(
    targets: Targets,
    pixel_weights: jax.Array | None,
    squared: bool,
    per: str,
    axis_name: str | None,
) -> Overlap:
    probability, is_label = targets.probability(), targets.is_label
    predicted = probability**2 if squared else probability
    # Sums of terms of one sign are more exact than differences of sums.
    maps = (
        jnp.where(is_label, probability, 0.0),
        jnp.where(is_label, predicted - probability, predicted),
        jnp.where(is_label, 1.0 - probability, 0.0),
        jnp.where(is_label, 1.0, 0.0),
    )
    pixel_weights = read_pixel_weights(pixel_weights, targets.valid)
    if pixel_weights is not None:
        maps = tuple(x * pixel_weights[..., None] for x in maps)
    return Overlap(*(sum_pixels(x, per, axis_name) for x in maps))


def _ratio(error: jax.Array, total: jax.Array) -> jax.Array:
    """error / total, and 0 for 0 / 0."""
    return jnp.where(total != 0, error / jnp.where(total != 0, total, 1.0), 0.0)
