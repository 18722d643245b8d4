"""Several processes as one run: how they meet, agree, and leave."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

START_TIMEOUT_S = 120
"""How long processes wait for each other at the start."""
HEARTBEAT_TIMEOUT_S = 30
"""How long a process may be silent before the others take it for dead and end."""
LEAVE_TIMEOUT_S = 15
"""How long a process that failed waits for the others to end in good order."""

ADVICE = (
    "give --coordinator=HOST:PORT (of process 0), --num_processes and --process_id, or "
    "none of them where JAX detects the cluster (TPU pod, GKE's TPUs, Slurm, Open MPI 4)"
)


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout_s: int = START_TIMEOUT_S,
    heartbeat_timeout_s: int = HEARTBEAT_TIMEOUT_S,
) -> None:
    """Joins the other processes of the run, where there are any.

    To be called before JAX is asked for a device. With no arguments the cluster is
    found by JAX, and a process that belongs to none is left alone; so is one with
    `num_processes=1`. Whenever a process is silent for too long JAX aborts all others,
    and says which it was.

    Args:
        coordinator: "host:port" of process 0, which listens there.
        num_processes: how many there are.
        process_id: the number of this one, from 0.
        start_timeout_s: how long to wait for the others.
        heartbeat_timeout_s: how long the others may be silent.

    Raises:
        ValueError: if arguments are missing or cannot be.
        ConnectionError: if the processes have not met in time. This process is of no
            use then and should end.
    """
    flags = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if given == {"num_processes": 1} or (not given and _started_alone()):
        return
    if given:
        _check(flags)
        # Else JAX would take one of the host's devices where it finds Slurm.
        given["cluster_detection_method"] = "deactivate"
        given["coordinator_address"] = given.pop("coordinator")
    error = _initialize(start_timeout_s, heartbeat_timeout_s, given)
    if isinstance(error, ValueError) and "coordinator_address" in str(error):
        _check_alone()  # JAX knows of no cluster here
        return
    if error is not None:
        where = coordinator or "the cluster's coordinator"
        raise _not_met(error, where, process_id, start_timeout_s) from None
    # JAX has put a handler of its own in place of Python's, by which SIGTERM would not
    # end a process that is still starting.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    with leave_on_error():
        _check_devices()
        # CPUs meet by gloo, which gives them half a minute when they first do: now, and
        # not when one has compiled its step and the other has not.
        MaxAcrossProcesses(lag=0)(0)


def check_shared(folder: Path) -> None:
    """Raises a ValueError, in every process, unless all see the same folder.

    Args:
        folder: absolute, the same in all. Where it does not exist yet the one that it
            will be made in is looked at.
    """
    if jax.process_count() == 1:
        return
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    number = np.random.default_rng().integers(1 << 31)
    depth, number = process_allgather(np.array([len(existing.parts), number]))[0]
    # A name that nobody has looked for: file systems remember for a while that there was
    # none.
    sign = Path(*folder.parts[:depth]) / f".jaxseg_{number}"
    if jax.process_index() == 0:
        sign.touch()
    any_process(False)  # waits for process 0
    missing = process_allgather(np.asarray(not sign.exists()))
    if jax.process_index() == 0:
        sign.unlink()
    if missing.any():
        raise ValueError(
            f"What process 0 writes to {sign.parent} is not seen "
            f"{_on(np.flatnonzero(missing).tolist())}: the workdir must be in a folder "
            "that all hosts share."
        )


def check_same(values: dict[str, Any]) -> None:
    """Raises a ValueError, in every process, unless all have the same values.

    Args:
        values: JSON; what JSON does not know is compared by its text.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(values, default=str).encode()
    longest = int(process_allgather(np.int32(len(text))).max())
    texts = process_allgather(np.frombuffer(text.ljust(longest), np.uint8))
    everyone = [json.loads(bytes(text)) for text in texts]
    lines = []
    for key in dict.fromkeys(key for values in everyone for key in values):
        holders: dict[str, list[int]] = {}
        for process, theirs in enumerate(everyone):
            shown = repr(theirs[key]) if key in theirs else "absent"
            holders.setdefault(shown, []).append(process)
        if len(holders) > 1:
            lines.append(
                f"  {key}: " + "; ".join(f"{v} {_on(p)}" for v, p in holders.items())
            )
    if lines:
        raise ValueError(
            "The processes of a run must be started alike, in a workdir that all share;"
            " or, to run each by itself, with --num_processes=1. These differ:\n"
            + "\n".join(lines)
        )


def any_process(condition: bool) -> bool:
    """Whether a condition holds in any process; all must ask."""
    if jax.process_count() == 1:
        return condition
    return bool(process_allgather(np.asarray(condition)).any())


class MaxAcrossProcesses:
    """The largest of the processes' numbers, learnt without waiting for it.

    Every process calls it as often; at each call all get the same answer, which is the
    largest number that was handed in `lag` calls before. Within one process that is the
    number itself, at once.

    JAX's own `reached_preemption_sync_point` needs SIGTERM to itself, knows no SIGINT
    and does not say which it was.
    """

    def __init__(self, lag: int):
        """Sets up the computation, which runs on the devices between the steps."""
        self._lag = lag
        self._pending: deque[jax.Array] = deque()
        mesh = Mesh(np.array(jax.devices()), ("all",))
        self._split = NamedSharding(mesh, P("all"))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

    def __call__(self, number: int) -> int:
        """Hands in a number, at least 0; 0 is the answer of the first calls."""
        if jax.process_count() == 1:
            return number
        numbers = np.full(jax.local_device_count(), number, np.int32)
        numbers = jax.make_array_from_process_local_data(self._split, numbers)
        self._pending.append(self._max(numbers))
        if len(self._pending) <= self._lag:
            return 0
        return int(self._pending.popleft())


@contextlib.contextmanager
def leave_on_error() -> Iterator[None]:
    """Lets a process that failed, one of several, end soon.

    At its exit JAX waits for all processes, and they may be waiting for this one. When
    it is gone they notice by its missing heartbeats.

    Raises:
        ConnectionError: if a computation fails for want of another process.
    """
    try:
        yield
    except Exception as error:
        if jax.distributed.is_initialized():
            threading.Thread(target=_leave_after_exit, daemon=True).start()
        raise _explained(error) from error.__cause__


@contextlib.contextmanager
def limited_wait(error: BaseException | None) -> Iterator[None]:
    """Lets a process that failed, one of several, wait for the others only so long.

    Args:
        error: what went wrong; None, or what is no `Exception`, if nothing did, and
            then there is no limit.
    """
    if not jax.distributed.is_initialized() or not isinstance(error, Exception):
        yield
        return
    timer = threading.Timer(
        LEAVE_TIMEOUT_S, _leave, args=(f"error: {_explained(error)}\n",)
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _started_alone() -> bool:
    """Whether this is no cluster although JAX might take it for one.

    JAX would wait for as many processes as a Slurm job has tasks in a shell of that job
    too, take one device of many for a task that is alone, and fail in pods that belong
    to no job.
    """
    environment = os.environ
    tasks = environment.get("OMPI_COMM_WORLD_SIZE") or environment.get(
        "SLURM_STEP_NUM_TASKS"
    )
    if tasks is not None:
        return tasks == "1"
    members = ("JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    return "KUBERNETES_SERVICE_HOST" in environment and not any(
        name in environment for name in members
    )


def _check_alone() -> None:
    """Raises a ValueError where a launcher says that there are others."""
    for name, alone in (
        ("OMPI_COMM_WORLD_SIZE", "1"),
        ("SLURM_STEP_NUM_TASKS", "1"),
        ("JOB_COMPLETION_INDEX", "0"),
    ):
        value = os.environ.get(name, alone)
        if value != alone:
            raise ValueError(
                f"{name}={value}, so this is one process of several, but JAX cannot "
                f"find the others; {ADVICE}."
            )


def _check_devices() -> None:
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        holders: dict[int, list[int]] = {}
        for process, count in sorted(counts.items()):
            holders.setdefault(count, []).append(process)
        raise ValueError(
            "The processes of a run need as many devices each: "
            + "; ".join(f"{count} {_on(which)}" for count, which in holders.items())
            + "."
        )


def _check(flags: dict[str, Any]) -> None:
    missing = [f"--{name}" for name, value in flags.items() if value is None]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}; {ADVICE}.")
    if not flags["coordinator"].rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator={flags['coordinator']} has no port; {ADVICE}.")
    if not 0 <= flags["process_id"] < flags["num_processes"]:
        raise ValueError(
            f"--process_id={flags['process_id']}, but processes are numbered from 0 to "
            f"--num_processes={flags['num_processes']} less one."
        )


def _initialize(
    start_timeout_s: int, heartbeat_timeout_s: int, known: dict[str, Any]
) -> Exception | None:
    """Starts `jax.distributed`; returns what went wrong.

    When the time is over JAX aborts the process, from C++ and with a stack trace. So it
    waits in a thread, for longer than this one does.
    """
    failures: list[Exception] = []

    def start():
        try:
            jax.distributed.initialize(
                **known,
                initialization_timeout=2 * start_timeout_s + 60,
                heartbeat_timeout_seconds=heartbeat_timeout_s,
            )
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join(start_timeout_s)
    if thread.is_alive():
        return TimeoutError()
    return failures[0] if failures else None


def _not_met(
    error: Exception, where: str, process_id: int | None, seconds: int
) -> Exception:
    """What keeps the processes apart, where it is no fault of the program."""
    if isinstance(error, TimeoutError):
        return ConnectionError(
            f"The processes have not met at {where} within {seconds} s. Do all of them "
            "run, each with its own number and the same count of them, and can they "
            "reach that address and port?"
        )
    if isinstance(error, jax.errors.JaxRuntimeError):
        cause = (
            "If this is process 0, another program may have the port: take another. "
            if not process_id
            else "Has another process the same number? "
        )
        return ConnectionError(
            f"This process cannot join the others at {where}. {cause}"
            f"({_first_line(error)})"
        )
    return error


def _explained(error: Exception) -> Exception:
    """The same error, but for those that come of a process that is gone."""
    if (
        not jax.distributed.is_initialized()
        or not isinstance(error, jax.errors.JaxRuntimeError)
        or str(error).startswith("RESOURCE_EXHAUSTED")
    ):
        return error
    return ConnectionError(
        f"A computation of all processes was broken off in process "
        f"{jax.process_index()}, most likely because another one ended; the output of "
        "that one may say why. The same "
        "command, in all processes, goes on from the last checkpoint. "
        f"({_first_line(error)})"
    )


def _leave_after_exit() -> None:
    """Ends the process some time after its main thread has, whatever that waits for."""
    threading.main_thread().join()
    time.sleep(LEAVE_TIMEOUT_S)
    _leave()


def _leave(text: str = "") -> None:
    """Says why and ends the process: no exception gets through where it waits."""
    text += (
        f"This process leaves: the others have not ended within {LEAVE_TIMEOUT_S} s.\n"
    )
    os.write(sys.stderr.fileno(), text.encode())
    os._exit(1)


def _on(processes: list[int]) -> str:
    shown = ", ".join(map(str, processes[:4]))
    more = f" and {len(processes) - 4} more" if len(processes) > 4 else ""
    return f"on process {shown}{more}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
