"""Centerline Dice (clDice), for thin and connected structures."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.losses.averages import average, check_average, select_weights, sum_pixels
from jaxseg.losses.targets import check_range, read_targets


def cl_dice(
    logits: jax.Array,
    label: jax.Array,
    *,
    iterations: int = 3,
    smooth: float = 1.0,
    per: str = "image",
    absent: str = "skip",
    classes: Sequence[int] | None = None,
    class_weights: jax.Array | None = None,
    ignore_index: int = 255,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One minus the overlap of each mask with the other one's skeleton.

        precision = (sum_i S(p)_i g_i + smooth) / (sum_i S(p)_i + smooth)
        recall    = (sum_i S(g)_i p_i + smooth) / (sum_i S(g)_i + smooth)
        loss_k    = 1 - 2 precision recall / (precision + recall)

    with the softmax probabilities p, g_ik = [k = label_i] and the soft skeleton S, which
    is computed by minima and maxima of neighbors. The loss of an image, or of the batch,
    is the mean over its classes. The paper uses it for the foreground only (`classes`),
    together with Dice.

    Void pixels are ignored, as in `tversky`; to the skeleton they are like the border of
    the image.

    Args:
        logits: [B, H, W, K], any float dtype; computed in float32.
        label: [B, H, W], integers in 0..K-1 or `ignore_index`.
        iterations: erosions after the first, at least 0: half the width in pixels of the
            widest structure.
        smooth: added to both sides of the fractions, in pixels, above 0.
        per: "image" or "batch", what the sums run over.
        absent: what happens to a class that no pixel of the image or batch has as its
            label: "skip" leaves it out of the mean; "count" gives it the formula's loss.
        classes: the classes that count; None for all.
        class_weights: weight of each class in the mean, [K]; None for equal weights.
        ignore_index: label of the void pixels.
        axis_name: mapped axis of the batch; None if the batch is whole.

    Returns:
        (sum, denominator), float32 scalars, as `tversky`.

    Raises:
        ValueError: if shapes do not match or an argument is out of range.

    Source: Shit et al. 2021, clDice, algorithm 1.
    """
    check_average(per, absent)
    check_range(iterations=iterations, smooth=smooth)
    if not smooth:
        raise ValueError("smooth is 0; it must be above 0")
    targets = read_targets(logits, label, ignore_index, ndim=4)
    weights = select_weights(class_weights, classes, logits.shape[-1])
    probability = targets.probability()
    mask = targets.is_label.astype(jnp.float32)
    valid = targets.valid[..., None]

    def ratio(skeleton, other):
        common = sum_pixels(skeleton * other, per, axis_name) + smooth
        return common / (sum_pixels(skeleton, per, axis_name) + smooth)

    precision = ratio(soft_skeleton(probability, valid, iterations), mask)
    recall = ratio(soft_skeleton(mask, valid, iterations), probability)
    return average(
        1.0 - 2.0 * precision * recall / (precision + recall),
        sum_pixels(mask, per, axis_name) > 0,
        weights,
        targets,
        absent=absent,
        per=per,
        axis_name=axis_name,
    )


def soft_skeleton(mask: jax.Array, valid: jax.Array, iterations: int) -> jax.Array:
    """Skeleton of masks with values between 0 and 1.

    Args:
        mask: [B, H, W, K].
        valid: [B, H, W, 1], bool; other pixels are like the outside of the image.
        iterations: erosions after the first.

    Returns:
        [B, H, W, K], between 0 and 1; 0 at pixels that are not valid.
    """

    def among_neighbors(x, axis, select, neutral):
        """Selects from each pixel and its two neighbors along an axis."""
        # Shifted copies instead of a window: XLA's gradient of a window's maximum is
        # wrong where rows are split over devices.
        size = x.shape[axis]
        padding = [(1, 1) if i == axis else (0, 0) for i in range(4)]
        x = jnp.pad(x, padding, constant_values=neutral)
        first, middle, last = (
            lax.slice_in_dim(x, start, start + size, axis=axis) for start in range(3)
        )
        return select(select(first, middle), last)

    def erode(x):
        x = jnp.where(valid, x, jnp.inf)  # pixels that are not valid never win
        columns, rows = (
            among_neighbors(x, axis, jnp.minimum, jnp.inf) for axis in (1, 2)
        )
        return jnp.where(valid, jnp.minimum(columns, rows), 0.0)

    def dilate(x):
        x = jnp.where(valid, x, -jnp.inf)
        for axis in (1, 2):
            x = among_neighbors(x, axis, jnp.maximum, -jnp.inf)
        return jnp.where(valid, x, 0.0)

    def ridge(x):
        """What an opening removes."""
        return jax.nn.relu(x - dilate(erode(x)))

    skeleton = ridge(mask)
    for _ in range(iterations):
        mask = erode(mask)
        found = ridge(mask)
        skeleton += jax.nn.relu(found - skeleton * found)
    return skeleton
