"""Resumes a workdir of version 0.1 and compares the end of the run bit for bit.

    JAX_NUM_CPU_DEVICES=4 python -m benchmarks.migration

The fixture of `tests/checkpoints/migration_test.py` is a run of commit 4fea102 that was
stopped after 5 of 8 steps, with the metrics and parameters of the same run undisturbed.
It was made with four fake devices, and CPU threads divide the work by their number.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from jaxseg import load
from jaxseg.training import run
from jaxseg.training.metric_writer import read_metrics
from jaxseg.utils.trees import flatten
from tests.checkpoints.migration_test import create_config, unpack


def main() -> None:
    """Prints how many arrays and metrics differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(folder)
        run(create_config(folder), str(folder / "workdir"))
        leaves = flatten(load(folder / "workdir", "latest")[1])
        stored = np.load(folder / "expected.npz")
        differing = [n for n, leaf in leaves.items() if np.any(leaf != stored[n])]
        lines = (folder / "metrics_full.jsonl").read_text().splitlines()
        expected = [json.loads(line) for line in lines]
        metrics = read_metrics(folder / "workdir")
    for line in (*metrics, *expected):
        line.pop("images_per_second", None)
    missing = [line for line in expected if line not in metrics]
    print(f"{len(leaves)} arrays, {len(differing)} differ: {differing}")
    print(f"{len(expected)} lines of metrics, {len(missing)} differ: {missing}")


if __name__ == "__main__":
    main()
