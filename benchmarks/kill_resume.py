"""Kills runs with -9 and compares their end with that of undisturbed ones.

    python -m benchmarks.kill_resume --random 60 --deletion 10 --preparation 10 \
        --processes 20

A small SegNet on drawn shapes, with augmentation, dropout and averaged parameters, saves
at every step. It is killed at random moments, while it deletes a checkpoint, and while it
prepares its data; and one of two processes is killed, after which the other must end by
itself. The same command then resumes. Prints a table; exits with 0 if every leaf of the
last checkpoint (parameters, statistics, optimizer, random key) and every logged loss are
equal bit for bit to those of an undisturbed run, and nothing half written is left.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxseg.training import default_config

ROOT = Path(__file__).resolve().parent.parent
EXIT_LIMIT_S = 120
"""Time in which the process that was not killed must end: it may wait for the start."""


def get_config():
    """The config of these runs, read by train.py."""
    config = default_config()
    config.model.kwargs = {"width": 2, "depths": (1, 1, 1), "dropout": 0.5}
    config.data.options = {
        "image_size": (16, 24),
        "train_examples": 300,
        "val_examples": 6,
    }
    config.augment.brightness = 0.2
    config.schedule.name = "constant"
    config.train.batch_size = config.eval.batch_size = 4
    config.train.ema_decay = 0.5
    config.train.save_every_steps = config.train.log_every_steps = 1
    config.train.eval_every_steps = 7
    config.eval.overlays = 1
    return config


class Runs:
    """Starts train.py in one workdir, in one or two processes.

    Args:
        folder: for the workdir, the prepared data and the output.
        steps: steps of the run.
        processes: 1 or 2.
        cache: of compiled programs.
    """

    def __init__(self, folder: Path, steps: int, processes: int, cache: Path):
        folder.mkdir()
        self.workdir, self.prepared = folder / "run", folder / "prepared"
        self._log = folder / "output.txt"
        self._cache = cache
        self._processes = processes
        self._flags = [
            f"--config={__file__}",
            f"--workdir={self.workdir}",
            f"--config.data.prepared_dir={self.prepared}",
            f"--config.train.steps={steps}",
            "--heartbeat_timeout_s=10",
            "--start_timeout_s=60",
        ]

    def start(self) -> list[subprocess.Popen]:
        """Starts the processes."""
        flags = [[]]
        if self._processes > 1:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]
            together = [f"--coordinator=127.0.0.1:{port}"]
            together += [f"--num_processes={self._processes}"]
            flags = [
                [*together, f"--process_id={number}"]
                for number in range(self._processes)
            ]
        environment = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(self._cache)}
        with open(self._log, "a") as log:
            return [
                subprocess.Popen(
                    [sys.executable, ROOT / "train.py", *self._flags, *own],
                    stdout=log,
                    stderr=log,
                    env=os.environ | environment,
                )
                for own in flags
            ]

    def finish(self) -> None:
        """Runs to the end."""
        if any([process.wait() for process in self.start()]):
            raise SystemExit(self._log.read_text()[-3000:])

    def kill(self, ready: Callable[[], bool], rng: random.Random) -> bool:
        """Starts, waits for a moment, and kills one of the processes.

        Returns:
            Whether it was killed before it ended.
        """
        processes = self.start()
        while not ready():
            if processes[0].poll() is not None:
                break
            time.sleep(0.001)
        victim = rng.choice(processes)
        killed = victim.poll() is None
        victim.send_signal(signal.SIGKILL)
        for process in processes:
            try:
                status = process.wait(timeout=EXIT_LIMIT_S)
            except subprocess.TimeoutExpired:
                output = self._log.read_text()[-3000:]
                raise SystemExit(
                    f"{output}\nerror: the other process did not end"
                ) from None
            if not killed and status:
                raise SystemExit(self._log.read_text()[-3000:])
        return killed

    # Moments; each returns a function that is called until it returns true.

    def random_moment(self, rng: random.Random) -> Callable[[], bool]:
        """At the start, or up to a second after the first new checkpoint."""
        before = last_step(self.workdir)
        delay = rng.uniform(0, 4 if rng.random() < 0.25 else 1)
        anywhere = delay > 1
        since: list[float] = [time.monotonic()] if anywhere else []

        def ready() -> bool:
            if not since and last_step(self.workdir) > before:
                since.append(time.monotonic())
            return bool(since) and time.monotonic() - since[0] > delay

        return ready

    def deletion(self, rng: random.Random) -> Callable[[], bool]:
        """While the files of a checkpoint are being deleted."""
        most = [0]
        deleted = self.workdir / "checkpoints" / ".deleted"
        from_step = last_step(self.workdir) + rng.randint(2, 6)

        def ready() -> bool:
            count = sum(len(files) for _, _, files in os.walk(deleted))
            gone = 0 < count < most[0]
            most[0] = max(most[0] if count else 0, count)
            return gone and last_step(self.workdir) >= from_step

        return ready

    def preparation(self, rng: random.Random) -> Callable[[], bool]:
        """While the data are being prepared, which a kill may have missed before."""
        for path in self.prepared.glob("*/[!.]*"):
            shutil.rmtree(path)
        delay = rng.uniform(0, 0.4)
        since: list[float] = []

        def ready() -> bool:
            if not since and list(self.prepared.glob("*/.preparing-*")):
                since.append(time.monotonic())
            return bool(since) and time.monotonic() - since[0] > delay

        return ready

    def leftovers(self) -> list[Path]:
        """What should not be there after a run."""
        steps = set(map(str, saved_steps(self.workdir)))
        checkpoints = self.workdir / "checkpoints"
        found = [path for path in checkpoints.iterdir() if path.name not in steps]
        found += self.workdir.glob("incomplete_*")
        found += self.prepared.glob("*/.preparing-*")
        hidden = re.compile(r"\..*\.tmp")
        for folder in (self.workdir, self.workdir / "overlays"):
            found += [p for p in folder.iterdir() if hidden.fullmatch(p.name)]
        return found


def saved_steps(workdir: Path) -> list[int]:
    """Steps that have a folder, ascending."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def last_step(workdir: Path) -> int:
    """The last step that has a folder; -1 if none has."""
    return max(saved_steps(workdir), default=-1)


def last_state(workdir: Path) -> dict[str, np.ndarray]:
    """Every leaf of the last checkpoint by its path."""
    path = workdir / "checkpoints" / str(saved_steps(workdir)[-1]) / "state"
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree
    )
    with ocp.Checkpointer(handler) as checkpointer:
        tree = checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def losses(workdir: Path) -> dict[int, float]:
    """Logged training losses by step."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def compare(plain: Path, killed: Path) -> tuple[int, int, bool]:
    """Number of leaves, of differing ones, and whether the logged losses are equal."""
    expected, got = last_state(plain), last_state(killed)
    differing = [
        name
        for name in expected.keys() | got.keys()
        if name not in got
        or name not in expected
        or expected[name].tobytes() != got[name].tobytes()
    ]
    return len(expected), len(differing), losses(plain) == losses(killed)


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, what in (
        ("random", "at random moments"),
        ("deletion", "while a checkpoint is being deleted"),
        ("preparation", "while data are being prepared"),
        ("processes", "of one of two processes at random moments"),
    ):
        parser.add_argument(f"--{name}", type=int, default=0, help=f"kills {what}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    print("| killed | kills | leaves | differ | losses | left over | minutes |")
    print("| --- | ---: | ---: | ---: | --- | --- | ---: |", flush=True)
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, moment, processes, number in (
            ("at random moments", Runs.random_moment, 1, args.random),
            ("while deleting a checkpoint", Runs.deletion, 1, args.deletion),
            ("while preparing data", Runs.preparation, 1, args.preparation),
            ("one of two processes", Runs.random_moment, 2, args.processes),
        ):
            if not number:
                continue
            began = time.monotonic()
            steps = 20 if moment is Runs.preparation else 20 + 4 * number
            tag = f"{moment.__name__}{processes}"
            common = steps, processes, folder / "cache"
            plain = Runs(folder / f"{tag}_plain", *common)
            killed = Runs(folder / f"{tag}_killed", *common)
            plain.finish()
            kills = 0
            for _ in range(number):
                kills += killed.kill(moment(killed, rng), rng)
                print(f"{kind}: step {last_step(killed.workdir)}", file=sys.stderr)
            killed.finish()
            leaves, differ, equal = compare(plain.workdir, killed.workdir)
            left = killed.leftovers()
            good &= not differ and equal and not left and kills == number
            print(
                f"| {kind} | {kills} | {leaves} | {differ} | "
                f"{'equal' if equal else 'DIFFER'} | "
                f"{', '.join(path.name for path in left) or 'nothing'} | "
                f"{(time.monotonic() - began) / 60:.1f} |",
                flush=True,
            )
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
