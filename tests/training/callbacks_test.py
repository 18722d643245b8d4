"""Callbacks: what they see, how they stop a run, and what a resumed run restores."""

import json
import math
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

from jaxseg import load
from jaxseg.checkpoints.run import find_step
from jaxseg.training import setup, trainer
from jaxseg.training.callbacks import Callback, Callbacks, EarlyStopping, Event
from jaxseg.training.metric_writer import read_metrics
from jaxseg.training.step import train_step
from tests.helpers import tiny_config


@pytest.fixture
def config(prepared):
    """Six steps of a very small network, evaluated after every second one."""
    config = tiny_config(prepared)
    config.model.kwargs = {"width": 2, "depths": (1, 1)}
    config.data.options.update(train_examples=8, val_examples=2)
    config.trackers = ()
    config.train.batch_size = config.eval.batch_size = 2
    config.train.eval_every_steps = 2
    config.train.save_every_steps = 3
    config.eval.overlays = 0
    return config


class Recorder(Callback):
    """Keeps the steps that it has seen, also over a restart."""

    def __init__(self, stop_at=None):
        self.seen = []
        self.stop_at = stop_at

    def on_step(self, event):
        assert isinstance(event.metrics["loss"], jax.Array)
        self.seen.append(["step", event.step])
        if event.step == self.stop_at:
            self.stop_reason = "this is enough"

    def on_evaluation(self, event):
        assert 0 <= event.metrics["miou"] <= 1
        self.seen.append(["evaluation", event.step])

    def on_save(self, event):
        assert int(event.state.step) == event.step
        self.seen.append(["save", event.step])

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_events_come_in_order(config, tmp_path):
    recorder = Recorder()
    config.train.steps = 4
    trainer.run(config, str(tmp_path), callbacks=[recorder])
    assert recorder.seen == [
        ["step", 1],
        ["step", 2],
        ["evaluation", 2],
        ["save", 2],
        ["step", 3],
        ["save", 3],
        ["step", 4],
        ["evaluation", 4],
        ["save", 4],
    ]


def test_states_are_saved_and_an_older_checkpoint_has_none(config, tmp_path):
    config.train.steps = 2
    trainer.run(config, str(tmp_path), callbacks=[Recorder()])
    saved = json.loads((tmp_path / "checkpoints/2/data/metadata").read_text())
    expected = [["step", 1], ["step", 2], ["evaluation", 2]]
    assert saved["callbacks"] == {"Recorder": {"seen": expected}}

    config.train.steps = 3
    resumed, new = Recorder(), Recorder()
    new.seen = ["at the start"]
    trainer.run(config, str(tmp_path), callbacks=[resumed, new])
    after = [["step", 3], ["evaluation", 3], ["save", 3]]
    assert resumed.seen == [*expected, *after]
    assert new.seen == ["at the start", *after]


def test_what_a_callback_changes_does_not_change_the_run(config, tmp_path):
    class Vandal(Callback):
        def on_step(self, event):
            event.state.params.clear()
            with pytest.raises(TypeError):
                event.metrics["loss"] = 0.0
            with pytest.raises(AttributeError):
                event.step = 7

    config.train.steps = 2
    trainer.run(config, str(tmp_path / "plain"))
    trainer.run(config, str(tmp_path / "watched"), callbacks=[Vandal()])
    for a, b in zip(
        *(jax.tree.leaves(load(tmp_path / name)[1]) for name in ("plain", "watched")),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_run_stopped_at_a_step_evaluates_and_saves_it(config, tmp_path, capsys):
    trainer.run(config, str(tmp_path), callbacks=[Recorder(stop_at=5)])
    assert "stopped early after step 5: this is enough" in capsys.readouterr().out
    assert find_step(tmp_path, "latest") == 5
    assert [x["step"] for x in read_metrics(tmp_path) if "val_miou" in x] == [2, 4, 5]


@pytest.fixture
def no_progress(monkeypatch):
    """A network that never changes, and so never improves."""

    def still(state, batch, **kwargs):
        after, metrics = train_step(state, batch, **kwargs)
        return state.replace(step=after.step), metrics

    monkeypatch.setattr(setup, "train_step", still)


def test_early_stopping_by_config(config, tmp_path, capsys, no_progress):
    config.train.steps = 20
    config.train.early_stopping_patience = 2
    result = trainer.run(config, str(tmp_path))
    assert find_step(tmp_path, "latest") == 6
    assert "stopped early after step 6: no better miou" in capsys.readouterr().out

    before = (tmp_path / "metrics.jsonl").read_text()
    np.testing.assert_equal(trainer.run(config, str(tmp_path)), result)
    assert "stopped early after step 6: no better miou" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text() == before

    config.train.early_stopping_patience = 3
    trainer.run(config, str(tmp_path))
    assert find_step(tmp_path, "latest") == 8


def test_each_stage_stops_for_itself(config, tmp_path, no_progress):
    config.train.steps = 8
    config.stages = (("first", {}), ("second", {}))
    trainer.run(config, str(tmp_path), callbacks=[EarlyStopping(1)])
    assert find_step(tmp_path / "first", "latest") == 4
    assert find_step(tmp_path / "second", "latest") == 4


def scored(*values, patience=2, metric="miou", **kwargs):
    """Early stopping after evaluations of these values."""
    stopping = EarlyStopping(patience, metric, **kwargs)
    for step, value in enumerate(values, start=1):
        stopping.on_evaluation(
            Event(step, SimpleNamespace(), {"miou": value, "other": -value})
        )
    return stopping


@pytest.mark.parametrize(
    ("values", "kwargs", "stops"),
    [
        ((0.1, 0.2, 0.2), {}, False),
        ((0.1, 0.2, 0.2, 0.1), {}, True),
        ((0.1, 0.05, 0.2, 0.1), {}, False),
        ((0.1, 0.15, 0.15), {"min_delta": 0.1}, True),
        ((0.1, 0.15, 0.21), {"min_delta": 0.1}, False),
        ((math.nan, math.nan), {}, True),
        ((math.nan, 0.1, math.nan), {}, False),
        ((0.1, 0.2, 0.3), {"metric": "other"}, True),
    ],
)
def test_when_early_stopping_stops(values, kwargs, stops):
    stopping = scored(*values, **kwargs)
    assert (stopping.stop_reason is not None) == stops
    # By way of JSON, as in a checkpoint.
    again = EarlyStopping(2)
    again.load_state_dict(json.loads(json.dumps(stopping.state_dict())))
    assert again.stop_reason == (
        stopping.stop_reason and stopping.stop_reason.replace("other", "miou")
    )


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'f1'. Known: miou, other"):
        scored(0.5, metric="f1")


@pytest.mark.parametrize("kwargs", [{"patience": 0}, {"patience": 1, "min_delta": -1}])
def test_numbers_out_of_range(kwargs):
    with pytest.raises(ValueError, match="at least 1 and 0"):
        EarlyStopping(**kwargs)


def test_what_is_no_callback_or_has_no_json_is_refused_at_the_start():
    class Arrays(Callback):
        def state_dict(self):
            return {"array": np.ones(2)}

    with pytest.raises(ValueError, match="is not a callback"):
        Callbacks([EarlyStopping])
    with pytest.raises(ValueError, match=r"Arrays must hold JSON"):
        Callbacks([Arrays()])


@pytest.mark.parametrize("backend", ["jit", "shard_map", "pmap"])
def test_a_step_is_traced_once_in_a_run_with_evaluations(
    config, tmp_path, monkeypatch, backend
):
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(setup.train_step, n=1)
    monkeypatch.setattr(setup, "train_step", counted)
    config.parallel.backend = backend
    config.parallel.data = 2
    config.eval.recompute_batch_stats = True
    config.train.steps = 4
    trainer.run(config, str(tmp_path), callbacks=[Recorder()])
