"""Validation during training: results in the metrics, predictions as overlays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data import Source
from jaxseg.inference.evaluator import Evaluator
from jaxseg.models.variables import Variables
from jaxseg.training.metric_writer import MetricWriter
from jaxseg.visualization import overlays

RECORDED = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "iou")
"""Results that are recorded, as `val_miou` and so on."""


class Validation:
    """Evaluates a network on the validation split, and records the results."""

    def __init__(
        self,
        evaluator: Evaluator,
        source: Source,
        *,
        absent: str,
        overlays: int,
        processes: int,
        folder: Path,
    ):
        """Prepares the validation.

        Args:
            evaluator: for the network.
            source: the validation split.
            absent: how absent classes are treated; see `Confusion.compute`.
            overlays: number of images whose predictions are shown.
            processes: number of processes that the records are divided among.
            folder: for the overlays.
        """
        self._evaluator, self._source = evaluator, source
        self._absent = absent
        self._overlays = overlays
        # This process evaluates every n-th record, so its first ones are among these.
        self._candidates = overlays * processes
        self._folder = folder

    def __call__(
        self,
        variables: Variables,
        writer: MetricWriter,
        step: int,
        *,
        record: bool = True,
        signum: Callable[[], int] = lambda: 0,
    ) -> dict[str, Any]:
        """Evaluates the network.

        Args:
            variables: of the network.
            writer: records the results.
            step: number of steps so far.
            record: whether to record the results and show predictions.
            signum: see `Evaluator`.

        Returns:
            The results, from `Confusion.compute`.

        Raises:
            EvaluationStopped: see `Evaluator`.
        """
        shown: dict[int, tuple[np.ndarray, np.ndarray]] = {}

        def watch(index: int, prediction: np.ndarray, label: np.ndarray) -> None:
            if index < self._candidates:
                shown[index] = label, prediction

        watched = record and self._candidates
        confusion, _ = self._evaluator(
            variables,
            self._source,
            watch=watch if watched else None,
            signum=signum,
        )
        info = self._source.info
        result = confusion.compute(info.class_names, absent=self._absent)
        if record:
            writer.write(step, {f"val_{name}": result[name] for name in RECORDED})
            writer.print(
                f"step {step}: validation mIoU {result['miou']:.4f}, pixel accuracy "
                f"{result['pixel_accuracy']:.4f}"
            )
        if shown:
            self._write_overlays(writer, step, sorted(shown.items())[: self._overlays])
        return result

    def _write_overlays(
        self,
        writer: MetricWriter,
        step: int,
        shown: list[tuple[int, tuple[np.ndarray, np.ndarray]]],
    ) -> None:
        panel = overlays.validation_panel(
            [self._source[index]["image"] for index, _ in shown],
            [label for _, (label, _) in shown],
            [prediction for _, (_, prediction) in shown],
            self._source.info.palette,
            self._source.info.class_names,
        )
        writer.image(step, "validation", panel)
        self._folder.mkdir(exist_ok=True)
        overlays.write_png(self._folder / f"step_{step:07}.png", panel)
