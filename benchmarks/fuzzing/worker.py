"""A process that runs one case after another in a folder of its own."""

import contextlib
import faulthandler
import json
import os
import random
import re
import resource
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.changes import (
    mutate_content,
    mutate_file,
    mutate_folder,
    plant,
)
from benchmarks.fuzzing.corpus import VARIABLE
from benchmarks.fuzzing.targets import (
    TARGETS,
    NamedError,
    WrongResult,
    corpus,
    exported_variables,
)

ROOT = Path(__file__).resolve().parents[2]
CASES_PER_WORKER = 400
LONGEST_MESSAGE = 2000
MOST_LINES = 20
"""Lines that one case may print to the terminal; more are pages."""

TOUCHED = "touched a file outside"
MARK = "=== case "
"""Begins a case in the output of a worker."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        verdict: "result", the name of an error's class, or "FAILURE".
        message: of the error, or why the case failed.
        changes: made to the input.
        seconds: that opening took.
        mebibytes: by which the peak of memory grew.
    """

    verdict: str
    message: str = ""
    changes: str = ""
    seconds: float = 0.0
    mebibytes: float = 0.0


class Sandbox:
    """The folders of a worker: the case, and what it must not touch."""

    def __init__(self, folder: Path):
        """Creates the folders."""
        self.folder = folder
        self.case, self.outside = folder / "case", folder / "outside"
        for name in ("outside/folder", "cwd", "home", "tmp", "bin"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (self.outside / "file").write_text('{"secret": 1}\n')
        (self.outside / "folder" / "file").write_text("canary\n")
        # Importing this module, or calling Ghostscript, leaves a trace.
        trace = f"{self.outside}/trace"
        (folder / "bin" / "canary_module.py").write_text(f"open({trace!r}, 'w')\n")
        script = folder / "bin" / "gs"
        script.write_text(f"#!/bin/sh\necho ran > {trace}\n")
        script.chmod(0o755)

    def environment(self, corpus: Path) -> dict[str, str]:
        """Variables for the worker's process."""
        return {
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "home" / "cache"),
            "XDG_STATE_HOME": str(self.folder / "home" / "state"),
            "TMPDIR": str(self.folder / "tmp"),
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder / 'bin'}",
            "JAX_PLATFORMS": "cpu",
            VARIABLE: str(corpus),
            "MALLOC_ARENA_MAX": "2",
        }

    def clear(self) -> None:
        """Removes the last case."""
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()

    def untouchable(self) -> dict[str, Any]:
        """The state of all files outside the case."""
        return snapshot(self.outside) | snapshot(self.folder / "cwd")


def make_case(
    target: str, seed: int, number: int, sandbox: Sandbox
) -> tuple[Path, random.Random, str]:
    """Writes the mutated input of a case to an empty folder.

    Returns:
        The input, the random numbers for opening it, and what was changed.
    """
    rng = random.Random(f"{seed} {target} {number}")
    seeds, case, outside = corpus() / target, sandbox.case, sandbox.outside
    opened = case
    if TARGETS[target].one_file:
        chosen = rng.choice(sorted(seeds.iterdir()))
        opened = case / chosen.name
        shutil.copyfile(chosen, opened)
    else:
        shutil.copytree(seeds, case, dirs_exist_ok=True)
    changes = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if TARGETS[target].plants:
            changes.append(plant(rng, case, outside))
            continue
        inside = sorted(path for path in case.rglob("*") if not path.is_symlink())
        files = [path for path in inside if path.is_file()]
        files = [path for path in files if path.stat().st_size < 2**30]
        folders = [path for path in inside if path.is_dir()]
        if not files:
            break
        path, kind = rng.choice(files), rng.random()
        if kind < 0.12:
            done = mutate_file(rng, path, outside)
        elif kind < 0.2 and folders:
            path = rng.choice(folders)
            done = mutate_folder(rng, path, outside)
        else:
            done = mutate_content(rng, path, sorted(seeds.rglob("*")))
        changes.append(f"{path.relative_to(case)}: {done}")
    return opened, rng, "; ".join(changes)


def snapshot(folder: Path) -> dict[str, Any]:
    """Kind, size and time of every file below a folder, without following links."""
    found: dict[str, Any] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            found[path] = status.st_mode, status.st_size, status.st_mtime_ns
    return found


def run_case(target: str, seed: int, number: int, sandbox: Sandbox) -> Outcome:
    """Makes and opens one case; does not return if it crashes or hangs."""
    sandbox.clear()
    case = sandbox.case
    print(f"{MARK}{target} {number}", file=sys.stderr, flush=True)
    opened, rng, changes = make_case(target, seed, number, sandbox)
    print(changes, file=sys.stderr, flush=True)
    noise = os.lseek(2, 0, os.SEEK_CUR)
    outside, inside = sandbox.untouchable(), snapshot(case)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is then the present size
    memory, start = _peak(), time.perf_counter()
    verdict, message = _verdict(TARGETS[target].open, opened, case, rng)
    seconds, grown = time.perf_counter() - start, _peak() - memory
    if sandbox.untouchable() != outside:
        verdict, message = "FAILURE", f"{TOUCHED}; then {message}"
    elif TARGETS[target].reads_only and snapshot(case) != inside:
        verdict, message = "FAILURE", f"changed the input; then {message}"
    elif verdict != "FAILURE":
        sys.stdout.flush()
        printed = os.pread(2, 10**6, noise).decode(errors="replace")
        if printed.count("\n") > MOST_LINES:
            verdict, message = "FAILURE", f"printed pages: {printed[:300]}"
    return Outcome(verdict, message, changes, seconds, grown)


def _verdict(
    function: Callable[[Path, random.Random], None],
    opened: Path,
    case: Path,
    rng: random.Random,
) -> tuple[str, str]:
    try:
        function(opened, rng)
    except WrongResult as error:
        return "FAILURE", f"wrong result: {error}"
    except (ValueError, OSError) as error:
        # The path of an OSError is an attribute.
        message = f"{error} {getattr(error, 'filename', None) or ''}"
        kind = "error of the command" if isinstance(error, NamedError) else _name(error)
        if str(case) not in message:
            where = f"does not name the file ({_origin(error)})"
            return "FAILURE", f"{kind} {where}: {message[:300]}"
        if len(message) > LONGEST_MESSAGE:
            return "FAILURE", f"{kind} is {len(message)} characters: {message[:300]}"
        return kind, message
    except BaseException as error:
        return "FAILURE", f"{_name(error)} ({_origin(error)}): {str(error)[:300]}"
    return "result", ""


def _name(error: BaseException) -> str:
    return type(error).__name__


def _origin(error: BaseException) -> str:
    """The innermost line of jaxseg in an error's traceback."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}jaxseg{os.sep}" in frame.filename]
    if not own:
        return "outside jaxseg"
    name = own[-1].filename.rpartition(f"{os.sep}jaxseg{os.sep}")[2]
    return f"{name}:{own[-1].lineno}"


def _memory(kind: str) -> int:
    """Memory of this process in bytes: VmHWM, the peak, or VmData, what it asked for."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{kind}:\s*(\d+)", status)[0]) * 1024


def _peak() -> float:
    return _memory("VmHWM") / 2**20


def serve(folder: Path, seed: int, seconds: float, mebibytes: int) -> None:
    """Runs the cases that it reads from standard input, one a line."""
    sandbox = Sandbox(folder)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed is noise
    faulthandler.enable()
    import jaxseg.checkpoints.run
    import jaxseg.data  # noqa: F401

    exported_variables()
    # A large allocation then fails, instead of the machine.
    most = _memory("VmData") + 2 * mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        target, number = line.split()
        faulthandler.dump_traceback_later(0.9 * seconds)  # where it hangs
        outcome = run_case(target, seed, int(number), sandbox)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(vars(outcome)), file=replies, flush=True)


class Worker:
    """A process that runs cases; it is started again after a crash or a hang."""

    def __init__(
        self, folder: Path, corpus: Path, seed: int, limits: tuple[float, int]
    ):
        """Starts the process.

        Args:
            folder: for the sandbox.
            corpus: the files before the changes.
            seed: of the cases.
            limits: seconds for a case, and MiB by which memory may grow.
        """
        self._folder, self._corpus, self._seed = folder, corpus, seed
        self._seconds, self._mebibytes = limits
        self._start()

    def _start(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        sandbox = Sandbox(self._folder)
        self._noise = self._folder / "noise"
        self._count = 0
        command = (sys.executable, "-m", "benchmarks.fuzzing.worker")
        arguments = (self._folder, self._seed, self._seconds, self._mebibytes)
        with open(self._noise, "ab+") as noise:
            self._process = subprocess.Popen(
                (*command, *map(str, arguments)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
                cwd=self._folder / "cwd",
                env=os.environ | sandbox.environment(self._corpus),
                text=True,
            )
        if self._read(300) is None:
            tail = self._printed()
            self.close()
            raise RuntimeError(f"a worker did not start:\n{tail}")

    def _read(self, seconds: float) -> str | None:
        """The next line of the process; None if there is none in time."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        return self._process.stdout.readline() or None

    def _printed(self) -> str:
        """What the process printed since its last case began."""
        text = self._noise.read_text(errors="replace")
        return text.rpartition(MARK)[2]

    def run(self, target: str, number: int) -> Outcome:
        """Runs one case."""
        if self._count >= CASES_PER_WORKER:
            self.close()
            self._start()
        self._count += 1
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # nothing can be read then, either
            print(target, number, file=self._process.stdin, flush=True)
        start = time.perf_counter()
        line = self._read(self._seconds)
        if line is None:
            return self._replace(target, number, time.perf_counter() - start)
        outcome = Outcome(**json.loads(line))
        if outcome.message.startswith(TOUCHED):  # the next case needs another folder
            self._count = CASES_PER_WORKER
        if outcome.mebibytes > self._mebibytes:
            why = f"memory grew by {outcome.mebibytes:.0f} MiB; then {outcome.message}"
            outcome = Outcome("FAILURE", why, *_rest(outcome))
        return outcome

    def _replace(self, target: str, number: int, seconds: float) -> Outcome:
        """Starts another process after a crash or a hang."""
        if seconds < self._seconds:
            why = f"crashed with status {self._process.wait(60)}"
        else:
            why = f"no end after {self._seconds:.0f} s"
        self.close()
        _, changes, *printed = [*self._printed().split("\n"), "", ""]
        found = re.search(r'/jaxseg/(\S+)", line (\d+)', "\n".join(printed))
        where = f"{found[1]}:{found[2]}" if found else "outside jaxseg"
        shown = "\n".join(printed)[:1000]
        self._start()
        return Outcome("FAILURE", f"{why} ({where}): {shown}", changes, seconds)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _rest(outcome: Outcome) -> tuple[str, float, float]:
    return outcome.changes, outcome.seconds, outcome.mebibytes


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
