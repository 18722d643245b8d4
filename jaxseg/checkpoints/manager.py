"""Checkpoints of a run, by Orbax: any pytree, and the position in the data."""

import errno
import itertools
import logging
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from jaxseg.parallel.distributed import any_process, check_same, limited_wait
from jaxseg.utils.files import TEXT_LIMIT
from jaxseg.utils.json_file import read_json
from jaxseg.utils.trees import flatten

State = TypeVar("State")

UNSCORED = -1.0
"""mIoU of a checkpoint that was saved without an evaluation: never the best one."""


_DELETED = ".deleted"
"""Folder that checkpoints are moved to before their files are deleted."""

_REPLACED = ".replaced"
"""Suffix of a checkpoint while it is saved again."""

_COMMITTED = "_CHECKPOINT_METADATA"
"""File that Orbax writes to a checkpoint before it gives it its final name."""


class CorruptCheckpointError(ValueError):
    """Files of a checkpoint are damaged or missing."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the earlier ones are intact."""


Reason = Literal["weights", "version", "batch_size", "leaves", "classes"]


class IncompatibleCheckpointError(ValueError):
    """A checkpoint is intact, but this run cannot resume from it.

    Attributes:
        reason: "weights" if it has only the weights of a model, "version" if an older
            jaxseg wrote it, "batch_size" if the global batch size differs, "leaves" if
            arrays differ, "classes" if the names of the classes differ.
        leaves: names of the arrays that differ.
    """

    def __init__(
        self,
        message: str,
        reason: Reason,
        leaves: tuple[str, ...] = (),
    ):
        super().__init__(message)
        self.reason: Reason = reason
        self.leaves = leaves


class CheckpointManager:
    """The checkpoints of one run: the latest two, and the best by validation mIoU.

    Saving is asynchronous, and saving and deleting are atomic: a run that is killed at
    any time leaves only complete checkpoints. The second latest is kept in case the
    latest is damaged.
    """

    def __init__(self, workdir: str | os.PathLike):
        """Opens `workdir/checkpoints`; creates it if it does not exist.

        Folders that are named like a checkpoint and are not complete are moved away.

        Raises:
            ValueError: if `workdir/checkpoints` is a symbolic link or a file.
            CorruptCheckpointError: if the metrics of a checkpoint are damaged, or one
                of its files is not a regular file.
        """
        self.directory = Path(workdir).absolute() / "checkpoints"
        if os.path.lexists(self.directory) and (
            self.directory.is_symlink() or not self.directory.is_dir()
        ):
            raise ValueError(
                f"{self.directory}: a link or a file, where a folder must be; remove it"
            )
        self._tidy()
        managers = checkpoint_managers
        kept = managers.AnyPreservationPolicy(
            [
                managers.LatestN(2),
                managers.BestN(
                    get_metric_fn=lambda metrics: metrics["miou"], reverse=False, n=1
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics["miou"],
            best_mode="max",
            preservation_policy=kept,
            cleanup_tmp_directories=True,
            todelete_subdir=_DELETED,
        )
        for step in complete_steps(self.directory):
            validation_miou(self.directory / str(step))  # Orbax reads it, too
            disk_bytes(self.directory / str(step))
        try:
            self._manager = ocp.CheckpointManager(
                self.directory, item_names=("state", "data"), options=options
            )
        except Exception as error:
            raise corrupt(self.directory, error) from error
        absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: Any, data: dict[str, Any], miou: float | None = None
    ) -> None:
        """Saves the state after a step; returns while the files are being written.

        Args:
            step: number of steps so far.
            state: the state, any pytree of arrays.
            data: position in the training data, JSON values.
            miou: validation mIoU at this step; None if it was not evaluated.

        Raises:
            CheckpointWriteError: if this or the previous checkpoint cannot be written.
        """
        with self._written():
            # Orbax waits for the previous checkpoint anyway.
            self._manager.wait_until_finished()
            self._empty_deleted()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_to_global(state)),
                    data=ocp.args.JsonSave(data),
                ),
                metrics=_metrics(miou),
            )

    def replace(
        self, step: int, state: Any, data: dict[str, Any], miou: float | None = None
    ) -> None:
        """Saves a checkpoint again; the old one is kept until the new one is complete.

        Args:
            step: step of a checkpoint.
            state: as for `save`.
            data: as for `save`.
            miou: as for `save`.

        Raises:
            CheckpointWriteError: if it cannot be written.
        """
        self.wait()
        if jax.process_index() == 0:
            old = self.directory / str(step)
            old.rename(old.with_suffix(_REPLACED))
        multihost_utils.sync_global_devices("replace")
        self._manager.reload()
        self.save(step, state, data, miou)
        self.wait()
        self._tidy()

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Reads the state after `step`.

        Args:
            step: one of `steps()`.
            like: shapes, dtypes and placements of the state; the placements may differ
                from those that it was saved with.

        Returns:
            The state and the position in the data.

        Raises:
            CorruptCheckpointError: if files are damaged or missing.
            IncompatibleCheckpointError: if its arrays differ from those of `like`, it
                has only weights, or an older version wrote it.
        """
        self._check_leaves(step, like)
        data = self._read(
            step, "data", ocp.JsonCheckpointHandler, ocp.args.JsonRestore()
        )
        if not isinstance(data, dict):
            raise corrupt(self.directory / str(step) / "data")
        if "batch_size" not in data:
            raise IncompatibleCheckpointError(
                f"{self.directory / str(step)} was written by an older version of "
                "jaxseg, and this version cannot resume it.",
                "version",
            )
        if not _is_position(data):
            raise corrupt(self.directory / str(step) / "data")
        state = self._read(
            step, "state", ocp.StandardCheckpointHandler, ocp.args.StandardRestore(like)
        )
        if int(flatten(state)["step"]) != step:
            raise corrupt(self.directory / str(step), ValueError("of another step"))
        return state, data

    def _read(
        self, step: int, item: str, handler: type, args: ocp.args.CheckpointArgs
    ) -> Any:
        path = self.directory / str(step)
        # Each process reads on its own. Otherwise, if one cannot read its files, the
        # processes would wait for each other forever.
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
            raise corrupt(path, error) from error

    def restore_latest(
        self,
        like: State,
        *,
        batch_size: int,
        fallback: bool,
        accept_batch_size: bool,
    ) -> tuple[State, dict[str, Any]] | None:
        """Reads the latest checkpoint, the same one in all processes.

        Args:
            like: as for `restore`.
            batch_size: global batch size of the run that resumes.
            fallback: whether to move a damaged checkpoint away and read the one before
                it.
            accept_batch_size: whether the global batch size may differ from that of the
                checkpoint.

        Returns:
            The state and the position in the data; None if there is no checkpoint.

        Raises:
            CorruptCheckpointError: if files are damaged or missing, in any process.
            IncompatibleCheckpointError: as for `restore`, or if the batch size differs.
        """
        steps = self.steps()
        check_same({"checkpoints in the workdir": steps})
        for step in reversed(steps):
            damage, restored = None, None
            try:
                restored = self.restore(step, like)
            except CorruptCheckpointError as error:
                damage = error
            damaged = any_process(damage is not None)
            if restored is not None and not damaged:
                if not accept_batch_size:
                    _check_batch_size(
                        self.directory / str(step), restored[1], batch_size
                    )
                return restored
            damage = damage or corrupt(self.directory / str(step))
            if not fallback:
                raise CorruptCheckpointError(
                    f"{damage} The workdir has checkpoints of steps {steps}."
                ) from damage
            aside = self.set_aside(step)
            if jax.process_index() == 0:
                print(f"{damage} It has been moved to {aside}.", flush=True)
        return None

    def set_aside(self, step: int) -> Path:
        """Renames a damaged checkpoint, so that its step can be saved again.

        All processes must call it.

        Returns:
            The new path, in the workdir.
        """
        source = self.directory / str(step)
        target = self._free_name(f"corrupt_checkpoint_{step}")
        if jax.process_index() == 0:
            shutil.move(source, target)
        multihost_utils.sync_global_devices("set aside")
        self._manager.reload()
        return target

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
            CheckpointWriteError: if one cannot be written.
        """
        with self._written():
            self._manager.wait_until_finished()
            self._empty_deleted()

    def __enter__(self) -> "CheckpointManager":
        """Returns itself."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Waits until all checkpoints are written, and closes.

        Raises:
            CheckpointWriteError: if one cannot be written. Threads of Orbax may still
                be about to log that, and are kept from it.
        """
        with limited_wait(error), self._written():
            try:
                self._manager.wait_until_finished()
                self._empty_deleted()
            finally:
                self._manager.close()
        if not isinstance(error, CheckpointWriteError):
            absl_logging.get_absl_logger().removeFilter(_is_not_of_orbax)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Explains errors of writing, and deletes what was written incompletely."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            _silence_asyncio()
            if jax.process_index() == 0:
                for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(path, ignore_errors=True)
            steps = ", ".join(map(str, complete_steps(self.directory)))
            raise CheckpointWriteError(
                _errno(error),
                f"cannot write a checkpoint: {_write_reason(error)}; "
                + (f"those of steps {steps} are intact" if steps else "there is none"),
                str(self.directory),
            ) from error

    def _tidy(self) -> None:
        """Ends what a killed run has left half done.

        Folders that would be read as a checkpoint, or block saving, are moved away:
        earlier versions left them if they were killed while they deleted a checkpoint,
        and others may have been made by hand.
        """
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                if path.is_symlink() or not path.is_dir():  # Orbax removes folders
                    path.unlink()
            complete = set(map(str, complete_steps(self.directory)))
            for path in self.directory.iterdir():
                if path.name.isdecimal() and path.name not in complete:
                    target = self._free_name(f"incomplete_checkpoint_{path.name}")
                    path.rename(target)
                    print(
                        f"{path} is not a complete checkpoint; it has been moved to "
                        f"{target}.",
                        flush=True,
                    )
            for old in self.directory.glob(f"[0-9]*{_REPLACED}"):
                if not (old.stem.isdecimal() and old.is_dir()):
                    continue
                if old.stem in complete:
                    shutil.rmtree(old)
                else:
                    old.rename(old.with_suffix(""))
            self._empty_deleted()
        multihost_utils.sync_global_devices("tidy")

    def _empty_deleted(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self.directory / _DELETED, ignore_errors=True)

    def _free_name(self, name: str) -> Path:
        """A path in the workdir that does not exist: the name, or with a number."""
        names = itertools.chain([name], (f"{name}_{k}" for k in itertools.count(1)))
        paths = (self.directory.parent / name for name in names)
        return next(path for path in paths if not path.exists())

    def _check_leaves(self, step: int, like: Any) -> None:
        stored, wanted = stored_shapes(self.directory / str(step)), _shapes(like)
        if "step" not in stored:
            raise IncompatibleCheckpointError(
                f"{self.directory.parent} has only the weights of a model, and no run "
                "to resume.",
                "weights",
            )
        names = stored.keys() | wanted.keys()
        differing = [x for x in sorted(names) if stored.get(x) != wanted.get(x)]
        if differing:
            shown = [
                f"  {name}: {stored.get(name, 'absent')} in the checkpoint, "
                f"{wanted.get(name, 'absent')} now"
                for name in differing[:6]
            ]
            if len(differing) > 6:
                shown.append(f"  and {len(differing) - 6} more")
            raise IncompatibleCheckpointError(
                f"{self.directory / str(step)} does not match this run. These arrays "
                "differ:\n" + "\n".join(shown),
                "leaves",
                tuple(differing),
            )


def _check_batch_size(path: Path, data: dict[str, Any], given: int) -> None:
    saved = data["batch_size"]
    if given != saved:
        raise IncompatibleCheckpointError(
            f"Up to {path} this run had a global batch size of {saved!r:.40}; now it is "
            f"{given}.",
            "batch_size",
        )


def _to_global(state: Any) -> Any:
    """Makes global arrays of a state that is local to each process, as under `pmap`."""
    leaves = jax.tree.leaves(state)
    if jax.process_count() == 1 or not all(x.is_fully_addressable for x in leaves):
        return state
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    return multihost_utils.host_local_array_to_global_array(
        state, mesh, jax.sharding.PartitionSpec()
    )


def complete_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending.

    Folders with other names, and those without Orbax's mark of a complete checkpoint,
    are ignored.
    """
    if not directory.is_dir():
        return []
    # The pattern excludes leading zeros, digits of other scripts and huge numbers.
    names = (path.parent.name for path in directory.glob(f"*/{_COMMITTED}"))
    return sorted(
        int(name) for name in names if re.fullmatch(r"0|[1-9]\d{0,9}", name, re.ASCII)
    )


def validation_miou(path: Path) -> float:
    """Validation mIoU of a checkpoint; `UNSCORED` if it was not evaluated.

    Args:
        path: folder of the checkpoint of one step.

    Raises:
        CorruptCheckpointError: if its file is damaged.
    """
    file = path / "metrics" / "metrics"
    if not file.exists():
        return UNSCORED
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(str(error)) from error
    score = content.get("miou") if isinstance(content, dict) else None
    if not isinstance(score, int | float) or isinstance(score, bool):
        raise CorruptCheckpointError(
            f"{file} is damaged: it has no number miou; choose another checkpoint by its "
            f"step, or move {path} away."
        )
    return UNSCORED if score != score else score


def _is_position(data: dict[str, Any]) -> bool:
    """Whether the values of a position in the data have the right types."""
    numbers = [data.get("next_sample"), data["batch_size"]]
    return all(type(n) is int and 0 <= n < 2**53 for n in numbers) and (
        isinstance(data.get("callbacks", {}), dict)
        and isinstance(data.get("evaluation_due", False), bool)
    )


def _metrics(miou: float | None) -> dict[str, float]:
    return {"miou": UNSCORED if miou is None or miou != miou else float(miou)}


def _errno(error: Exception) -> int:
    """The number of an error of the operating system, also of one in TensorStore."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else errno.EIO


def _write_reason(error: Exception) -> str:
    number = _errno(error)
    if number == errno.EIO:
        return str(error).partition("\n")[0][:200]
    return os.strerror(number)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Drops errors that Orbax logs before it raises them, once for each thread."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a saved state by name, such as "params/head/bias".

    Args:
        path: folder of the checkpoint of one step.

    Raises:
        CorruptCheckpointError: if they cannot be read.
    """
    try:
        stored = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path / "state"))
        return _shapes(stored.tree)
    except Exception as error:
        raise corrupt(path, error) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf by its path, except the random key, which is stored as data."""
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
    return {name: shape for name, shape in shapes.items() if name != "key"}


def disk_bytes(path: Path) -> int:
    """Size of all files of a checkpoint, which must be regular files.

    Raises:
        CorruptCheckpointError: if one is not, since reading a named pipe would wait, or
            if a file without arrays is so large that reading it would end the process.
    """
    size = 0
    for folder, folders, names in os.walk(path):
        for name in folders:
            if Path(
                folder, name
            ).is_symlink():  # not followed here, but when it is read
                raise corrupt(path, ValueError(f"{Path(folder, name)} is a link"))
        for name in names:
            file = Path(folder, name)
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):
                raise corrupt(path, ValueError(f"{file} is not a regular file"))
            if file.parent.name != "d" and status.st_size > TEXT_LIMIT:
                raise corrupt(path, ValueError(f"{file} is too large"))
            size += status.st_size
    return size


def corrupt(path: Path, cause: Exception | None = None) -> CorruptCheckpointError:
    """The error for a checkpoint that Orbax cannot read, with Orbax's message."""
    _silence_asyncio()
    reason = "" if cause is None else f" ({str(cause).partition(chr(10))[0][:200]})"
    return CorruptCheckpointError(
        f"The checkpoint {path} cannot be read; it is damaged.{reason}"
    )


def _silence_asyncio() -> None:
    """Orbax handles arrays concurrently and raises the first error.

    asyncio, or Python itself, would print a traceback for each of the others.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unless_of_late_reads


def _unless_of_late_reads(unraisable: Any) -> None:
    late = ("Event loop is closed", "Encountered error while reading array")
    if not str(unraisable.exc_value).startswith(late):
        sys.__unraisablehook__(unraisable)
