"""What averages and refinements of a network's scores bring, and what they cost.

    python benchmarks/scoring.py --workdir runs/camvid --output table.md

Runs `jaxseg evaluate` on the validation split once for each way of scoring, each in a
process of its own, and prints mIoU, boundary F1, mIoU within five pixels of a boundary,
seconds an image (compilation included) and the process' peak memory. `--dropout-samples`
adds a row for a network that has dropout.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

METRICS = "--metrics=boundary,trimap,calibration"


def ways(options: argparse.Namespace) -> dict[str, list[str]]:
    """The rows of the table, with the options of `jaxseg evaluate`."""
    rows = {
        "plain": [],
        "test-time augmentation": ["--tta"],
        f"tiles of {options.tile}": [f"--tile={options.tile}"],
        "CRF, DeepLab's": ["--crf=deeplab"],
        "CRF, DeconvNet's": ["--crf=deconvnet"],
    }
    if options.dropout_samples:
        samples = options.dropout_samples
        rows[f"{samples} dropout masks"] = [f"--dropout-samples={samples}"]
    return rows


def measure(options: argparse.Namespace, arguments: list[str], folder: Path) -> dict:
    """The report of one way, with its peak memory in GiB."""
    report = folder / "report.json"
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(report)]
    command += [f"--workdir={options.workdir}", *options.data, METRICS, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(report.read_text())


def child(report: Path, arguments: list[str]) -> int:
    """Evaluates in this process, and adds its peak memory to the report."""
    from jaxseg import cli

    status = cli.main(["evaluate", f"--output={report}", *arguments])
    if status == 0:
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        content = json.loads(report.read_text()) | {"peak_gib": kib / 2**20}
        report.write_text(json.dumps(content))
    return status


def row(name: str, report: dict) -> str:
    """One line of the table."""
    figures = (
        report["miou"],
        report["boundary"]["either"]["boundary_f1"],
        report["trimap"]["5"]["miou"],
        report["calibration"]["ece"],
    )
    cells = [f"{100 * figure:.1f}" for figure in figures]
    cells += [f"{report['seconds'] / report['images']:.2f}"]
    cells += [f"{report['peak_gib']:.1f}"]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """See above."""
    if sys.argv[1:2] == ["--child"]:
        raise SystemExit(child(Path(sys.argv[2]), sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--tile", default="240x320")
    parser.add_argument("--dropout-samples", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="ROW", help="(default: all)")
    parser.add_argument("--output", type=Path, help="file for the table")
    parser.add_argument("data", nargs="*", help="for jaxseg evaluate, after --")
    options = parser.parse_args()
    lines = [
        "| | mIoU | boundary F1 | mIoU within 5 px | ECE | s an image | peak GiB |",
        "| --- " + "| ---: " * 6 + "|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows = ways(options)
        for name in options.only or rows:
            lines.append(row(name, measure(options, rows[name], Path(folder))))
            print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
