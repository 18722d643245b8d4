"""Means over classes and images, of losses that are not sums over pixels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.losses.targets import Targets, choose, read_class_weights
from jaxseg.utils.collectives import psum_over

PER = ("image", "batch")
ABSENT = ("skip", "count")


def check_average(per: str, absent: str) -> None:
    """Raises a ValueError if one of the arguments is unknown."""
    choose("per", per, PER)
    choose("absent", absent, ABSENT)


def select_weights(
    class_weights: jax.Array | np.ndarray | None,
    classes: Sequence[int] | None,
    num_classes: int,
) -> jax.Array:
    """Weights of the classes, float32 [K]; 0 for those that are not among `classes`.

    Raises:
        ValueError: if there is no such class, or weights are out of range.
    """
    weights = read_class_weights(class_weights, num_classes)
    if classes is None:
        return weights
    if not classes or not set(classes) <= set(range(num_classes)):
        raise ValueError(
            f"classes is {tuple(classes)}; it must be some of 0 to {num_classes - 1}"
        )
    selected = np.isin(np.arange(num_classes), tuple(classes))
    return jnp.where(selected, weights, 0.0)


def sum_pixels(
    values: jax.Array, per: str, axis_name: str | None, axes: tuple[int, ...] = (1, 2)
) -> jax.Array:
    """Sums a map over the pixels of each image, or of the batch on all devices.

    Args:
        values: [B, H, W, ...].
        per: "image" or "batch".
        axis_name: mapped axis of the batch.
        axes: of the rows and columns.

    Returns:
        float32 [B, ...], or [1, ...] for the batch.
    """
    sums = jnp.sum(values, axis=axes, dtype=jnp.float32)
    if per == "image":
        return sums
    return psum_over(jnp.sum(sums, axis=0, keepdims=True), axis_name)


def average(
    losses: jax.Array,
    present: jax.Array,
    weights: jax.Array,
    targets: Targets,
    *,
    absent: str,
    per: str,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array]:
    """Mean over the classes of each image or of the batch; the sum of these means.

    Args:
        losses: of each class, [B, K], or [1, K] for the batch on all devices.
        present: whether a label has the class, like `losses`.
        weights: of the classes, [K].
        targets: of the batch.
        absent: "skip" leaves classes without a label out of the mean; "count" does not.
        per: "image" or "batch".
        axis_name: mapped axis of the batch.

    Returns:
        (sum, denominator): the denominator is the number of means that there are. An
        image has none if all its pixels are void or no class counts.
    """
    counted = jnp.broadcast_to(weights[None], losses.shape)
    if absent == "skip":
        counted = jnp.where(present, counted, 0.0)
    labeled = sum_pixels(targets.valid, per, axis_name) > 0
    counted = jnp.where(labeled[:, None], counted, 0.0)
    total = jnp.sum(counted, axis=1)
    mean = jnp.sum(jnp.where(counted > 0, counted * losses, 0.0), axis=1)
    mean /= jnp.where(total > 0, total, 1.0)
    denominator = jnp.sum(total > 0, dtype=jnp.float32)
    return jnp.where(targets.unknown, jnp.nan, jnp.sum(mean)), denominator
