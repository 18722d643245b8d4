"""Opens damaged and hostile files, and checks that each is refused or read rightly.

    python -m benchmarks.fuzz --cases 10000 --seed 0 --output docs/results/fuzz.md
    python -m benchmarks.fuzz --target image --case 17

Every case makes one to four changes to small files that jaxseg wrote itself, and opens
them through the public functions. It passes if the result is right, or if the error is
a ValueError or an OSError that names the file. It fails otherwise: with any other
exception, a crash, a hang, too much memory, pages of output, or a change to a file
outside.

Case K of a target depends only on the seed, the target, K, and the corpus: the files
before the change. A run with `--case` uses the corpus of the last run.
"""

import argparse
import collections
import itertools
import os
import platform
import queue
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.fuzzing.corpus import build_corpus
from benchmarks.fuzzing.targets import TARGETS
from benchmarks.fuzzing.worker import ROOT, Outcome, Worker

CORPUS = ROOT / "runs" / "fuzz" / "corpus"


def shares(cases: int, target: str | None = None) -> Iterator[tuple[str, int]]:
    """The cases of a run, by target and number, in turn."""
    total = sum(t.share for t in TARGETS.values())
    counts = {name: round(cases * t.share / total) for name, t in TARGETS.items()}
    # Rounding goes to the target of most cases.
    counts["image"] += cases - sum(counts.values())
    if target is not None:
        counts = {target: cases}
    numbers = [[(name, k) for k in range(count)] for name, count in counts.items()]
    return itertools.chain.from_iterable(numbers)


def run(
    cases: Sequence[tuple[str, int]],
    *,
    seed: int = 0,
    jobs: int = 2,
    corpus: Path = CORPUS,
    seconds: float = 20,
    mebibytes: int = 2048,
    report: Callable[[str, int, Outcome], None] | None = None,
) -> list[tuple[str, int, Outcome]]:
    """Runs cases in worker processes.

    Args:
        cases: targets and numbers.
        seed: of the cases.
        jobs: number of processes.
        corpus: folder of `build_corpus`.
        seconds: that one case may take.
        mebibytes: by which memory may grow in one case.
        report: called with each outcome.

    Returns:
        Every case and its outcome, in any order.
    """
    waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    done: list[tuple[str, int, Outcome]] = []
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None

    def work(folder: Path) -> None:
        worker = Worker(folder, corpus, seed, (seconds, mebibytes))
        try:
            while True:
                try:
                    target, number = waiting.get_nowait()
                except queue.Empty:
                    return
                outcome = worker.run(target, number)
                done.append((target, number, outcome))
                if report is not None:
                    report(target, number, outcome)
        finally:
            worker.close()

    with tempfile.TemporaryDirectory(dir=shared, prefix="jaxseg-fuzz-") as folder:
        threads = [
            threading.Thread(target=work, args=(Path(folder, str(k)),))
            for k in range(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if len(done) < len(cases):
        raise RuntimeError("a worker did not start; see above")
    return done


def table(done: Sequence[tuple[str, int, Outcome]]) -> str:
    """The outcomes by target, in Markdown."""
    rows = [
        "| target | cases | right results | named errors | failures | slowest, s | "
        "memory, MiB |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for name in (*TARGETS, None):
        outcomes = [o for target, _, o in done if name in (None, target)]
        if not outcomes:
            continue
        verdicts = collections.Counter(o.verdict for o in outcomes)
        results, failures = verdicts.pop("result", 0), verdicts.pop("FAILURE", 0)
        errors = f"{sum(verdicts.values())}"
        if name is not None and verdicts:
            errors += f" ({', '.join(f'{k} {n}' for k, n in verdicts.most_common())})"
        rows.append(
            f"| {name or 'all'} | {len(outcomes)} | {results} | {errors} | {failures} | "
            f"{max(o.seconds for o in outcomes):.1f} | "
            f"{max(o.mebibytes for o in outcomes):.0f} |"
        )
    return "\n".join(rows) + "\n"


def describe_failures(done: Sequence[tuple[str, int, Outcome]], seed: int) -> str:
    """The kinds of failures: how many, the first message, and how to repeat it."""
    kinds: dict[tuple[str, str], list[tuple[int, Outcome]]] = {}
    for target, number, outcome in sorted(done, key=lambda case: case[:2]):
        if outcome.verdict == "FAILURE":
            # Messages differ between cases of a kind, but not what raised them.
            kind = outcome.message.partition("): ")[0]
            kind = re.sub("^(printed pages|memory grew).*", r"\1", kind, flags=re.S)
            kind = re.sub(r"/\S+|\d+\.\d+|'[^']*'", "*", kind)[:60]
            kinds.setdefault((target, kind), []).append((number, outcome))
    lines = []
    for (target, _), failures in kinds.items():
        number, outcome = min(failures, key=lambda f: (f[1].changes.count(";"), f[0]))
        lines.append(
            f"{target}: {len(failures)} cases: {outcome.message.strip()}\n"
            f"    changes: {outcome.changes}\n"
            f"    python -m benchmarks.fuzz --seed {seed} --target {target} "
            f"--case {number}\n"
        )
    return "\n".join(lines)


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, help="only this kind of input")
    parser.add_argument("--case", type=int, help="only this case, with its message")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    parser.add_argument("--seconds", type=float, default=20, help="limit of a case")
    parser.add_argument("--memory", type=int, default=2048, help="limit in MiB")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    one = args.case is not None
    if one and args.target is None:
        parser.error("--case needs --target")
    if not one or not args.corpus.is_dir():
        build_corpus(args.corpus)
    cases = list(shares(args.cases, args.target))
    if one:
        cases = [(args.target, args.case)]
    start = time.perf_counter()

    def show(target: str, number: int, outcome: Outcome) -> None:
        if one or outcome.verdict == "FAILURE":
            text = f"{target} {number}: {outcome.verdict}: {outcome.message.strip()}"
            print(
                f"{text if one else text[:200]!r} [{outcome.changes[:200]}]", flush=True
            )

    limits = {"seconds": args.seconds, "mebibytes": args.memory}
    done = run(
        cases,
        seed=args.seed,
        jobs=1 if one else args.jobs,
        corpus=args.corpus,
        report=show,
        **limits,
    )
    failures = sum(outcome.verdict == "FAILURE" for _, _, outcome in done)
    seconds = time.perf_counter() - start
    text = table(done)
    print(f"\n{text}\n{describe_failures(done, args.seed)}\n{seconds:.0f} seconds")
    if args.output is not None:
        _write(args.output, text, args, len(done), seconds)
    return int(failures > 0)


def _write(
    path: Path, rows: str, args: argparse.Namespace, cases: int, seconds: float
) -> None:
    from importlib.metadata import version

    from benchmarks.hardware import describe

    given = f"--cases {args.cases} --seed {args.seed}"
    path.write_text(
        f"""# Damaged and hostile files

Small files that jaxseg wrote are changed at random, and opened through the public
functions. "Right results" pass the checks of the target, and the input is unchanged;
"named errors" name the file. Everything else is a failure: other exceptions, crashes,
no end after {args.seconds:.0f} seconds, growth by more than {args.memory} MiB, pages of output, and
changes outside the input. Memory is the largest growth of the peak during one case.

* {cases} cases in {seconds:.0f} seconds, {args.jobs} processes
* {describe()}
* jax {version("jax")}, Python {platform.python_version()}; {time.strftime("%Y-%m-%d")}
* `python -m benchmarks.fuzz {given} --output {path}`

{rows}
Exports are the safetensors files among the weights; `.stablehlo` files are read by JAX,
not by jaxseg.
"""
    )


if __name__ == "__main__":
    sys.exit(main())
