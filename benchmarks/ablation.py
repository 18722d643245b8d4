"""What unpooling and skips bring: every part of configs/ablation.py, several seeds.

    python benchmarks/ablation.py --data-root /path/to/camvid

Prints the table of docs/results/ablation.md: validation scores after the last step, mean
and standard deviation over the seeds. `--jobs 2` trains two nets at a time, each on its
share of the cores. Called again, it goes on where it was; what follows `--` goes to
train.py.
"""

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("unpool", "bilinear", "transposed", "sum", "concat")
SCORES = ("miou", "mean_accuracy", "pixel_accuracy")


def train(part: str, seed: int, cores: set[int], options: argparse.Namespace) -> None:
    """Runs train.py to its end; its output lies beside the workdir."""
    workdir = options.workdir / f"{part}_{seed}"
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with open(workdir.with_suffix(".log"), "a") as log:
        subprocess.run(
            [
                sys.executable,
                str(ROOT / "train.py"),
                f"--config=configs/ablation.py:{part}",
                f"--workdir={workdir.resolve()}",
                f"--config.seed={seed}",
                f"--config.data.root={options.data_root.resolve()}",
                *options.arguments,
            ],
            check=True,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )


def train_all(options: argparse.Namespace) -> None:
    """Trains what is not trained yet, `options.jobs` nets at a time."""
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    # Seed by seed, so that what is there after an interruption can be compared.
    for seed in range(options.seeds):
        for part in PARTS:
            if scores(options.workdir / f"{part}_{seed}") is None:
                waiting.put((part, seed))
    cores = sorted(os.sched_getaffinity(0))
    failed = []

    def work(share: set[int]) -> None:
        while not waiting.empty() and not failed:
            part, seed = waiting.get()
            print(f"training {part}, seed {seed}", file=sys.stderr, flush=True)
            try:
                train(part, seed, share, options)
            except subprocess.CalledProcessError:
                failed.append(f"{part}_{seed}")

    threads = [
        threading.Thread(target=work, args=(set(cores[job :: options.jobs]),))
        for job in range(options.jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(
            f"error: train.py failed; see {options.workdir}/{failed[0]}.log"
        )


def scores(workdir: Path) -> dict[str, float] | None:
    """The scores after the last step, in percent; None if the run has not ended."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    ends = [values for line in lines if "val_miou" in (values := json.loads(line))]
    if not ends:
        return None
    return {name: 100 * ends[-1][f"val_{name}"] for name in SCORES}


def table(options: argparse.Namespace) -> str:
    """The scores of every part as mean ± standard deviation, in Markdown."""
    lines = ["| | " + " | ".join(SCORES) + " | each seed's mIoU |", "| --- " * 5 + "|"]
    for part in PARTS:
        runs = [
            scores(options.workdir / f"{part}_{seed}") for seed in range(options.seeds)
        ]
        cells = []
        for name in SCORES:
            values = [run[name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        each = ", ".join(f"{run['miou']:.1f}" for run in runs)
        lines.append(f"| {part} | {' | '.join(cells)} | {each} |")
    return "\n".join(lines)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("arguments", nargs="*", help="for train.py, after --")
    options = parser.parse_args()
    train_all(options)
    print(table(options))


if __name__ == "__main__":
    main()
