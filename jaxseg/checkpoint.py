"""Checkpoints by Orbax, and the metadata that lets a workdir explain itself.

A workdir holds

    metadata.json     model, classes, palette, normalisation, config, versions
    checkpoints/K/    the state after step K and the position in the data
"""

import json
import logging
import os
import shutil
import subprocess
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxseg.models import create_model
from jaxseg.steps import TrainState, Variables

METADATA = "metadata.json"
UNSCORED = -1.0
"""The mIoU of a checkpoint that was saved without an evaluation: never the best."""


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
        self, step: int, state: TrainState, data: dict, miou: float | None = None
    ) -> None:
        """Saves the state after a step; returns while the files are being written.

        Args:
            step: number of steps taken.
            state: after the step.
            data: position in the training data, as JSON.
            miou: of the validation set at this step, where it was evaluated.
        """
        score = UNSCORED if miou is None or miou != miou else float(miou)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
            ),
            metrics={"miou": score},
        )

    def restore(
        self, step: int, like: TrainState, sharding: jax.sharding.Sharding
    ) -> tuple[TrainState, dict]:
        """Reads the state after `step`.

        Args:
            step: one of `steps()`.
            like: a state of the same shapes, concrete or abstract.
            sharding: placement of every leaf.

        Returns:
            The state and the position in the data.

        Raises:
            CorruptCheckpointError: if files are damaged or missing.
            ValueError: if the checkpoint is of another model or optimiser; the message
                names leaves that differ.
        """
        self._check_leaves(step, like)
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise _corrupt(self.directory / str(step)) from error
        return restored.state, restored.data

    def set_aside(self, step: int) -> Path:
        """Renames a checkpoint that cannot be read, so that its step can be saved."""
        source = self.directory / str(step)
        target = self.directory.parent / f"corrupt_checkpoint_{step}"
        shutil.move(source, target)
        self._manager.reload()
        return target

    def wait(self) -> None:
        """Waits until every checkpoint is written."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        """The checkpoints themselves."""
        return self

    def __exit__(self, *error) -> None:
        """Waits until every checkpoint is written, and closes."""
        self.wait()
        self._manager.close()

    def _check_leaves(self, step: int, like: TrainState) -> None:
        try:
            tree = ocp.PyTreeCheckpointHandler().metadata(
                self.directory / str(step) / "state"
            )
            stored = _shapes(tree.tree)
        except Exception as error:
            raise _corrupt(self.directory / str(step)) from error
        wanted = _shapes(like)
        differing = [
            f"  {name}: {stored.get(name, 'absent')} in the checkpoint, "
            f"{wanted.get(name, 'absent')} in the model"
            for name in sorted(stored.keys() | wanted.keys())
            if stored.get(name) != wanted.get(name)
        ]
        if differing:
            shown = "\n".join(differing[:6])
            more = len(differing) - 6
            rest = f"\n  and {more} more" if more > 0 else ""
            raise ValueError(
                f"{self.directory / str(step)} was made by a different model or "
                f"optimiser; take another workdir, or the config that made this one. "
                f"These leaves differ:\n{shown}{rest}"
            )


def find_step(workdir: str | os.PathLike, checkpoint: str | int = "best") -> int:
    """The step of the checkpoint that is asked for.

    Args:
        workdir: of a training run.
        checkpoint: "best" by validation mIoU (the latest, where none was evaluated),
            "latest", or a step.

    Returns:
        The step.

    Raises:
        ValueError: if there is no such checkpoint; the message lists those there are.
    """
    directory = Path(workdir) / "checkpoints"
    steps = sorted(
        int(path.name)
        for path in (directory.iterdir() if directory.is_dir() else ())
        if path.name.isdecimal()
    )
    if not steps:
        raise ValueError(f"{workdir} has no checkpoint; train into it first.")
    if checkpoint == "latest":
        return steps[-1]
    if checkpoint == "best":
        return max(steps, key=lambda step: (_score(directory / str(step)), step))
    if str(checkpoint).isdecimal() and int(checkpoint) in steps:
        return int(checkpoint)
    raise ValueError(
        f"{workdir} has no checkpoint {checkpoint!r}; take best, latest or one of "
        f"{', '.join(map(str, steps))}."
    )


def load(
    workdir: str | os.PathLike, checkpoint: str | int = "best"
) -> tuple[nn.Module, Variables, dict[str, Any]]:
    """Opens a trained model with nothing but its workdir.

    Args:
        workdir: of a training run.
        checkpoint: "best" by validation mIoU, "latest", or a step.

    Returns:
        The linen module; its variables (`params`, `batch_stats`); and the metadata:
        `class_names`, `palette`, `normalization`, `image_size`, `config`, `step`, ...

    Raises:
        ValueError: if the workdir or the checkpoint does not exist.
        CorruptCheckpointError: if files are damaged or missing.
    """
    metadata = read_metadata(workdir)
    step = find_step(workdir, checkpoint)
    model = create_model(**metadata["model"])
    shape = (1, 64, 64, metadata["channels"])
    like = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jax.numpy.zeros(shape), train=False)
    )
    like = {"params": like["params"], "batch_stats": like.get("batch_stats", {})}
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
    )
    path = Path(workdir).absolute() / "checkpoints" / str(step)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            variables = checkpointer.restore(
                path / "state",
                args=ocp.args.PyTreeRestore(
                    item=target,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                    partial_restore=True,
                ),
            )
    except Exception as error:
        raise _corrupt(path) from error
    return model, variables, metadata | {"step": step}


def transfer(
    workdir: str | os.PathLike, state: TrainState, normalization: dict[str, Any]
) -> tuple[TrainState, list[str], list[str]]:
    """Starts a state from the best checkpoint of another run, by the leaves' names.

    Parameters and statistics that both models have are taken over, those that only the
    new one has stay as they are: so FCN-16s starts from FCN-32s.

    Args:
        workdir: of the other run.
        state: before its first step.
        normalization: `mean` and `std` that the new run feeds its images with.

    Returns:
        The state; names of the leaves that were not found; names of those found that
        have no place in the new model.

    Raises:
        ValueError: if the runs differ in normalisation, a leaf of the same name has
            another shape, or no name is common to both.
    """
    _, variables, metadata = load(workdir)
    theirs = {k: list(v) for k, v in metadata["normalization"].items()}
    ours = {k: list(v) for k, v in normalization.items()}
    if theirs != ours:
        raise ValueError(
            f"{workdir} was trained with the normalisation {theirs}, and this run has "
            f"{ours}; set config.normalization to the former."
        )
    found = _named(variables)
    target = _named(state.variables)
    wrong = [
        f"{name}: {found[name].shape} there, {leaf.shape} here"
        for name, leaf in target.items()
        if name in found and found[name].shape != leaf.shape
    ]
    if wrong:
        raise ValueError(f"{workdir} does not fit this model. {'; '.join(wrong[:6])}.")
    if not found.keys() & target.keys():
        raise ValueError(f"{workdir} has no parameter of this model's names.")

    def take(path, leaf):
        value = found.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        return leaf if value is None else jax.device_put(value, leaf.sharding)

    started = jax.tree.map_with_path(take, state.variables)
    missing = sorted(target.keys() - found.keys())
    return state.replace(**started), missing, sorted(found.keys() - target.keys())


def write_metadata(workdir: str | os.PathLike, metadata: dict[str, Any]) -> None:
    """Writes what a workdir says of itself, with versions and commit, atomically."""
    path = Path(workdir) / METADATA
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(
        json.dumps(metadata | {"versions": _versions(), "git_commit": _commit()})
    )
    aside.replace(path)


def read_metadata(workdir: str | os.PathLike) -> dict[str, Any]:
    """Reads what `write_metadata` wrote; a ValueError where there is nothing."""
    path = Path(workdir) / METADATA
    if not path.is_file():
        raise ValueError(
            f"{workdir} is not a workdir of a training run: it has no {METADATA}."
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by their paths, "params/encoder/stage1/conv1/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape")
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf by its path; not the random key, which is stored unwrapped."""
    shapes = {name: tuple(leaf.shape) for name, leaf in _named(tree).items()}
    return {name: shape for name, shape in shapes.items() if name != "key"}


def _score(path: Path) -> float:
    """Validation mIoU of a checkpoint."""
    file = path / "metrics" / "metrics"
    return json.loads(file.read_text())["miou"] if file.is_file() else UNSCORED


def _corrupt(path: Path) -> CorruptCheckpointError:
    # Orbax reads leaves concurrently and reports the first failure; asyncio would log
    # all the others, a page each.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    return CorruptCheckpointError(
        f"The checkpoint {path} cannot be read: it is damaged."
    )


def _versions() -> dict[str, str]:
    names = ("jaxseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: packages.version(name) for name in names}


def _commit() -> str | None:
    """The commit of the source tree, where the package runs from one."""
    try:
        output = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()
