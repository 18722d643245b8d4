"""Where arrays lie on a mesh of devices: maps are pinned after every layer."""

from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec as P

DATA, SPACE = "data", "space"
"""Axes of a mesh: samples are split over the first, rows of images over the second."""


def pin(x: jax.Array) -> jax.Array:
    """Splits a map's samples over `data` and its rows over `space`.

    The identity where the mesh in use has no such axes, as in a program for one device.
    Without it the compiler chooses where a map lies, and where heights do not divide it
    can choose to split the rows over some devices and to copy them to the rest: the
    gradients of convolutions are then multiplied by the number of copies.

    Args:
        x: [B, H, W] or [B, H, W, C].

    Returns:
        The same map.

    Raises:
        ValueError: if there are fewer rows than devices to split them over.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if SPACE not in mesh.auto_axes or mesh.shape[SPACE] == 1:
        return x
    rows, devices = x.shape[1], mesh.shape[SPACE]
    if rows == 1:  # one value for the whole image, as of a global pooling
        return lax.with_sharding_constraint(x, P(DATA))
    if rows < devices:
        raise ValueError(
            f"A map of {rows} rows cannot be split over parallel.space={devices} "
            "devices: feed higher images, or take fewer devices for space."
        )
    return lax.with_sharding_constraint(x, P(DATA, SPACE))


def gather(tree: Any) -> Any:
    """Copies arrays that are split over devices to each of them, for use there.

    The identity where no mesh is in use. The gradient goes the other way: it is summed
    over the devices, and each may keep its part alone.
    """
    if not jax.sharding.get_abstract_mesh().auto_axes:
        return tree
    return lax.with_sharding_constraint(tree, P())
