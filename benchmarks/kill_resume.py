"""Kills a run with -9 at random moments and compares its end with an undisturbed one.

    python benchmarks/kill_resume.py --kills 3 -- --config configs/shapes.py

Everything after `--` goes to train.py. Exits with 0 if every leaf of the last
checkpoint (parameters, statistics, optimizer, random key) and every logged loss are
equal bit for bit.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parent.parent


def start(arguments: list[str], workdir: Path) -> subprocess.Popen:
    """Starts train.py, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", *arguments],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def finish(arguments: list[str], workdir: Path) -> float:
    """Runs train.py to its end; returns the seconds that took."""
    began = time.perf_counter()
    if start(arguments, workdir).wait() != 0:
        raise SystemExit("error: train.py failed; see above")
    return time.perf_counter() - began


def run_with_kills(
    arguments: list[str], workdir: Path, kills: int, seconds: float, rng: random.Random
) -> None:
    """Starts train.py `kills` times to kill it, then lets it end.

    A whole run takes `seconds`, a good part of them to start; most of what a killed one
    does not reach is left to the next.
    """
    for _ in range(kills):
        process = start(arguments, workdir)
        try:
            process.wait(timeout=rng.uniform(0.3, 0.7) * seconds)
            print("the run ended before it was killed", flush=True)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"killed; saved so far: {saved_steps(workdir)}", flush=True)
    finish(arguments, workdir)


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the whole checkpoints."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


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


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("arguments", nargs="+", help="for train.py, after --")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        plain, killed = Path(folder, "plain"), Path(folder, "killed")
        seconds = finish(args.arguments, plain)
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        rng = random.Random(args.seed)
        run_with_kills(args.arguments, killed, args.kills, seconds, rng)

        expected, got = last_state(plain), last_state(killed)
        differing = [
            name
            for name in expected.keys() | got.keys()
            if name not in got
            or name not in expected
            or expected[name].tobytes() != got[name].tobytes()
        ]
        same_losses = losses(plain) == losses(killed)
    print(f"{len(expected)} leaves, {len(differing)} differ: {differing[:5]}")
    print(f"logged losses {'equal' if same_losses else 'DIFFER'}")
    return int(bool(differing) or not same_losses)


if __name__ == "__main__":
    sys.exit(main())
