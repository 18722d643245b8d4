"""Where arrays lie on a mesh of devices: maps are pinned after every layer."""

from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec as P

DATA, SPACE = "data", "space"
"""Axes of a mesh: samples are split over the first, rows of images over the second."""

LEAST_ROWS = 4
"""Rows that each device must get of a map that is split; lower maps are copied."""


def pin(x: jax.Array, rows: int | None = None, reach: int = 0) -> jax.Array:
    """Splits a map's samples over `data` and its rows over `space`.

    The identity where the mesh in use has no such axes, as in a program for one device.
    Without it the compiler chooses where a map lies, and where heights do not divide it
    can choose to split the rows over some devices and to copy them to the rest: the
    gradients of convolutions are then multiplied by the number of copies. So they are,
    too, where a kernel reaches from one end of a map that is split to the other.

    Args:
        x: [B, H, W] or [B, H, W, C].
        rows: of the lowest map that must lie as this one does; by default its own. If
            they are fewer than 4 for each device, all rows are copied to each.
        reach: of the kernel that goes over it, in rows to each side. If that is not
            less than the rows, they are copied likewise.

    Returns:
        The same map.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if SPACE not in mesh.auto_axes or mesh.shape[SPACE] == 1:
        return x
    rows = x.shape[1] if rows is None else rows
    split = rows > reach and rows >= LEAST_ROWS * mesh.shape[SPACE]
    return lax.with_sharding_constraint(x, P(DATA, SPACE) if split else P(DATA))


def gather(tree: Any) -> Any:
    """Copies arrays that are split over devices to each of them, for use there.

    The identity where no mesh is in use. The gradient goes the other way: it is summed
    over the devices, and each may keep its part alone.
    """
    if not jax.sharding.get_abstract_mesh().auto_axes:
        return tree
    return lax.with_sharding_constraint(tree, P())
