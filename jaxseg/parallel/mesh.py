"""Meshes and placement: one pure step under `jit`, `shard_map` or `pmap`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxseg.ops.partition import DATA, LEAST_ROWS, SPACE, pin

Batch = dict[str, jax.Array]
"""Arrays by name, such as `image` and `label`, all with the samples first."""

BACKENDS = ("jit", "shard_map", "pmap")

REPLICATED, SPLIT = P(), P(DATA)
"""Where a step's output lies: a copy on every device, or split along the batch."""

LEAST_SPLIT = 4096
"""Values that an array must have for `fsdp` to split it: fewer are not worth a trip."""


@dataclass(frozen=True)
class Parallel:
    """How a step is spread over devices.

    Attributes:
        backend: one of `BACKENDS`.
        mesh: of axes `data`, which splits the batch, and `space`, which splits the
            rows of images.
        fsdp: whether the state is split over `data` too, rather than copied.
    """

    backend: str
    mesh: Mesh
    fsdp: bool = False

    @property
    def axis_name(self) -> str | None:
        """The axis that a step sums over; None where the compiler sees the whole."""
        return None if self.backend == "jit" else DATA

    @property
    def replicated(self) -> NamedSharding:
        """Placement of a copy on every device."""
        return self._placement(REPLICATED)

    @property
    def split(self) -> NamedSharding:
        """Placement of what is split along the batch."""
        return self._placement(SPLIT)

    @cached_property
    def process_shard(self) -> tuple[int, int]:
        """This process's part of every batch, as its number and the number of parts.

        Processes that hold rows of the same images have the same part.
        """
        mine = [
            row
            for row, devices in enumerate(self.mesh.devices)
            if any(device.process_index == jax.process_index() for device in devices)
        ]
        return mine[0] // len(mine), self.mesh.shape[DATA] // len(mine)

    def check_batch(self, batch_size: int) -> None:
        """Raises a ValueError where a batch does not split evenly over the devices.

        Args:
            batch_size: the global one.
        """
        devices = self.mesh.shape[DATA]
        if batch_size % devices:
            low = batch_size // devices * devices
            sizes = " or ".join(str(n) for n in (low, low + devices) if n)
            raise ValueError(
                f"batch_size={batch_size} is not divisible by the {devices} devices "
                f"that the batch is split over; use {sizes}, or another number of "
                "devices (data)."
            )

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's part of a batch, [b, ...], on its devices.

        Images are split along the batch alone, for heights need not divide; the step
        itself splits their rows.
        """
        if self.backend == "pmap":
            local = self.mesh.local_mesh.size
            batch = {k: v.reshape(local, -1, *v.shape[1:]) for k, v in batch.items()}
            parts = 1
        else:
            parts = self.process_shard[1]
        return {
            name: jax.make_array_from_process_local_data(
                self.split, value, (len(value) * parts, *value.shape[1:])
            )
            for name, value in batch.items()
        }

    def specs(self, tree: Any) -> Any:
        """Where the arrays of a state lie: copied, or split by `fsdp`.

        An array is split along the longest of its axes that divides by the devices of
        `data`; those of fewer than 4,096 values, or that do not divide, are copied.

        Args:
            tree: of arrays, concrete or abstract.

        Returns:
            A tree of partition specifications, one for each array.
        """
        devices = self.mesh.shape[DATA]

        def spec(leaf):
            fitting = [n for n in leaf.shape if n % devices == 0]
            if not self.fsdp or leaf.size < LEAST_SPLIT or not fitting:
                return REPLICATED
            return P(*[None] * leaf.shape.index(max(fitting)), DATA)

        return jax.tree.map(spec, tree)

    def abstract(self, tree: Any) -> Any:
        """The shapes and types of a state's arrays, each with its placement."""
        return jax.tree.map(
            lambda leaf, spec: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self._placement(spec)
            ),
            tree,
            self.specs(tree),
        )

    def compile(
        self, step: Callable, outputs: Any = REPLICATED, donate: bool = False
    ) -> Callable:
        """Compiles `step(state, batch, axis_name=...)` for the devices.

        Args:
            step: pure function of a state and the local part of a batch.
            outputs: tree prefix of its outputs, of partition specifications.
            donate: whether the state's memory may be reused for the output.

        Returns:
            A function of the state and a batch from `place`. Under `pmap`, split
            outputs have a leading axis of devices, as the batch has.
        """
        step = partial(step, axis_name=self.axis_name)
        donated = (0,) if donate else ()
        if self.backend == "pmap":
            # Of several processes pmap needs them hashable, which a tree of specs is
            # not: only what is split is told apart.
            axes = jax.tree.map(
                lambda part: 0 if part == SPLIT else None,
                outputs,
                is_leaf=lambda part: _is_spec(part) or not isinstance(part, tuple),
            )
            return jax.pmap(
                step,
                DATA,
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
        else:
            step = partial(_in_mesh, step, self.mesh.abstract_mesh)
        placement = jax.tree.map(self._placement, outputs, is_leaf=_is_spec)
        return jax.jit(step, out_shardings=placement, donate_argnums=donated)

    def _placement(self, spec: P) -> NamedSharding:
        # What pmap is given and gives back is this process's own.
        mesh = self.mesh.local_mesh if self.backend == "pmap" else self.mesh
        return NamedSharding(mesh, spec)


def psum_over(tree: Any, axis_name: str | None) -> Any:
    """Sums arrays over a mapped axis; as they are where there is none, as under `jit`."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def create_parallel(
    backend: str = "jit",
    data: int = -1,
    space: int = 1,
    fsdp: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Chooses the devices and the way to use them.

    Args:
        backend: one of `BACKENDS`. All give the same losses; `jit` lets the compiler
            place the sums, the others run the step as written on each device.
        data: number of devices, or groups of `space` devices, that the batch is split
            over; -1 takes all there are.
        space: number of devices that the rows of each image are split over, for images
            too large for one; -1 takes all there are. Needs `jit`.
        fsdp: whether parameters and the optimiser's state are split over `data` rather
            than copied to each device: less memory for more traffic. Needs `jit`.
        devices: all there are; by default those of all processes.

    Returns:
        A `Parallel`.

    Raises:
        ValueError: if the backend is unknown or cannot do it, or the mesh does not fit
            the devices.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"backend={backend!r} is unknown; take one of {', '.join(BACKENDS)}."
        )
    for name, on in (("space", space != 1), ("fsdp", fsdp)):
        if on and backend != "jit":
            raise ValueError(
                f"{name} needs backend=jit, where the compiler "
                f"places what has to be exchanged; {backend} cannot do it."
            )
    # In this order neighbours in a mesh belong to one process wherever possible.
    devices = sorted(
        jax.devices() if devices is None else devices,
        key=lambda device: (device.process_index, device.id),
    )
    data, space = _mesh_shape(data, space, len(devices))
    mesh = Mesh(np.array(devices[: data * space]).reshape(data, space), (DATA, SPACE))
    _check_processes(mesh, devices)
    return Parallel(backend, mesh, fsdp)


def _mesh_shape(data: int, space: int, count: int) -> tuple[int, int]:
    given, rest = f"data={data}, space={space}", -1 in (data, space)
    if data == space == -1:
        raise ValueError(f"{given}: only one of them can take all the rest.")
    if data == -1 and space > 0:
        data = count // space
    elif space == -1 and data > 0:
        space = count // data
    left_over = rest and count != data * space
    if data < 1 or space < 1 or data * space > count or left_over:
        raise ValueError(
            f"{given} does not fit the {count} devices: data times space is 1 to "
            f"{count}, and what is -1 takes the rest, which must divide."
        )
    return data, space


def _check_processes(mesh: Mesh, devices: Sequence[jax.Device]) -> None:
    """Every process must have a part, and whole samples or whole processes a row."""
    processes = {device.process_index for device in devices}
    if len(processes) == 1:
        return
    if mesh.size < len(devices):
        raise ValueError(
            f"The mesh has {mesh.size} devices, and the {len(processes)} processes "
            f"have {len(devices)}: with several processes all must be used. Set "
            "data=-1, or start fewer processes."
        )
    local, space = len(devices) // len(processes), mesh.shape[SPACE]
    if space % local and local % space:
        raise ValueError(
            f"space={space} and the {local} devices of a process: one must "
            "divide the other, so that each process reads whole images."
        )


def _in_mesh(step: Callable, mesh: jax.sharding.AbstractMesh, state: Any, batch: Any):
    """Runs a step where `pin` knows the mesh, on images split over both of its axes."""
    least = LEAST_ROWS * mesh.shape[SPACE]
    rows = batch["image"].shape[1]
    if rows < least and mesh.shape[SPACE] > 1:
        raise ValueError(
            f"Images of {rows} rows are too low for space={mesh.shape[SPACE]}"
            f": feed at least {least} rows, or take fewer devices for space."
        )
    with jax.sharding.use_abstract_mesh(mesh):
        return step(state, {k: pin(v) if v.ndim > 2 else v for k, v in batch.items()})


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)
