"""Lower bounds on the time of a training step, from the data sheet of the chip."""

from collections.abc import Sequence
from typing import Any

from jaxseg.plan.topology import HOP_SECONDS, Topology


def bounds(
    step: dict[str, Any], topology: Topology, batch_size: int
) -> dict[str, float]:
    """Lower bounds on the time of a step.

    Computation takes FLOPs / peak FLOPs, memory traffic takes bytes / memory bandwidth,
    and the network takes the bytes that each device sends / the bandwidth of its links.
    If they overlap perfectly, a step takes the maximum of the three; no step is faster.
    If the network does not overlap with the others, its time is added, plus the latency
    of one trip across the slice for each collective.

    A single device would process its fraction of the batch in the maximum of
    computation and memory traffic. The ratio of this time to that of a step is the
    scaling efficiency.

    Args:
        step: from `compile_step`.
        topology: a slice of TPU chips.
        batch_size: global batch size.

    Returns:
        Seconds: `compute`, `memory`, `network`, `latency`, `step_at_least`,
        `step_unhidden`; images per second: `images_at_most`, `images_unhidden`;
        fractions: `efficiency_at_most`, `efficiency_unhidden`.

    Raises:
        ValueError: if the topology is not of TPU chips.
    """
    chip = topology.require_chip()
    rows = step["collectives"].values()
    sent = sum(row["sent_bytes"] for row in rows)
    compute = step["flops"] / chip.flops
    memory = step["memory_traffic"] / chip.memory_bandwidth
    network = sent / topology.send_bandwidth if sent else 0.0
    latency = sum(row["count"] for row in rows) * topology.hops * HOP_SECONDS
    alone = max(compute, memory)
    hidden, unhidden = max(alone, network), alone + network + latency
    return {
        "compute": compute,
        "memory": memory,
        "network": network,
        "latency": latency,
        "step_at_least": hidden,
        "step_unhidden": unhidden,
        "images_at_most": batch_size / hidden,
        "images_unhidden": batch_size / unhidden,
        "efficiency_at_most": alone / hidden,
        "efficiency_unhidden": alone / unhidden,
    }


def bounds_on(
    other: Topology, step: dict[str, Any], topology: Topology, batch_size: int
) -> dict[str, Any]:
    """Lower bounds on the time of a step on another slice, with equal batches per chip.

    If each device has the whole state and its own images, it runs the same program in a
    slice of any size. Only the size of the group over which it sums differs.

    Args:
        other: the other slice.
        step: from `compile_step`.
        topology: the slice that the step was compiled for, using all of its chips.
        batch_size: global batch size on `topology`.

    Returns:
        The results of `bounds`, and `devices` and `batch_size`.
    """
    ratio = (1 - 1 / other.size) / (1 - 1 / topology.size)
    rows = {
        kind: row | {"sent_bytes": row["sent_bytes"] * ratio}
        for kind, row in step["collectives"].items()
    }
    size = {
        "devices": other.size,
        "batch_size": batch_size // topology.size * other.size,
    }
    return size | bounds(step | {"collectives": rows}, other, size["batch_size"])


def check_slices(
    slices: Sequence[Topology], topology: Topology, *, data: int, fsdp: bool
) -> None:
    """Raises a ValueError if slices would run another program; see `bounds_on`.

    Args:
        slices: slices to predict.
        topology: the slice to compile for.
        data: number of its devices that the batch is sharded over.
        fsdp: whether the state is sharded, too.
    """
    if not slices:
        return
    if any(other.chip != topology.chip or not other.chip for other in slices):
        raise ValueError(
            f"Other slices must have the same chip as {topology.name}; on another chip "
            "the compiled program differs."
        )
    if fsdp or not 1 < data == topology.size:
        raise ValueError(
            "Other slices can only be predicted if the batch is sharded over all chips, "
            "at least two, and nothing else is sharded (space=1, fsdp=False); otherwise "
            "the compiled program differs."
        )
