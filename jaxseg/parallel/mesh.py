"""Meshes and placement: one pure step under `jit`, `shard_map` or `pmap`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops.partition import DATA, LEAST_ROWS, SPACE, pin

Batch = dict[str, jax.Array]
"""Arrays by name, such as `image` and `label`; axis 0 of each is the batch."""

BACKENDS = ("jit", "shard_map", "pmap")

REPLICATED, SPLIT = PartitionSpec(), PartitionSpec(DATA)
"""Placement of a step's output: a copy on every device, or split along the batch."""

LEAST_SPLIT = 4096
"""Smallest number of values that `fsdp` splits: for fewer, communication costs more."""


@dataclass(frozen=True)
class Parallel:
    """How a step is distributed over devices.

    Attributes:
        backend: one of `BACKENDS`.
        mesh: device mesh with the axes `data`, which splits the batch, and `space`,
            which splits the rows of images.
        fsdp: whether the state is split over `data`, instead of copied.
    """

    backend: str
    mesh: Mesh
    fsdp: bool = False

    @property
    def axis_name(self) -> str | None:
        """The mapped axis that a step sums over; None under `jit`."""
        return None if self.backend == "jit" else DATA

    @property
    def replicated(self) -> NamedSharding:
        """Placement of a copy on every device."""
        return self._placement(REPLICATED)

    @property
    def split(self) -> NamedSharding:
        """Placement of arrays that are split along the batch."""
        return self._placement(SPLIT)

    @cached_property
    def process_shard(self) -> tuple[int, int]:
        """This process's shard of every batch: its index and the number of shards.

        Processes that hold rows of the same images have the same shard.
        """
        mine = [
            row
            for row, devices in enumerate(self.mesh.devices)
            if any(device.process_index == jax.process_index() for device in devices)
        ]
        return mine[0] // len(mine), self.mesh.shape[DATA] // len(mine)

    def check_batch(self, batch_size: int) -> None:
        """Checks that a batch splits evenly over the devices.

        Args:
            batch_size: global batch size.

        Raises:
            ValueError: if it does not; the message gives sizes that do.
        """
        devices = self.mesh.shape[DATA]
        if batch_size % devices:
            low = batch_size // devices * devices
            sizes = " or ".join(str(n) for n in (low, low + devices) if n)
            raise ValueError(
                f"batch_size={batch_size} is not divisible by the {devices} devices "
                f"that the batch is split over; use {sizes}, or change data, the number "
                "of devices."
            )

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's shard of a batch on its devices.

        Images are split along the batch only, because heights need not be divisible;
        the step itself splits their rows.

        Args:
            batch: this process's shard, arrays [b, ...].

        Returns:
            The global batch, arrays [B, ...]; under `pmap` the local one, [devices,
            b / devices, ...].
        """
        if self.backend == "pmap":
            local = self.mesh.local_mesh.size
            batch = {k: v.reshape(local, -1, *v.shape[1:]) for k, v in batch.items()}
            shards = 1
        else:
            shards = self.process_shard[1]
        return {
            name: jax.make_array_from_process_local_data(
                self.split, value, (len(value) * shards, *value.shape[1:])
            )
            for name, value in batch.items()
        }

    def specs(self, tree: Any) -> Any:
        """Placement of the arrays of a state: copied, or split by `fsdp`.

        An array is split along its longest axis that is divisible by the number of
        devices of `data`. Arrays of fewer than 4,096 values, or without such an axis,
        are copied.

        Args:
            tree: pytree of arrays, concrete or abstract.

        Returns:
            The same tree with a partition specification for each array.
        """
        devices = self.mesh.shape[DATA]

        def spec(leaf: Any) -> PartitionSpec:
            fitting = [n for n in leaf.shape if n % devices == 0]
            if not self.fsdp or leaf.size < LEAST_SPLIT or not fitting:
                return REPLICATED
            axis = leaf.shape.index(max(fitting))
            return PartitionSpec(*[None] * axis, DATA)

        return jax.tree.map(spec, tree)

    def abstract(self, tree: Any) -> Any:
        """Shape, dtype and placement of each array of a state."""
        return jax.tree.map(
            lambda leaf, spec: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self._placement(spec)
            ),
            tree,
            self.specs(tree),
        )

    def compile(
        self,
        step: Callable[..., Any],
        outputs: Any = REPLICATED,
        donate: bool = False,
    ) -> Callable[..., Any]:
        """Compiles `step(state, batch, axis_name=...)` for the devices.

        Args:
            step: pure function of a state and the local part of a batch.
            outputs: partition specifications, a tree prefix of the step's outputs.
            donate: whether the state's memory may be reused for the outputs.

        Returns:
            A function of the state and a batch from `place`. Under `pmap`, split
            outputs have a leading axis of devices, like the batch.
        """
        step = partial(step, axis_name=self.axis_name)
        donated = (0,) if donate else ()
        if self.backend == "pmap":
            # With several processes pmap needs hashable axes, and a tree of specs is
            # not hashable.
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
                devices=list(self.mesh.devices.flat),
            )
        if self.backend == "shard_map":
            # With check_vma=True, shard_map would sum the gradients of replicated
            # parameters over the devices a second time.
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

    def _placement(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self._placement_mesh, spec)

    @cached_property
    def _placement_mesh(self) -> Mesh:
        if self.backend != "pmap":
            return self.mesh
        # Inputs and outputs of pmap are local to this process, on a single axis. On any
        # other mesh, the first step would be compiled separately from the later ones.
        return Mesh(self.mesh.local_mesh.devices.reshape(-1), (DATA,))


def create_parallel(
    backend: str = "jit",
    data: int = -1,
    space: int = 1,
    fsdp: bool = False,
    # jax assigns Device to a variable, which pyright does not accept as a type.
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Parallel:
    """Chooses the devices and how to use them.

    Args:
        backend: one of `BACKENDS`. All give the same losses. With `jit` the compiler
            inserts the communication; the others run the step as written on each
            device.
        data: number of devices, or of groups of `space` devices, that the batch is
            split over; -1 for all.
        space: number of devices that the rows of each image are split over, for images
            that do not fit into the memory of one; -1 for all. Requires `jit`.
        fsdp: whether parameters and optimizer state are split over `data` instead of
            copied to each device: less memory, more communication. Requires `jit`.
        devices: devices to choose from; by default those of all processes.

    Returns:
        A `Parallel`.

    Raises:
        ValueError: if the backend is unknown or does not support an option, or the mesh
            does not fit the devices.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"backend={backend!r} is unknown; use one of {', '.join(BACKENDS)}."
        )
    for name, on in (("space", space != 1), ("fsdp", fsdp)):
        if on and backend != "jit":
            raise ValueError(
                f"{name} requires backend=jit; {backend} does not support it."
            )
    # In this order, neighbors in the mesh belong to the same process if possible.
    devices = sorted(
        jax.devices() if devices is None else devices,
        key=lambda device: (device.process_index, device.id),
    )
    data, space = _mesh_shape(data, space, len(devices))
    mesh = Mesh(np.array(devices[: data * space]).reshape(data, space), (DATA, SPACE))
    _check_processes(mesh, devices)
    return Parallel(backend, mesh, fsdp)


def _mesh_shape(data: int, space: int, count: int) -> tuple[int, int]:
    given, automatic = f"data={data}, space={space}", -1 in (data, space)
    if data == space == -1:
        raise ValueError(f"{given}: only one of them can be -1.")
    if data == -1 and space > 0:
        data = count // space
    elif space == -1 and data > 0:
        space = count // data
    unused = automatic and count != data * space
    if data < 1 or space < 1 or data * space > count or unused:
        raise ValueError(
            f"{given} does not fit the {count} devices: data times space must be from 1 "
            f"to {count}, and with -1 the other one must divide {count}."
        )
    return data, space


def _check_processes(mesh: Mesh, devices: Sequence[Any]) -> None:
    """Every process must have devices in the mesh, and must read whole images."""
    processes = {device.process_index for device in devices}
    if len(processes) == 1:
        return
    if mesh.size < len(devices):
        raise ValueError(
            f"The mesh has {mesh.size} devices, but the {len(processes)} processes "
            f"have {len(devices)}. With several processes all devices must be used: set "
            "data=-1, or start fewer processes."
        )
    local, space = len(devices) // len(processes), mesh.shape[SPACE]
    if space % local and local % space:
        raise ValueError(
            f"space={space}, but each process has {local} devices: one must divide the "
            "other, so that each process reads whole images."
        )


def _in_mesh(
    step: Callable[..., Any],
    mesh: jax.sharding.AbstractMesh,
    state: Any,
    batch: Batch,
) -> Any:
    """Runs a step with the mesh set for `pin`, on images split over both axes."""
    least = LEAST_ROWS * mesh.shape[SPACE]
    rows = batch["image"].shape[1]
    if rows < least and mesh.shape[SPACE] > 1:
        raise ValueError(
            f"Images of {rows} rows are too small for space={mesh.shape[SPACE]}; use "
            f"images of at least {least} rows, or a smaller space."
        )
    with jax.sharding.use_abstract_mesh(mesh):
        return step(state, {k: pin(v) if v.ndim > 2 else v for k, v in batch.items()})


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
