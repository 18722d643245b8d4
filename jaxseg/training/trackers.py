"""Trackers: where the metrics and images of a run are recorded.

`metrics.jsonl` is always written, by the `MetricWriter`; trackers are what the config
names besides. A tracker's package is imported when a run uses it; wandb and mlflow are
optional extras, which type checkers may not find.
"""

import importlib.util
import inspect
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxseg.utils import registry
from jaxseg.utils.files import named, write_atomically


class Tracker(Protocol):
    """A destination of metrics, created as `Tracker(workdir, start, **kwargs)`.

    `workdir` is the `Path` of the run's folder, and `start` the step that the run
    resumes from, 0 for a new run. Only the first process of a run has trackers.
    """

    def config(self, values: Mapping[str, Any]) -> None:
        """Records what the run is started with, once.

        Args:
            values: JSON values by dotted names, such as "train.steps".
        """
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records finite numbers by name, such as "loss" and "val_miou", at a step."""
        ...

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Records an image, uint8 [H, W, 3], at a step."""
        ...

    def finish(self) -> None:
        """Writes what is left and closes; called once, also after an error."""
        ...


class TensorBoard:
    """Event files in the workdir's folder `tensorboard`, for TensorBoard.

    Events after the step that a run resumes from are hidden, as those steps are run
    again.
    """

    package = install = "tensorboardX"

    def __init__(self, workdir: Path, start: int):
        """Opens a new file of events."""
        # Not its SummaryWriter, whose thread ends when the disk is full: the run would
        # wait for it forever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._folder = workdir / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        # The name has the time in seconds, and the clock may have been set back.
        suffix = f".{uuid.uuid4().hex}"
        with self._written():
            self._writer = EventsWriter(str(self._folder / "events"), suffix)
            self._event: Any = event_pb2.Event  # pyright: ignore  # generated
            log: Any = event_pb2.SessionLog  # pyright: ignore  # generated
            self._write(start + 1, session_log=log(status=log.START))

    def config(self, values: Mapping[str, Any]) -> None:
        """Does nothing: the workdir holds the config already."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers at a step."""
        from tensorboardX.summary import scalar

        with self._written():
            for name, value in values.items():
                self._write(step, summary=scalar(name, value))
            self._writer.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Records an image at a step."""
        from tensorboardX.summary import image as summary_of

        with self._written():
            summary = summary_of(name, image, dataformats="HWC")
            self._write(step, summary=summary)
            self._writer.flush()

    def finish(self) -> None:
        """Closes the file."""
        with self._written():
            self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        self._writer.write_event(event)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise named(error, self._folder) from error


class WandB:
    """A run of Weights & Biases.

    The workdir keeps its id, so that a resumed run continues the same run there. W&B
    cannot take back what it has received: steps that are run again appear twice.
    """

    package, install = "wandb", "jaxseg[wandb]"

    def __init__(
        self, workdir: Path, start: int, *, project: str = "jaxseg", **kwargs: Any
    ):
        """Starts or continues the run.

        Args:
            workdir: folder of the run; local files go to its folder `wandb`.
            start: step that the run resumes from.
            project: name of the project.
            **kwargs: others of `wandb.init`, such as `entity`, `tags` or
                `mode="offline"`.
        """
        import wandb  # pyright: ignore[reportMissingImports]

        del start
        stored = workdir / "wandb_run_id"
        given: dict[str, Any] = {"dir": str(workdir), "name": workdir.name, **kwargs}
        if stored.is_file():
            given |= {"id": stored.read_text(), "resume": "allow"}
        self._make_image = wandb.Image
        self._run = wandb.init(project=project, **given)
        write_atomically(stored, self._run.id)
        # W&B's own step can only grow, so a resumed run could not log earlier steps.
        self._run.define_metric("*", step_metric="step")

    def config(self, values: Mapping[str, Any]) -> None:
        """Records the config, which may differ from that of the earlier start."""
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers at a step."""
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Records an image at a step."""
        self._run.log({"step": step, name: self._make_image(image)})

    def finish(self) -> None:
        """Waits until all is sent, or written in offline mode."""
        self._run.finish()


class MLflow:
    """A run of MLflow.

    The workdir keeps its id, so that a resumed run continues the same run there. Steps
    that are run again have two values.
    """

    package, install = "mlflow", "jaxseg[mlflow]"

    def __init__(
        self,
        workdir: Path,
        start: int,
        *,
        experiment: str = "jaxseg",
        run_name: str | None = None,
        tracking_uri: str | None = None,
    ):
        """Starts or continues the run.

        Args:
            workdir: folder of the run.
            start: step that the run resumes from.
            experiment: name of the experiment; created if it does not exist.
            run_name: name of the run; by default that of the workdir.
            tracking_uri: server or folder; by default what MLflow is configured for,
                such as by MLFLOW_TRACKING_URI.
        """
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        del start
        self._client = MlflowClient(tracking_uri)
        stored = workdir / "mlflow_run_id"
        self._is_new = not stored.is_file()
        if self._is_new:
            found = self._client.get_experiment_by_name(experiment)
            run = self._client.create_run(
                found.experiment_id
                if found is not None
                else self._client.create_experiment(experiment),
                run_name=run_name or workdir.name,
            )
            self._run_id = run.info.run_id
            write_atomically(stored, self._run_id)
        else:
            self._run_id = stored.read_text()
            self._client.update_run(self._run_id, status="RUNNING")

    def config(self, values: Mapping[str, Any]) -> None:
        """Records the config as a file, and that of the first start as parameters."""
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        self._client.log_dict(self._run_id, dict(values), "config.json")
        if self._is_new:  # MLflow refuses to change a parameter
            params = [Param(name, str(value)[:500]) for name, value in values.items()]
            for first in range(0, len(params), 100):  # its limit for one request
                self._client.log_batch(self._run_id, params=params[first : first + 100])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers at a step."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = time.time_ns() // 1_000_000
        self._client.log_batch(
            self._run_id,
            metrics=[Metric(name, value, now, step) for name, value in values.items()],
        )

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Records an image at a step."""
        self._client.log_image(
            self._run_id, image, key=name, step=step, synchronous=True
        )

    def finish(self) -> None:
        """Ends the run."""
        self._client.set_terminated(self._run_id)


TRACKERS = {"mlflow": MLflow, "tensorboard": TensorBoard, "wandb": WandB}

registry.add_built_in("tracker", TRACKERS)

CreateTracker = Callable[[Path, int], Tracker]
"""Called with the workdir and the step that the run resumes from."""


def find_trackers(items: Sequence[Any]) -> tuple[CreateTracker, ...]:
    """Looks trackers up, without creating any.

    Args:
        items: names, or pairs of a name and keyword arguments.

    Returns:
        A function for each, which creates the tracker.

    Raises:
        ValueError: if an item is neither, a name is unknown, a keyword argument is not
            accepted, or a package is not installed.
    """
    return tuple(_find_tracker(item) for item in items)


def _find_tracker(item: Any) -> CreateTracker:
    name, kwargs = (item, {}) if isinstance(item, str) else (None, None)
    if isinstance(item, list | tuple) and len(item) == 2:
        name, kwargs = item
    if not isinstance(name, str) or not isinstance(kwargs, Mapping):
        raise ValueError(
            f"{item!r} is neither the name of a tracker nor a pair of a name and "
            'keyword arguments, such as ("wandb", {"project": "roads"}).'
        )
    tracker = registry.lookup("tracker", name)
    package = getattr(tracker, "package", None)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"The tracker {name!r} needs the package {package}, which is not "
            f"installed: pip install '{tracker.install}'"
        )
    try:
        inspect.signature(tracker).bind(Path(), 0, **kwargs)
    except TypeError as error:
        raise ValueError(f"The tracker {name!r} cannot be created: {error}.") from error
    return partial(tracker, **kwargs)
