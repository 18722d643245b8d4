"""TPU chips with their data sheets, and slices of them that need not be available."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

GIB = 1 << 30

HOP_SECONDS = 1e-6
"""Latency to the next chip: https://jax-ml.github.io/scaling-book/sharding."""


LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # otherwise it asks the cloud for this machine's TPU
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # otherwise it warns that there is none
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # allows runs on this machine's TPU
}
"""Environment variables with which libtpu compiles without using a TPU. The topology
decides for which chip it compiles."""


@dataclass(frozen=True)
class Chip:
    """The data sheet of a TPU chip.

    Attributes:
        memory: bytes, by the data sheet.
        usable: bytes that programs can use, as libtpu 0.0.42 reports if a program needs
            more.
        memory_bandwidth: bytes per second.
        flops: peak floating-point operations per second, in bfloat16.
        link_bandwidth: bytes per second of one link to a neighbor, in one direction.
        axes: number of axes of the torus.
        source: address of the data sheet.
    """

    memory: int
    usable: int
    memory_bandwidth: float
    flops: float
    link_bandwidth: float
    axes: int
    source: str


def _chip(memory, usable, memory_bandwidth, flops, all_reduce, axes, name):
    # The data sheets give an all-reduce bandwidth per pod or a bandwidth per chip: what
    # a chip sends over all of its links, of which there are two per axis.
    return Chip(
        memory=round(memory * GIB),
        usable=round(usable * GIB),
        memory_bandwidth=memory_bandwidth,
        flops=flops,
        link_bandwidth=all_reduce / (2 * axes),
        axes=axes,
        source=f"https://cloud.google.com/tpu/docs/{name}",
    )


# As of November 2026. Earlier versions of v6e's page had 1640 GB/s and 3584 Gbit/s.
CHIPS = {
    "v4": _chip(32, 30.75, 1200e9, 275e12, 1.1e15 / 4096, 3, "v4"),
    "v5e": _chip(16, 15.75, 819e9, 197e12, 51.2e12 / 256, 2, "v5e"),
    "v5p": _chip(95, 95.74, 2765e9, 459e12, 1200e9 / 2, 3, "v5p"),
    "v6e": _chip(32, 31.25, 1600e9, 918e12, 102.4e12 / 256, 2, "v6e"),
}


@dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: such as "v5e:16x16", or "cpu:8" for fake devices.
        shape: of the slice, in chips.
        chip: its data sheet; None for a CPU.
        devices: descriptions of the devices, or fake devices; empty if the topology was
            only parsed.
    """

    name: str
    shape: tuple[int, ...]
    chip: Chip | None
    devices: tuple[Any, ...] = ()

    @property
    def size(self) -> int:
        """Number of chips, or of fake devices."""
        return math.prod(self.shape)

    def require_chip(self) -> Chip:
        """The data sheet of the chip.

        Raises:
            ValueError: for a CPU, which has none.
        """
        if self.chip is None:
            raise ValueError(
                f"topology {self.name} has no data sheet; use a TPU slice."
            )
        return self.chip

    @cached_property
    def _wraps(self) -> tuple[bool, ...]:
        """Which axes are rings: those of a whole pod, or of whole cubes of 4x4x4."""
        if self.require_chip().axes == 2:
            return tuple(size == 16 for size in self.shape)
        return (all(size % 4 == 0 for size in self.shape),) * len(self.shape)

    @property
    def send_bandwidth(self) -> float:
        """Bytes per second that every chip can send, including those in corners."""
        links = sum(
            2 if wraps else int(size > 1)
            for size, wraps in zip(self.shape, self._wraps)
        )
        return links * self.require_chip().link_bandwidth

    @property
    def hops(self) -> int:
        """Number of links between the two chips with the largest distance."""
        return sum(
            size // 2 if wraps else size - 1
            for size, wraps in zip(self.shape, self._wraps)
        )


def open_topology(name: str) -> Topology:
    """Creates the devices of a topology; call it before JAX is initialized.

    Args:
        name: a chip and the shape of a slice, such as "v5e:4x4" or "v4:2x2x4", or a
            number of fake devices, such as "cpu:8".

    Returns:
        The topology, with devices.

    Raises:
        ValueError: if the chip or slice does not exist, or libtpu is not installed.
    """
    topology = parse_topology(name)
    # Nothing is computed, so accelerators of this machine stay free.
    jax.config.update("jax_platforms", "cpu")
    make = _tpu_devices if topology.chip else _fake_devices
    return dataclasses.replace(topology, devices=make(topology))


def parse_topology(name: str) -> Topology:
    """Like `open_topology`, but without devices; does not need libtpu."""
    kind, _, size = name.partition(":")
    if kind not in ("cpu", *CHIPS) or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise ValueError(
            f"unknown topology {name!r}; give a chip ({', '.join(CHIPS)}) and the shape "
            "of its slice, such as v5e:16x16, or fake devices, such as cpu:8."
        )
    chip, shape = CHIPS.get(kind), tuple(int(n) for n in size.split("x"))
    if chip is None and len(shape) > 1:
        raise ValueError(
            f"topology {name!r}: give the number of CPU devices, such as cpu:8."
        )
    if chip is not None and len(shape) != chip.axes:
        raise ValueError(
            f"topology {name!r}: a slice of {kind} has {chip.axes} axes, such as "
            f"{kind}:{'x'.join(['4'] * chip.axes)}."
        )
    return Topology(name, shape, chip)


def _fake_devices(topology):
    count = topology.size
    # An error if JAX is already initialized; it may have enough devices nevertheless.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    if len(devices) < count:
        raise ValueError(
            f"topology {topology.name}: JAX was already initialized with {len(devices)} "
            "devices; plan in a new process."
        )
    return tuple(devices[:count])


def _tpu_devices(topology):
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "Compiling for TPUs needs libtpu, which is not installed; run pip install "
            "'jaxseg[plan]'. No TPU is needed."
        )
    for name, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental.topologies import get_topology_desc

    options = {}
    if topology.size == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.chip is CHIPS["v4"]:  # as in JAX: one device per chip, not per core
        options["chip_config_name"] = "megacore"
    try:
        return tuple(get_topology_desc(topology.name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"topology {topology.name!r} does not exist: {error}"
        ) from None
