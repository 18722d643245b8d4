"""What a step takes at least, by the figures of a chip and its slice."""

from collections.abc import Sequence
from typing import Any

from jaxseg.plan.topology import HOP_SECONDS, Topology


def bounds(
    step: dict[str, Any], topology: Topology, batch_size: int
) -> dict[str, float]:
    """What the chip's data sheet lets a step take at least.

    Its computation takes FLOPs / peak, its traffic with the main memory bytes /
    bandwidth, and the network what each device has to send / the bandwidth of its
    links. If all are hidden behind the longest, a step takes its time: none is faster.
    If nothing of the network is hidden behind the rest, it comes on top of it, and with
    it one trip across the slice for each collective.

    One device alone would do its share of the batch in the longer of computation and
    memory traffic. That time over a step's is the scaling efficiency.

    Args:
        step: from `compile_step`.
        topology: with a chip.
        batch_size: of all devices together.

    Returns:
        Seconds `compute`, `memory`, `network`, `latency`, `step_at_least`,
        `step_unhidden`; images per second `images_at_most`, `images_unhidden`; shares
        `efficiency_at_most`, `efficiency_unhidden`.
    """
    chip = topology.chip
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
    """The bounds of a step on another slice, as many images on each chip.

    Where each device has the whole state and its own images, it runs the same program
    in a slice of any size; only the groups are larger or smaller in which it sums.

    Args:
        other: the slice.
        step: from `compile_step`.
        topology: that it was compiled for, all of it in use.
        batch_size: there.

    Returns:
        As `bounds`, and `devices` and `batch_size`.
    """
    share = (1 - 1 / other.size) / (1 - 1 / topology.size)
    rows = {
        kind: row | {"sent_bytes": row["sent_bytes"] * share}
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
    """Raises a ValueError for slices that would run another program; see `bounds_on`.

    Args:
        slices: to be predicted.
        topology: that is compiled for.
        data: devices there that the batch is split over.
        fsdp: whether the state is, too.
    """
    if not slices:
        return
    if any(other.chip != topology.chip or not other.chip for other in slices):
        raise ValueError(
            f"--slices: give slices of the chip of {topology.name}; for another chip "
            "the program is another one."
        )
    if fsdp or not 1 < data == topology.size:
        raise ValueError(
            "--slices: only where all of at least two chips share the batch alone "
            "(parallel.space=1, fsdp=False) is the program the same on other slices."
        )
