"""The metrics of a run: metrics.jsonl, trackers, and log lines or a progress bar."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxseg.training.trackers import CreateTracker
from jaxseg.utils.files import named, read_file, write_atomically
from jaxseg.utils.json_file import parse_json
from jaxseg.utils.text import direct

METRICS = "metrics.jsonl"

MAX_BYTES = 2**30
"""Largest file of metrics that is read."""

MAX_STEP = 2**53
"""Largest step; larger integers are not exact in JavaScript, which draws the curves."""


class MetricWriter:
    """Records what happens at each step of a run.

    `metrics.jsonl` has one JSON object per line, each with `step`; training lines have
    `loss`, evaluations have `val_miou` and others. When a run resumes, the lines after
    the step that it resumes from are dropped, as those steps are run again.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        start: int,
        steps: int,
        trackers: Sequence[CreateTracker] = (),
        silent: bool = False,
        evaluates: bool = False,
    ):
        """Opens the files and creates the trackers.

        Args:
            workdir: folder of the run.
            start: step that the run resumes from, 0 for a new run.
            steps: last step of the run.
            trackers: create the trackers.
            silent: whether to write and print nothing, and create no tracker, because
                another process does.
            evaluates: whether the evaluation of the step `start` is to come.
        """
        self._silent = silent
        self._steps = steps
        self._last = (start, time.perf_counter())
        self._open = ExitStack()
        path = Path(os.devnull if silent else Path(workdir) / METRICS)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not silent:
            _drop_after(path, start, evaluates)
        self._file = self._open.enter_context(path.open("ab", buffering=0))
        self._trackers = []
        for create in () if silent else trackers:
            self._trackers.append(create(Path(workdir), start))
            self._open.callback(self._trackers[-1].finish)
        self._bar = None
        if sys.stderr.isatty() and not silent:
            self._bar = tqdm(
                total=steps,
                initial=start,
                unit="step",
                smoothing=0.1,
                file=direct(sys.stderr),
            )
            self._open.callback(self._bar.close)

    def config(self, values: Mapping[str, Any]) -> None:
        """Records what the run is started with, by dotted names, in the trackers."""
        for tracker in self._trackers:
            tracker.config(values)

    def train(self, step: int, images: int, **scalars: float) -> None:
        """Records the progress of training.

        Args:
            step: the last step that the numbers are about.
            images: global batch size, for the images per second since the last line.
            **scalars: `loss` and others.
        """
        last, then = self._last
        self._last = step, time.perf_counter()
        seconds = (self._last[1] - then) / max(step - last, 1)
        scalars["images_per_second"] = images / seconds
        self.write(step, scalars)
        if self._bar is not None:
            rate = f"{scalars['images_per_second']:.1f} images/s"
            self._bar.set_postfix_str(f"loss {scalars['loss']:.4g}, {rate}", False)
            self._bar.update(step - self._bar.n)
        else:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            left = _clock(seconds * (self._steps - step))
            self.print(f"step {step}/{self._steps}  {shown}  left {left}")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Records numbers, or mappings of numbers, at a step.

        The trackers receive only the finite numbers.
        """
        values = {name: _to_json(value) for name, value in values.items()}
        try:
            # Unbuffered, so that a full disk is noticed here and not when it is closed.
            line = (json.dumps({"step": step} | values) + "\n").encode()
            while line:  # the system may write only a part
                line = line[self._file.write(line) :]
        except OSError as error:
            raise named(error, self._file.name) from error
        scalars = {k: v for k, v in values.items() if isinstance(v, float)}
        for tracker in self._trackers:
            tracker.scalars(step, scalars)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Records an image, uint8 [H, W, 3], in the trackers."""
        for tracker in self._trackers:
            tracker.image(step, name, image)

    def restart_clock(self) -> None:
        """Leaves the time since the last training line out of images per second."""
        self._last = self._last[0], time.perf_counter()

    def print(self, text: str) -> None:
        """Prints a line without disturbing the progress bar."""
        if self._bar is not None:
            self._bar.write(text)
        elif not self._silent:
            print(text, flush=True)

    def __enter__(self) -> "MetricWriter":
        """Returns itself."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Closes the files and finishes the trackers."""
        self._open.__exit__(*error)


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the lines of a workdir's `metrics.jsonl`; none if there is no such file.

    Lines that are damaged, or have no step, are left out: a run in progress may be
    writing one.
    """
    path = Path(workdir) / METRICS
    if not path.is_file():
        return []
    lines = map(_parse, read_file(path, MAX_BYTES).split(b"\n"))
    return [line for line in lines if line is not None]


def _drop_after(path: Path, step: int, evaluates: bool = False) -> None:
    """Drops the lines after a step, and the line that a killed run left unfinished.

    With `evaluates`, the evaluation of the step is dropped too.
    """
    if not path.is_file():
        if path.is_symlink() or path.exists():
            raise ValueError(f"{path}: not a regular file; remove it")
        return
    *lines, unfinished = read_file(path, MAX_BYTES).split(b"\n")
    if _parse(unfinished) is not None:
        lines.append(unfinished)
    kept = []
    for line in lines:
        # A line that is not of jaxseg may be of use to its writer.
        parsed = _parse(line) or {"step": step}
        evaluation = parsed["step"] == step and "val_miou" in parsed
        if parsed["step"] <= step and not (evaluates and evaluation):
            kept.append(line + b"\n")
    write_atomically(path, b"".join(kept))


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line of `metrics.jsonl`; None if it is damaged, or has no step."""
    try:
        values = parse_json(line, METRICS)
    except ValueError:
        return None
    step = values.get("step") if isinstance(values, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        return None
    return values if 0 <= step <= MAX_STEP else None


def _to_json(value: Any) -> Any:
    """A number, or a mapping of numbers, as JSON values: NaN becomes null."""
    if isinstance(value, dict):
        return {name: _to_json(item) for name, item in value.items()}
    value = float(value)
    return value if np.isfinite(value) else None


def _clock(seconds: float) -> str:
    """A duration as H:MM:SS or M:SS."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
