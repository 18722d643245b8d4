"""The record of a run: metrics.jsonl, TensorBoard, and lines or a bar for the eye."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxseg.utils.files import write_atomically

METRICS = "metrics.jsonl"


class MetricWriter:
    """Writes down what happens at each step of a run.

    `metrics.jsonl` has one object a line, each with `step`; training lines have `loss`,
    evaluations `val_miou` and others. Lines after the step that a run resumes from are
    dropped, as those steps will be taken again.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        start: int,
        steps: int,
        silent: bool = False,
    ):
        """Opens the record.

        Args:
            workdir: folder of the run.
            start: step that the run resumes from, 0 for a new one.
            steps: last step of the run.
            silent: whether to write and say nothing, as another process does it.
        """
        self._silent = silent
        path = Path(os.devnull if silent else Path(workdir) / METRICS)
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_after(path, start)
        self._file = path.open("a")
        self._board = SummaryWriter(
            str(Path(workdir) / "tensorboard"),
            purge_step=start + 1,
            write_to_disk=not silent,
        )
        self._steps = steps
        self._at = (start, time.perf_counter())
        self._bar = None
        if sys.stderr.isatty() and not silent:
            self._bar = tqdm(total=steps, initial=start, unit="step", smoothing=0.1)

    def train(self, step: int, images: int, **scalars: float) -> None:
        """Records a training line.

        Args:
            step: the last step it speaks of.
            images: batch size, for images per second since the last line.
            **scalars: `loss` and others.
        """
        last, then = self._at
        self._at = step, time.perf_counter()
        seconds = (self._at[1] - then) / max(step - last, 1)
        scalars["images_per_second"] = images / seconds
        self.write(step, scalars)
        if self._bar is not None:
            rate = f"{scalars['images_per_second']:.1f} images/s"
            self._bar.set_postfix_str(f"loss {scalars['loss']:.4g}, {rate}", False)
            self._bar.update(step - self._bar.n)
        else:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            left = _clock(seconds * (self._steps - step))
            self.say(f"step {step}/{self._steps}  {shown}  left {left}")

    def write(self, step: int, values: dict) -> None:
        """Records values at a step; numbers among them go to TensorBoard too."""
        values = {name: _jsonable(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Records a picture, uint8 [H, W, 3], in TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")
        self._board.flush()

    def restart_clock(self) -> None:
        """Leaves the time since the last training line out of images per second."""
        self._at = self._at[0], time.perf_counter()

    def say(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(text)
        elif not self._silent:
            print(text, flush=True)

    def __enter__(self) -> "MetricWriter":
        """The logbook itself."""
        return self

    def __exit__(self, *error) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()
        if self._bar is not None:
            self._bar.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a workdir's `metrics.jsonl`; none if it was not trained."""
    path = Path(workdir) / METRICS
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:  # a run that is under way may be writing it
            continue
    return lines


def _drop_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except json.JSONDecodeError:  # the run was killed while it wrote this line
            continue
        kept.append(line + "\n")
    write_atomically(path, "".join(kept))


def _jsonable(value):
    """A number or a mapping of numbers as JSON knows them: NaN becomes null."""
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    value = float(value)
    return value if np.isfinite(value) else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
