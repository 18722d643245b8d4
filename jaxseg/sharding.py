"""Meshes and placement: one pure step under `jit`, `shard_map` or `pmap`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BACKENDS = ("jit", "shard_map", "pmap")
AXIS = "data"

REPLICATED, SPLIT = P(), P(AXIS)
"""Where a step's output lies: a copy on every device, or split along the batch."""


@dataclass(frozen=True)
class Parallel:
    """How a step is spread over devices: the batch is split, the state is copied.

    Attributes:
        backend: one of `BACKENDS`.
        mesh: one axis, `data`, over the devices.
    """

    backend: str
    mesh: Mesh

    @property
    def axis_name(self) -> str | None:
        """The axis that a step sums over; None where the compiler sees the whole."""
        return None if self.backend == "jit" else AXIS

    @property
    def replicated(self) -> NamedSharding:
        """Placement of a copy on every device."""
        return NamedSharding(self.mesh, REPLICATED)

    def check_batch(self, batch_size: int, name: str) -> None:
        """Raises a ValueError where a batch does not split evenly over the devices.

        Args:
            batch_size: of all devices together.
            name: of the setting, for the message.
        """
        devices = self.mesh.size
        if batch_size % devices:
            low = batch_size // devices * devices
            sizes = " or ".join(str(n) for n in (low, low + devices) if n)
            raise ValueError(
                f"{name}={batch_size} does not divide by the {devices} devices; take "
                f"{sizes}, or another number of devices by parallel.data."
            )

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's part of a batch, [B, ...], on its devices."""
        if self.backend == "pmap":
            local = self.mesh.local_mesh.size
            batch = {k: v.reshape(local, -1, *v.shape[1:]) for k, v in batch.items()}
        sharding = NamedSharding(self.mesh, SPLIT)
        return {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()
        }

    def compile(
        self, step: Callable, outputs: Any = REPLICATED, donate: bool = False
    ) -> Callable:
        """Compiles `step(state, batch, axis_name=...)` for the devices.

        Args:
            step: pure function of a replicated state and the local part of a batch.
            outputs: tree prefix of its outputs, of `REPLICATED` and `SPLIT`.
            donate: whether the state's memory may be reused for the output.

        Returns:
            A function of the state and a batch from `place`. Under `pmap`, split
            outputs have a leading axis of devices, as the batch has.
        """
        step = partial(step, axis_name=self.axis_name)
        donated = (0,) if donate else ()
        if self.backend == "pmap":
            axes = jax.tree.map(
                lambda spec: 0 if spec == SPLIT else None, outputs, is_leaf=_is_spec
            )
            return jax.pmap(
                step,
                AXIS,
                in_axes=(None, 0),
                out_axes=axes,
                donate_argnums=donated,
                devices=self.mesh.devices.flat,
            )
        if self.backend == "shard_map":
            # With check_vma=True shard_map would sum replicated parameters' gradients
            # a second time over the devices.
            step = jax.shard_map(
                step,
                mesh=self.mesh,
                in_specs=(REPLICATED, SPLIT),
                out_specs=outputs,
                check_vma=False,
            )
        placement = jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec), outputs, is_leaf=_is_spec
        )
        return jax.jit(step, out_shardings=placement, donate_argnums=donated)


def create_parallel(backend: str = "jit", data: int = -1) -> Parallel:
    """Chooses the devices and the way to use them.

    Args:
        backend: one of `BACKENDS`. All give the same losses; `jit` lets the compiler
            place the sums, the others run the step as written on each device.
        data: number of devices to split the batch over; -1 takes all there are.

    Returns:
        A `Parallel`.

    Raises:
        ValueError: if the backend is unknown or there are fewer devices.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"parallel.backend={backend!r} is unknown; take one of "
            f"{', '.join(BACKENDS)}."
        )
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if not 1 <= count <= len(devices):
        raise ValueError(
            f"parallel.data={data}, but there are {len(devices)} devices; take 1 to "
            f"{len(devices)}, or -1 for all."
        )
    return Parallel(backend, Mesh(np.array(devices[:count]), (AXIS,)))


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)
