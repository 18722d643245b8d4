"""Trackers: what the config may name, and what each records and continues."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxseg
from jaxseg.training.metric_writer import MetricWriter
from jaxseg.training.trackers import Tracker, find_trackers
from jaxseg.utils import registry

IMAGE = np.full((4, 6, 3), 128, np.uint8)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Nothing that a test registers outlives it."""
    tables = {kind: dict(table) for kind, table in registry._REGISTERED.items()}
    monkeypatch.setattr(registry, "_REGISTERED", tables)


class Recorder:
    """Keeps its calls."""

    calls: list

    def __init__(self, workdir: Path, start: int, *, tag: str = "none"):
        type(self).calls = [("create", workdir.name, start, tag)]

    def config(self, values):
        self.calls.append(("config", dict(values)))

    def scalars(self, step, values):
        self.calls.append(("scalars", step, dict(values)))

    def image(self, step, name, image):
        self.calls.append(("image", step, name, image.shape))

    def finish(self):
        self.calls.append(("finish",))


def record(workdir, items, start=0):
    """Records two steps, of which the first is not finite, and an image."""
    create = find_trackers(items)
    with MetricWriter(workdir, start, steps=9, trackers=create) as writer:
        writer.config({"train.steps": 9, "data.options": None})
        writer.write(start + 1, {"loss": 0.5, "val_miou": np.nan})
        writer.write(start + 2, {"loss": 0.25, "val_iou": {"sky": 0.5}})
        writer.image(start + 2, "validation", IMAGE)


def test_a_registered_tracker_receives_finite_numbers(tmp_path):
    jaxseg.register("tracker", "recorder")(Recorder)
    record(tmp_path, [("recorder", {"tag": "x"})], start=3)
    assert Recorder.calls == [
        ("create", tmp_path.name, 3, "x"),
        ("config", {"train.steps": 9, "data.options": None}),
        ("scalars", 4, {"loss": 0.5}),
        ("scalars", 5, {"loss": 0.25}),
        ("image", 5, "validation", (4, 6, 3)),
        ("finish",),
    ]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["val_iou"] == {"sky": 0.5}


def test_a_tracker_finishes_after_an_error(tmp_path):
    jaxseg.register("tracker", "recorder")(Recorder)
    create = find_trackers(["recorder"])
    with (
        pytest.raises(RuntimeError),
        MetricWriter(tmp_path, 0, steps=9, trackers=create),
    ):
        raise RuntimeError
    assert Recorder.calls[-1] == ("finish",)


def test_another_process_creates_no_tracker_and_writes_nothing(tmp_path):
    jaxseg.register("tracker", "recorder")(Recorder)
    Recorder.calls = []
    create = find_trackers(["recorder"])
    with MetricWriter(tmp_path, 0, 9, trackers=create, silent=True) as writer:
        writer.write(1, {"loss": 0.5})
    assert Recorder.calls == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        (("tensorboard", {"folder": "x"}), "unexpected keyword argument 'folder'"),
        ({"project": "x"}, "neither the name of a tracker nor a pair"),
        (("wandb", "x"), "neither the name of a tracker nor a pair"),
    ],
)
def test_items_that_cannot_be(item, message):
    with pytest.raises(ValueError, match=message):
        find_trackers([item])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_the_pip_command(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ValueError, match=rf"pip install 'jaxseg\[{name}\]'"):
        find_trackers([name])


def test_packages_are_imported_only_when_a_tracker_is_created(monkeypatch):
    packages = ("tensorboardX", "wandb", "mlflow")
    for name in [x for x in sys.modules if x.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    find_trackers(["tensorboard"])
    assert not any(name in sys.modules for name in packages)


def test_tensorboard_hides_the_steps_that_are_run_again(tmp_path):
    from tensorboardX.proto import event_pb2

    record(tmp_path, ["tensorboard"])
    (written,) = (tmp_path / "tensorboard").iterdir()
    # A file of the same second would have the same name.
    first = written.rename(tmp_path / "first")
    record(tmp_path, ["tensorboard"], start=1)
    (second,) = (tmp_path / "tensorboard").iterdir()

    def events(path):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            yield event_pb2.Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]

    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events(first)
        for value in event.summary.value
        if not value.HasField("image")
    ]
    assert scalars == [(1, "loss", 0.5), (2, "loss", 0.25)]
    (start,) = [e.step for e in events(second) if e.HasField("session_log")]
    assert start == 2


def leveldb_log(content):
    """The records of a file in LevelDB's log format, which W&B writes."""
    record, at = b"", 0
    while at + 7 <= len(content):
        in_block = (at + 7) % 32768  # the file has a header of 7 bytes
        if in_block > 32768 - 7:
            at += 32768 - in_block
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_continues_its_run(tmp_path, monkeypatch):
    """In offline mode, by the files that `wandb sync` uploads."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 1):
        record(tmp_path, [("wandb", {"mode": "offline", "project": "roads"})], start)
        # A folder of the same second would have the same name.
        (tmp_path / "wandb").rename(tmp_path / f"{start}")
    files = sorted(tmp_path.glob("*/offline-run-*/*.wandb"))
    runs, history = [], []
    for path in files:
        for data in leveldb_log(path.read_bytes()[7:]):
            found = wandb_internal_pb2.Record.FromString(data)
            if found.HasField("run") and found.run.run_id:
                runs.append((found.run.run_id, found.run.project))
            if found.HasField("history"):
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in found.history.item
                }
                history.append((items["step"], items.get("loss")))
    run_id = (tmp_path / "wandb_run_id").read_text()
    assert set(runs) == {(run_id, "roads")} and len(files) == 2
    losses = [line for line in history if line[1] is not None]
    assert losses == [(1, 0.5), (2, 0.25), (2, 0.5), (3, 0.25)]
    assert len(history) == 6  # an image each time


def test_mlflow_continues_its_run(tmp_path, monkeypatch):
    """In a local file."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)  # where it writes images
    store = f"sqlite:///{tmp_path}/mlflow.db"
    for start in (0, 1):
        record(tmp_path, [("mlflow", {"tracking_uri": store})], start)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("jaxseg")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (tmp_path / "mlflow_run_id").read_text()
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "9"
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(x.step, x.value) for x in losses] == [
        (1, 0.5),
        (2, 0.25),
        (2, 0.5),
        (3, 0.25),
    ]
    images = client.list_artifacts(run.info.run_id, "images")
    assert any(x.path.endswith(".png") for x in images)


def test_the_protocol_is_what_the_trackers_have():
    def check(tracker: type[Tracker]) -> None:
        for method in ("config", "scalars", "image", "finish"):
            assert callable(getattr(tracker, method))

    for name in registry.names("tracker"):
        check(registry.lookup("tracker", name))
