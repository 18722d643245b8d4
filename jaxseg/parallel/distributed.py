"""Runs of several processes: how they connect, agree, and exit."""

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
"""Time to wait for all processes to start."""
HEARTBEAT_TIMEOUT_S = 30
"""Time without a heartbeat after which a process is considered dead."""
LEAVE_TIMEOUT_S = 15
"""Time that a failed process waits for the others to exit normally."""

ADVICE = (
    "give coordinator (HOST:PORT of process 0), num_processes and process_id, or none "
    "of them if JAX can detect the cluster (TPU pod, TPUs on GKE, Slurm, Open MPI 4)"
)


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout_s: int = START_TIMEOUT_S,
    heartbeat_timeout_s: int = HEARTBEAT_TIMEOUT_S,
) -> None:
    """Connects to the other processes of the run, if there are any.

    Must be called before anything else uses a device. Without arguments JAX detects the
    cluster; a process outside any cluster, or with `num_processes=1`, runs alone. If a
    process sends no heartbeat for too long, JAX aborts all others and reports which
    process it was.

    Args:
        coordinator: "host:port" on which process 0 listens.
        num_processes: total number of processes.
        process_id: number of this process, from 0.
        start_timeout_s: seconds to wait for the others.
        heartbeat_timeout_s: seconds without a heartbeat after which a process is
            considered dead.

    Raises:
        ValueError: if an argument is missing or out of range.
        ConnectionError: if the processes do not connect in time. This process cannot
            be used then and should exit.
    """
    arguments = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    if given == {"num_processes": 1} or (not given and _started_alone()):
        return
    if given:
        _check(arguments)
        # Under Slurm, JAX would otherwise use only one of the host's devices.
        given["cluster_detection_method"] = "deactivate"
        given["coordinator_address"] = given.pop("coordinator")
    error = _initialize(start_timeout_s, heartbeat_timeout_s, given)
    if isinstance(error, ValueError) and "coordinator_address" in str(error):
        _check_alone()  # JAX has detected no cluster
        return
    if error is not None:
        where = coordinator or "the cluster's coordinator"
        raise _explain_start(error, where, process_id, start_timeout_s) from None
    # JAX has replaced Python's handler of SIGTERM by one that would not end a process
    # that is still starting.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    with leave_on_error():
        _check_devices()
        # CPUs communicate by gloo, which allows half a minute for the first connection.
        # Connect now: later, one process may still be compiling its step.
        MaxAcrossProcesses(lag=0)(0)


def check_shared(folder: Path) -> None:
    """Checks that all processes see the same folder, such as the workdir.

    Args:
        folder: absolute path, the same in all processes. If it does not exist yet, its
            nearest existing parent is checked.

    Raises:
        ValueError: in every process, if one does not see what process 0 writes.
    """
    if jax.process_count() == 1:
        return
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    number = np.random.default_rng().integers(1 << 31)
    depth, number = process_allgather(np.array([len(existing.parts), number]))[0]
    # A new name each time: network file systems cache that a file does not exist.
    sign = Path(*folder.parts[:depth]) / f".jaxseg_{number}"
    if jax.process_index() == 0:
        sign.touch()
    any_process(False)  # waits for process 0
    missing = process_allgather(np.asarray(not sign.exists()))
    if jax.process_index() == 0:
        sign.unlink()
    if missing.any():
        raise ValueError(
            f"Files that process 0 writes to {sign.parent} are not visible "
            f"{_on(np.flatnonzero(missing).tolist())}. Use a workdir in a folder that "
            "all hosts share."
        )


def check_same(values: dict[str, Any]) -> None:
    """Checks that all processes have the same values.

    Args:
        values: JSON values; other objects are compared as text.

    Raises:
        ValueError: in every process, if a value differs; the message lists those that
            do.
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
            "All processes of a run must be started with the same config and a shared "
            "workdir. To run each process on its own, use num_processes=1. These values "
            "differ:\n" + "\n".join(lines)
        )


def any_process(condition: bool) -> bool:
    """Whether a condition is true in any process; all processes must call it."""
    if jax.process_count() == 1:
        return condition
    return bool(process_allgather(np.asarray(condition)).any())


class MaxAcrossProcesses:
    """Maximum of a number over all processes, without waiting for the result.

    All processes must call it equally often. Each call returns, in all processes, the
    maximum of the numbers that were passed `lag` calls before. With a single process
    the number itself is returned at once.

    JAX's own `reached_preemption_sync_point` handles only SIGTERM, not SIGINT, and does
    not report which signal it was.
    """

    def __init__(self, lag: int):
        """Sets up the computation, which runs on the devices between training steps.

        Args:
            lag: calls between a number and its result; 0 waits for the result.
        """
        self._lag = lag
        self._pending: deque[jax.Array] = deque()
        mesh = Mesh(np.array(jax.devices()), ("all",))
        self._split = NamedSharding(mesh, P("all"))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

    def __call__(self, number: int) -> int:
        """Passes a number, at least 0; the first `lag` calls return 0."""
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
    """Makes a failed process, one of several, exit soon.

    At exit JAX waits for all processes, which may be waiting for this one. Once it has
    exited, they notice its missing heartbeats.

    Raises:
        ConnectionError: if a computation fails because another process has exited.
    """
    try:
        yield
    except Exception as error:
        if jax.distributed.is_initialized():
            threading.Thread(target=_leave_after_exit, daemon=True).start()
        raise _explain(error) from error.__cause__


@contextlib.contextmanager
def limited_wait(error: BaseException | None) -> Iterator[None]:
    """Limits how long a failed process, one of several, waits for the others.

    Args:
        error: why the process failed. If it is None or not an `Exception`, the process
            has not failed, and the wait has no limit.
    """
    if not jax.distributed.is_initialized() or not isinstance(error, Exception):
        yield
        return
    timer = threading.Timer(
        LEAVE_TIMEOUT_S, _leave, args=(f"error: {_explain(error)}\n",)
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _started_alone() -> bool:
    """Whether this process runs alone although JAX might detect a cluster.

    JAX would wait for all tasks of a Slurm job even in an interactive shell of that
    job, use only one of the devices in a job of one task, and fail in Kubernetes pods
    that belong to no job.
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
    """Raises a ValueError if the launcher has started several processes."""
    for name, alone in (
        ("OMPI_COMM_WORLD_SIZE", "1"),
        ("SLURM_STEP_NUM_TASKS", "1"),
        ("JOB_COMPLETION_INDEX", "0"),
    ):
        value = os.environ.get(name, alone)
        if value != alone:
            raise ValueError(
                f"{name}={value} means that this is one process of several, but JAX "
                f"cannot detect the others; {ADVICE}."
            )


def _check_devices() -> None:
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        holders: dict[int, list[int]] = {}
        for process, count in sorted(counts.items()):
            holders.setdefault(count, []).append(process)
        raise ValueError(
            "All processes of a run must have the same number of devices: "
            + "; ".join(f"{count} {_on(which)}" for count, which in holders.items())
            + "."
        )


def _check(arguments: dict[str, Any]) -> None:
    missing = [name for name, value in arguments.items() if value is None]
    if missing:
        raise ValueError(f"Missing: {', '.join(missing)}; {ADVICE}.")
    coordinator, count, number = arguments.values()
    if not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"coordinator={coordinator} has no port; {ADVICE}.")
    if not 0 <= number < count:
        raise ValueError(
            f"process_id={number} is out of range: with num_processes={count}, "
            f"processes are numbered from 0 to {count - 1}."
        )


def _initialize(
    start_timeout_s: int, heartbeat_timeout_s: int, known: dict[str, Any]
) -> Exception | None:
    """Starts `jax.distributed`; returns the error if that fails.

    At its own timeout JAX aborts the process from C++ with a stack trace. So it runs in
    a thread with a longer timeout than that of the main thread.
    """
    failures: list[Exception] = []

    def start() -> None:
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


def _explain_start(
    error: Exception, where: str, process_id: int | None, seconds: int
) -> Exception:
    """A ConnectionError if the processes did not connect; other errors unchanged."""
    if isinstance(error, TimeoutError):
        return ConnectionError(
            f"The processes did not connect to {where} within {seconds} s. Check that "
            "all processes are running, each with its own process_id and the same "
            "num_processes, and that they can reach this address and port."
        )
    if isinstance(error, jax.errors.JaxRuntimeError):
        cause = (
            "Another program may be using the port if this is process 0; try another "
            "port."
            if not process_id
            else "Check that no other process has the same process_id."
        )
        return ConnectionError(
            f"This process cannot connect to the others at {where}. {cause} "
            f"({_first_line(error)})"
        )
    return error


def _explain(error: Exception) -> Exception:
    """A ConnectionError if another process has exited; other errors unchanged."""
    if (
        not jax.distributed.is_initialized()
        or not isinstance(error, jax.errors.JaxRuntimeError)
        or str(error).startswith("RESOURCE_EXHAUSTED")
    ):
        return error
    return ConnectionError(
        f"A computation of all processes failed in process {jax.process_index()}, most "
        "likely because another process exited; see the output of that process. Run "
        "the same command again in all processes to resume from the last checkpoint. "
        f"({_first_line(error)})"
    )


def _leave_after_exit() -> None:
    """Exits some time after the main thread has ended, whatever JAX waits for."""
    threading.main_thread().join()
    time.sleep(LEAVE_TIMEOUT_S)
    _leave()


def _leave(text: str = "") -> None:
    """Prints why, and exits at once: an exception cannot interrupt JAX's wait."""
    text += f"Exiting: the other processes have not ended within {LEAVE_TIMEOUT_S} s.\n"
    os.write(sys.stderr.fileno(), text.encode())
    os._exit(1)


def _on(processes: list[int]) -> str:
    shown = ", ".join(map(str, processes[:4]))
    more = f" and {len(processes) - 4} more" if len(processes) > 4 else ""
    return f"on process {shown}{more}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
