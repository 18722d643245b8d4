"""Trains over two processes, kills one, and goes on over other processes and devices.

    python -m benchmarks.processes

On this machine, with fake CPU devices. A small SegNet is trained on drawn shapes five
times: in one process of four devices, in two of two, and in two of two of which one is
killed with -9; that workdir then goes on in two of two, one of four and one of one.
Prints the losses side by side. Exits with 0 if the killed run stopped within a minute,
the one that goes on on the same layout is the undisturbed one bit for bit, and all
others have its losses to 1e-4.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import hardware
from benchmarks.kill_resume import last_state, losses

ROOT = Path(__file__).resolve().parent.parent
STEPS, SAVE_EVERY, KILL_AFTER = 12, 4, 6
FLAGS = (
    f"--config={ROOT}/configs/shapes.py",
    "--config.model.kwargs.width=4",
    "--config.data.image_size=(32, 32)",
    # AdamW would make more of differences by rounding.
    "--config.optimizer.name=sgd",
    "--config.schedule.name=constant",
    "--config.schedule.learning_rate=0.05",
    "--config.train.batch_size=8",
    "--config.train.log_every_steps=1",
    f"--config.train.save_every_steps={SAVE_EVERY}",
    "--config.train.eval_every_steps=0",
    "--config.eval.overlays=0",
    "--heartbeat_timeout_s=20",
)


def start(workdir: Path, processes: int, devices: int) -> list[subprocess.Popen]:
    """Starts train.py in some processes of some devices each."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    started = []
    for number in range(processes):
        flags = [*together, f"--process_id={number}"] if processes > 1 else []
        with open(f"{workdir}.{number}.log", "a") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, ROOT / "train.py", f"--workdir={workdir}"]
                    + [*FLAGS, f"--config.train.steps={STEPS}", *flags],
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
            )
    return started


def finish(workdir: Path, processes: int, devices: int) -> dict[int, float]:
    """Trains to the end; returns the losses of the workdir by step."""
    statuses = [process.wait() for process in start(workdir, processes, devices)]
    if any(statuses):
        raise SystemExit(Path(f"{workdir}.0.log").read_text())
    return losses(workdir)


def kill(workdir: Path) -> None:
    """Kills the second of two processes and waits for the first."""
    first, second = start(workdir, 2, 2)
    while (
        not (workdir / "metrics.jsonl").exists()
        or max(losses(workdir), default=0) < KILL_AFTER
    ):
        if first.poll() is not None:
            raise SystemExit(Path(f"{workdir}.0.log").read_text())
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    then = time.monotonic()
    status = first.wait()
    seconds = time.monotonic() - then
    print(
        f"Process 1 killed after step {max(losses(workdir))}. Process 0 ended "
        f"{seconds:.0f} s later with status {status}, and had said:\n"
    )
    # Whichever comes first: its own error or, by the heartbeat, JAX's.
    log = Path(f"{workdir}.0.log").read_text()
    said = re.search(
        r"^error: .*|Terminating process[^\0]*?(?=Check the task)", log, re.M
    )
    said = log[-500:] if said is None else said[0]
    print(textwrap.indent(textwrap.fill(" ".join(said.split()), 80), "    ") + "\n")
    saved = sorted(
        int(x.name) for x in (workdir / "checkpoints").iterdir() if x.name.isdecimal()
    )
    print(f"Whole checkpoints: {saved}\n")
    if seconds > 60 or status == 0:
        raise SystemExit("error: that took too long, or was no error")


def difference(one: Path, other: Path) -> float:
    """The largest between the last states of two workdirs, of all their leaves."""
    a, b = last_state(one), last_state(other)
    return max(
        float(np.max(np.abs(a[name].astype(np.float64) - b[name]), initial=0))
        for name in a
    )


def main() -> None:
    """See the module's docstring."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    jax.config.update("jax_platforms", "cpu")
    print(f"{hardware.describe()}; jax {jax.__version__}\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        columns = {
            "1 of 4": finish(folder / "1x4", 1, 4),
            "2 of 2": finish(folder / "2x2", 2, 2),
        }
        workdir = folder / "killed"
        kill(workdir)
        resumed = {}
        for processes, devices in ((2, 2), (1, 4), (4, 1), (1, 1)):
            copy = folder / f"killed_{processes}x{devices}"
            shutil.copytree(workdir, copy)
            title = f"killed, on {processes} of {devices}"
            columns[title] = finish(copy, processes, devices)
            resumed[title] = copy

        print("| step | " + " | ".join(columns) + " |")
        print("| ---: |" + " ---: |" * len(columns))
        for step in range(1, STEPS + 1):
            shown = " | ".join(f"{column[step]:.7f}" for column in columns.values())
            print(f"| {step} | {shown} |")
        print("\nLargest difference of the last state from that of 2 of 2:\n")
        apart = {"1 of 4": difference(folder / "2x2", folder / "1x4")} | {
            title: difference(folder / "2x2", copy) for title, copy in resumed.items()
        }
        for title, value in apart.items():
            print(
                f"* {title}: {value:.1e}" if value else f"* {title}: none, bit for bit"
            )
    expected = columns["2 of 2"]
    close = all(
        abs(column[step] / expected[step] - 1) < 1e-4
        for column in columns.values()
        for step in expected
    )
    sys.exit(int(not close or apart["killed, on 2 of 2"] != 0))


if __name__ == "__main__":
    main()
