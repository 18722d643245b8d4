"""Sharding of feature maps over a device mesh; maps are pinned after every layer."""

from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec as P

DATA, SPACE = "data", "space"
"""Mesh axes: samples are sharded over the first, rows of images over the second."""

LEAST_ROWS = 4
"""Fewest rows per device of a sharded map; maps with fewer rows are replicated."""


def pin(x: jax.Array, rows: int | None = None, reach: int = 0) -> jax.Array:
    """Shards the samples of a map over `data` and its rows over `space`.

    The identity if the current mesh does not have these axes, as on a single device.

    Without pinning, the compiler chooses the sharding. If the height is not divisible
    by the number of devices, it may shard the rows over some devices and replicate them
    over the others, which multiplies the gradients of convolution kernels by the number
    of replicas. The same happens if a kernel reaches from one end of a sharded map to
    the other.

    Args:
        x: feature map, [B, H, W] or [B, H, W, C].
        rows: height of the lowest map that must have the same sharding; by default H.
            Below 4 rows per device all rows are replicated.
        reach: of the next kernel, in rows to each side. If it is not less than `rows`,
            all rows are replicated.

    Returns:
        The same map, with its sharding constrained.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if SPACE not in mesh.auto_axes or mesh.shape[SPACE] == 1:
        return x
    rows = x.shape[1] if rows is None else rows
    split = rows > reach and rows >= LEAST_ROWS * mesh.shape[SPACE]
    return lax.with_sharding_constraint(x, P(DATA, SPACE) if split else P(DATA))


def gather(tree: Any) -> Any:
    """Replicates sharded arrays on all devices.

    The identity without a mesh. The gradient is summed over the devices, and each
    device may keep only its own shard of it.

    Args:
        tree: any pytree of arrays.
    """
    if not jax.sharding.get_abstract_mesh().auto_axes:
        return tree
    return lax.with_sharding_constraint(tree, P())
