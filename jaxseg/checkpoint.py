"""Checkpoints of a run by Orbax: the state and the position in the data."""

import itertools
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from jaxseg.cluster import anywhere, check_same, patience
from jaxseg.steps import TrainState
from jaxseg.weights.mapping import flatten

UNSCORED = -1.0
"""The mIoU of a checkpoint that was saved without an evaluation: never the best."""


SETTINGS = {
    "params": "model",
    "batch_stats": "model",
    "opt_state": "optimizer",
    "ema": "train.ema_decay",
}
"""What of a config decides which leaves a part of the state has."""


class CorruptCheckpointError(ValueError):
    """A checkpoint's files are damaged, or some are missing."""


class Checkpoints:
    """The checkpoints of one run: the latest two, and the best by validation mIoU.

    Saving is asynchronous and atomic: a run killed at any moment leaves only whole
    checkpoints behind. The latest but one is kept to fall back on.
    """

    def __init__(self, workdir: str | os.PathLike):
        """Opens `workdir/checkpoints`, making it where it does not exist."""
        self.directory = Path(workdir).absolute() / "checkpoints"
        managers = checkpoint_managers
        kept = managers.AnyPreservationPolicy(
            [
                managers.LatestN(2),
                managers.BestN(
                    get_metric_fn=lambda metrics: metrics["miou"], reverse=False, n=1
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("state", "data"),
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics["miou"],
                best_mode="max",
                preservation_policy=kept,
                cleanup_tmp_directories=True,
            ),
        )

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: Any, data: dict, miou: float | None = None
    ) -> None:
        """Saves the state after a step; returns while the files are being written.

        Args:
            step: number of steps taken.
            state: after the step; a TrainState in a run.
            data: position in the training data, as JSON.
            miou: of the validation set at this step, where it was evaluated.
        """
        score = UNSCORED if miou is None or miou != miou else float(miou)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_shared(state)),
                data=ocp.args.JsonSave(data),
            ),
            metrics={"miou": score},
        )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """Reads the state after `step`.

        Args:
            step: one of `steps()`.
            like: shapes, types and placements of the state, whatever the devices and
                placements that it was saved from.

        Returns:
            The state and the position in the data.

        Raises:
            CorruptCheckpointError: if files are damaged or missing.
            ValueError: if the checkpoint is of another model or optimiser; the message
                names leaves that differ.
        """
        self._check_leaves(step, like)
        data = self._read(
            step, "data", ocp.JsonCheckpointHandler, ocp.args.JsonRestore()
        )
        if "batch_size" not in data:
            raise ValueError(
                f"{self.directory / str(step)} was made by an older jaxseg, whose runs "
                "this one cannot go on with. Start a new one from its parameters: "
                f"another workdir, and --config.init_from={self.directory.parent}."
            )
        state = self._read(
            step, "state", ocp.StandardCheckpointHandler, ocp.args.StandardRestore(like)
        )
        return state, data

    def _read(
        self, step: int, item: str, handler: type, args: ocp.args.CheckpointArgs
    ) -> Any:
        path = self.directory / str(step)
        # Each process for itself: the manager would wait for one that cannot read its
        # part, and that one for the others.
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}
        )
        try:
            with ocp.Checkpointer(
                handler(multiprocessing_options=alone), multiprocessing_options=alone
            ) as checkpointer:
                return checkpointer.restore(path / item, args=args)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise corrupt(path) from error

    def restore_latest(
        self,
        like: TrainState,
        *,
        batch_size: int,
        fallback: bool,
        accept_batch_size: bool,
    ) -> tuple[TrainState, dict] | None:
        """Reads the state to go on from, the same in all processes.

        Args:
            like: as in `restore`.
            batch_size: of the run that goes on.
            fallback: whether to set a damaged checkpoint aside for the one before.
            accept_batch_size: whether the state may be of another batch size.

        Returns:
            The state and the position in the data; None where there is none.

        Raises:
            CorruptCheckpointError: if files are damaged or missing, in any process.
            ValueError: as `restore`; or if the batch size was another.
        """
        steps = self.steps()
        check_same({"checkpoints in the workdir": steps})
        for step in reversed(steps):
            damage = None
            try:
                state, data = self.restore(step, like)
            except CorruptCheckpointError as error:
                damage = error
            if not anywhere(damage is not None):
                if not accept_batch_size:
                    _check_batch_size(step, data["batch_size"], batch_size)
                return state, data
            damage = damage or corrupt(self.directory / str(step))
            if not fallback:
                raise CorruptCheckpointError(
                    f"{damage} To go on from the checkpoint before it (of {steps}), or "
                    "from the start where there is none, add "
                    "--config.checkpoint.fallback=True; the damaged one is then kept "
                    "aside."
                ) from damage
            aside = self.set_aside(step)
            if jax.process_index() == 0:
                print(f"{damage} It is now {aside}.", flush=True)
        return None

    def set_aside(self, step: int) -> Path:
        """Renames a checkpoint that cannot be read, so that its step can be saved.

        Of several processes all must ask for it.
        """
        source = self.directory / str(step)
        name = f"corrupt_checkpoint_{step}"
        names = itertools.chain([name], (f"{name}_{k}" for k in itertools.count(1)))
        targets = (self.directory.parent / name for name in names)
        target = next(path for path in targets if not path.exists())
        if jax.process_index() == 0:
            shutil.move(source, target)
        multihost_utils.sync_global_devices("set aside")
        self._manager.reload()
        return target

    def wait(self) -> None:
        """Waits until every checkpoint is written."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        """The checkpoints themselves."""
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Waits until every checkpoint is written, and closes."""
        with patience(error):
            self.wait()
            self._manager.close()

    def _check_leaves(self, step: int, like: TrainState) -> None:
        stored, wanted = stored_shapes(self.directory / str(step)), _shapes(like)
        names = stored.keys() | wanted.keys()
        differing = [x for x in sorted(names) if stored.get(x) != wanted.get(x)]
        if "step" not in stored:
            workdir = self.directory.parent
            raise ValueError(
                f"{workdir} holds weights, and no run to go on with. To start one from "
                f"them give another workdir, and --config.init_from={workdir}."
            )
        if differing:
            parts = {name.split("/")[0] for name in differing}
            # The rest of a state is shaped as its parameters are.
            parts = parts & {"params"} or parts
            shown = [
                f"  {name}: {stored.get(name, 'absent')} in the checkpoint, "
                f"{wanted.get(name, 'absent')} now"
                for name in differing[:6]
            ]
            if len(differing) > 6:
                shown.append(f"  and {len(differing) - 6} more")
            lines = "\n".join(shown)
            raise ValueError(
                f"{self.directory / str(step)} was made with another "
                f"{' and '.join(SETTINGS[part] for part in sorted(parts))}; take "
                "another workdir, or the config that made this one. These leaves "
                f"differ:\n{lines}"
            )


def _check_batch_size(step: int, saved: int, given: int) -> None:
    if given != saved:
        raise ValueError(
            f"Up to step {step} this run had train.batch_size={saved}, and not {given}. "
            "It is the number of images of all devices together, so other devices need "
            "no other: leave it as it was. To go on with another, at the same image and "
            "the same step of the schedule, add "
            "--config.checkpoint.accept_batch_size=True."
        )


def _shared(state: Any) -> Any:
    """A state that each process has for itself, as under `pmap`, as one of them all."""
    leaves = jax.tree.leaves(state)
    if jax.process_count() == 1 or not all(x.is_fully_addressable for x in leaves):
        return state
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    return multihost_utils.host_local_array_to_global_array(
        state, mesh, jax.sharding.PartitionSpec()
    )


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a saved state by their names, "params/head/bias".

    Args:
        path: of the checkpoint of one step.

    Raises:
        CorruptCheckpointError: if they cannot be found out.
    """
    try:
        return _shapes(ocp.PyTreeCheckpointHandler().metadata(path / "state").tree)
    except Exception as error:
        raise corrupt(path) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf by its path; not the random key, which is stored unwrapped."""
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
    return {name: shape for name, shape in shapes.items() if name != "key"}


def corrupt(path: Path) -> CorruptCheckpointError:
    """The error for a checkpoint that Orbax cannot read, however it says so."""
    # Orbax reads leaves concurrently and reports the first failure; asyncio would log
    # all the others, a page each.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    return CorruptCheckpointError(
        f"The checkpoint {path} cannot be read: it is damaged."
    )
