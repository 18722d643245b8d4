"""A run's exclusive use of its workdir."""

import contextlib
import json
import os
import platform
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import jax

from jaxseg.parallel.distributed import any_process
from jaxseg.utils.files import (
    FileLockedError,
    file_lock,
    remove_leftovers,
    write_atomically,
)
from jaxseg.utils.json_file import read_json

LOCK = ".lock"
"""File whose lock the run holds; the system releases it when the process ends."""

HOLDER = ".lock.json"
"""File that describes the process that holds the lock."""


_KINDS = {
    **dict.fromkeys((LOCK, HOLDER, "metadata.json", "metrics.jsonl"), stat.S_ISREG),
    **dict.fromkeys(("checkpoints", "overlays", "tensorboard"), stat.S_ISDIR),
}
"""What a run writes in its workdir."""


class WorkdirInUseError(ValueError):
    """Another run uses the workdir."""


class WorkdirMovedError(ValueError):
    """The workdir was moved or deleted during the run."""


@contextmanager
def exclusive_workdir(workdir: Path) -> Iterator[Callable[[], None]]:
    """Keeps other runs out of a workdir; the processes of one run share it.

    All processes must call it. The first holds the lock. The lock of a process that was
    killed is free; on disks without locks, the process on this host must have ended.

    Args:
        workdir: folder of the run; created if needed.

    Yields:
        A function to call before saving, which raises a WorkdirMovedError if the workdir
        has been moved or deleted meanwhile.

    Raises:
        WorkdirInUseError: if another run uses it.
        ValueError: if it contains a link or a special file, which a run could write to.
        OSError: if it cannot be created or written to.
    """
    with ExitStack() as stack:
        problem: Exception | None = None
        check: Callable[[], None] = _nothing
        if jax.process_index() == 0:
            try:
                check = stack.enter_context(_held(workdir))
            except (ValueError, OSError) as error:
                problem = error
        if any_process(problem is not None):
            raise problem or ValueError(
                f"Process 0 cannot use {workdir}; see its output."
            )
        yield check


@contextmanager
def _held(workdir: Path) -> Iterator[Callable[[], None]]:
    workdir.mkdir(parents=True, exist_ok=True)
    _check_plain(workdir)
    holder = workdir / HOLDER
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(file_lock(workdir / LOCK))
        except FileLockedError as error:
            raise _in_use(workdir) from error
        if lock is None and _may_run(_read(holder)):
            raise _in_use(workdir, f" If that run has ended, delete {holder}.")
        for folder in (workdir, workdir / "overlays"):
            remove_leftovers(folder)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        ours = {"host": platform.node(), "pid": os.getpid(), "started": now}
        write_atomically(holder, json.dumps(ours))

        def check() -> None:
            try:
                same = lock is None or os.path.samestat(
                    os.fstat(lock), (workdir / LOCK).lstat()
                )
            except FileNotFoundError:
                same = False
            if not same:
                raise WorkdirMovedError(
                    f"{workdir} has been moved or deleted while the run was using it. "
                    "Run the same command with its new path to resume from the last "
                    "checkpoint."
                )

        try:
            yield check
        finally:
            # A killed process leaves it. It keeps others out on disks without locks.
            holder.unlink(missing_ok=True)


def _nothing() -> None:
    pass


def _check_plain(workdir: Path) -> None:
    for folder in (workdir, workdir / "checkpoints"):
        for path in folder.iterdir() if folder.is_dir() else ():
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # another run is renaming it; the lock will tell
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(
                    f"{path}: a link or a special file, through which the run could "
                    "change other files; remove it. (The workdir itself may be a link.)"
                )
            if path.name in _KINDS and not _KINDS[path.name](mode):
                raise ValueError(
                    f"{path}: a run needs this name for something else; remove it"
                )


def _in_use(workdir: Path, advice: str = "") -> WorkdirInUseError:
    by = _read(workdir / HOLDER)
    who = "another process"
    if by is not None:
        who = f"process {by['pid']} on {by['host']}, started {by['started']}"
    return WorkdirInUseError(
        f"{workdir} is in use by {who}. Wait for that run to end, or use another "
        f"workdir.{advice}"
    )


def _read(holder: Path) -> dict[str, Any] | None:
    """What the holder wrote; None if there is no such file or it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = read_json(holder)
        if isinstance(content, dict) and [
            type(content.get(key)) for key in ("host", "pid", "started")
        ] == [str, int, str]:
            return content
    return None


def _may_run(by: dict[str, Any] | None) -> bool:
    """Whether the process may still run; only those of this host can be checked."""
    if by is None or by["pid"] == os.getpid():
        return False
    if by["host"] != platform.node():
        return True
    try:
        os.kill(by["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True
