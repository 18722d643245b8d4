"""Whole runs on drawn shapes: resuming, stopping, and what goes wrong."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from jaxseg import data, load, save
from jaxseg.checkpoints import manager
from jaxseg.checkpoints.lock import WorkdirInUseError
from jaxseg.checkpoints.run import find_step
from jaxseg.inference.evaluator import Evaluator
from jaxseg.inference.scorers import network
from jaxseg.parallel import mesh as mesh_module
from jaxseg.parallel.mesh import create_parallel
from jaxseg.training import trainer
from jaxseg.training.callbacks import Callback
from jaxseg.training.config import source_kwargs
from jaxseg.training.metric_writer import MetricWriter
from tests.helpers import tiny_config

ROOT = Path(__file__).parents[2]


def _config(prepared) -> ConfigDict:
    """Six steps of a very small network, evaluated after three and six."""
    config = tiny_config(prepared)
    config.train.ema_decay = 0.5
    config.train.log_every_steps = 2
    config.train.eval_every_steps = 3
    config.train.save_every_steps = 2
    return config


@pytest.fixture
def config(prepared):
    return _config(prepared)


def _metrics(workdir):
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    for line in lines:
        line.pop("images_per_second", None)
    return lines


def _leaves(workdir, step):
    _, variables, _ = load(workdir, str(step))
    return jax.tree.leaves(variables)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared):
    """The workdir of an undisturbed run of six steps."""
    workdir = tmp_path_factory.mktemp("finished")
    trainer.run(_config(prepared), str(workdir))
    return workdir


def test_a_run_leaves_what_it_promises(finished):
    assert [x["step"] for x in _metrics(finished) if "loss" in x] == [2, 3, 4, 6]
    assert [x["step"] for x in _metrics(finished) if "val_miou" in x] == [3, 6]
    assert all(np.isfinite(x["loss"]) for x in _metrics(finished) if "loss" in x)
    assert {path.name for path in (finished / "overlays").iterdir()} == {
        "step_0000003.png",
        "step_0000006.png",
    }
    assert list((finished / "tensorboard").iterdir())
    metadata = json.loads((finished / "metadata.json").read_text())
    assert metadata["model"]["name"] == "segnet"
    assert metadata["config"]["train"]["steps"] == 6
    assert metadata["versions"]["jax"] == jax.__version__
    assert len(metadata["class_names"]) == len(metadata["palette"]) == 6


def test_the_best_and_the_latest_are_kept(finished):
    steps = {int(path.name) for path in (finished / "checkpoints").iterdir()}
    scores = {x["step"]: x["val_miou"] for x in _metrics(finished) if "val_miou" in x}
    best = max(scores, key=lambda step: (scores[step], step))
    assert steps == {4, 6, best}
    assert find_step(finished, "best") == best
    assert find_step(finished, "latest") == 6
    with pytest.raises(ValueError, match=r"best, latest or one of .*4, 6"):
        find_step(finished, "5")


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_averaged_parameters_are_what_is_loaded(finished):
    """And what was evaluated: scoring them again gives the recorded mIoU."""
    saved = ocp.PyTreeCheckpointer().restore(finished / "checkpoints" / "6" / "state")
    model, variables, metadata = load(finished, "latest")
    for loaded, ema, params in zip(
        *map(jax.tree.leaves, (variables["params"], saved["ema"], saved["params"]))
    ):
        np.testing.assert_array_equal(loaded, ema)
        assert not np.array_equal(loaded, params)
    evaluator = Evaluator(
        network(model, metadata.normalization),
        num_classes=6,
        batch_size=4,
        parallel=create_parallel(data=1),
    )
    source = data.create_source(split="val", **metadata.data)
    confusion, _ = evaluator(variables, source)
    miou = confusion.compute(metadata.class_names)["miou"]
    assert miou == _metrics(finished)[-1]["val_miou"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_resumes(
    config, finished, tmp_path, monkeypatch, signum
):
    """Stopped after step 4 and resumed, a run is bit for bit the undisturbed one."""
    record = MetricWriter.train

    def interrupting(self, step, *args, **kwargs):
        record(self, step, *args, **kwargs)
        if step == 4:
            signal.raise_signal(signum)

    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "train", interrupting)
        with pytest.raises(trainer.Interrupted) as stop:
            trainer.run(config, str(tmp_path))
    assert stop.value.signum == signum
    assert find_step(tmp_path, "latest") == 5

    trainer.run(config, str(tmp_path))
    for a, b in zip(_leaves(finished, 6), _leaves(tmp_path, 6), strict=True):
        np.testing.assert_array_equal(a, b)
    evaluations = [x for x in _metrics(tmp_path) if "val_miou" in x]
    assert evaluations == [x for x in _metrics(finished) if "val_miou" in x]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("step", [3, 6])
def test_a_signal_during_an_evaluation_saves_the_state_before_it(
    config, finished, tmp_path, monkeypatch, capsys, step, recompute
):
    """The resumed run evaluates first, and ends bit for bit like an undisturbed one."""
    config.eval.recompute_batch_stats = recompute
    if recompute:
        finished = tmp_path / "finished"
        trainer.run(config, str(finished))
    evaluate, batches = trainer._Run._evaluate, []
    place = mesh_module.Parallel.place

    def interrupting(self, batch):
        batches.append(batch)
        if len(batches) == 2:
            signal.raise_signal(signal.SIGTERM)
        return place(self, batch)

    def watched(self, *args, **kwargs):
        with monkeypatch.context() as patch:
            if self.done == step:
                patch.setattr(mesh_module.Parallel, "place", interrupting)
            return evaluate(self, *args, **kwargs)

    workdir = tmp_path / "run"
    config.data.options["val_examples"] = 6
    config.eval.batch_size = 1
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "_evaluate", watched)
        with pytest.raises(trainer.Interrupted, match=f"saved after step {step}"):
            trainer.run(config, str(workdir))
    assert len(batches) < 5
    assert find_step(workdir, "latest") == step
    assert [x for x in _metrics(workdir) if "val_miou" in x and x["step"] == step] == []

    capsys.readouterr()
    result = trainer.run(config, str(workdir))
    assert f"step {step}: validation mIoU" in capsys.readouterr().out
    for a, b in zip(_leaves(finished, 6), _leaves(workdir, 6), strict=True):
        np.testing.assert_array_equal(a, b)
    evaluations = [x for x in _metrics(workdir) if "val_miou" in x]
    assert evaluations == [x for x in _metrics(finished) if "val_miou" in x]
    assert result["miou"] == evaluations[-1]["val_miou"]
    assert find_step(workdir, "best") == find_step(finished, "best")


def test_a_second_run_in_the_same_workdir_is_refused(config, tmp_path):
    class Second(Callback):
        def on_step(self, event):
            if event.step == 2:
                with pytest.raises(WorkdirInUseError, match=f"process {os.getpid()}"):
                    trainer.run(config, str(tmp_path))

    trainer.run(config, str(tmp_path), [Second()])
    assert [x["step"] for x in _metrics(tmp_path) if "loss" in x] == [2, 3, 4, 6]


def test_a_signal_at_the_end_of_a_stage_keeps_the_next_from_beginning(
    config, tmp_path, monkeypatch
):
    config.train.steps = 2
    config.stages = (("first", {}), ("second", {}))
    record = MetricWriter.train

    def interrupting(self, step, *args, **kwargs):
        record(self, step, *args, **kwargs)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MetricWriter, "train", interrupting)
    with pytest.raises(trainer.Interrupted, match="saved after step 2"):
        trainer.run(config, str(tmp_path))
    assert find_step(tmp_path / "first", "latest") == 2
    assert not (tmp_path / "second").exists()


def test_a_finished_run_is_scored_again_and_stays_as_it_is(config, finished, capsys):
    before = (finished / "metrics.jsonl").read_text()
    result = trainer.run(config, str(finished))
    assert (finished / "metrics.jsonl").read_text() == before
    assert result["miou"] == _metrics(finished)[-1]["val_miou"]
    assert "mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    "parallel",
    [
        {"backend": "pmap", "data": 4},
        {"backend": "shard_map", "data": 4},
        {"backend": "jit", "data": 2, "space": 2, "fsdp": True},
    ],
)
def test_four_devices_give_the_losses_of_one(
    config, finished, tmp_path, monkeypatch, parallel
):
    monkeypatch.setattr(mesh_module, "LEAST_SPLIT", 8)
    config.parallel.update(parallel)
    config.train.steps = 4
    trainer.run(config, str(tmp_path))  # then on, from what it saved, on one device
    config.parallel.update(backend="jit", data=1, space=1, fsdp=False)
    config.train.steps = 6
    trainer.run(config, str(tmp_path))
    losses = [
        [(x["step"], x["loss"]) for x in _metrics(workdir) if "loss" in x]
        for workdir in (finished, tmp_path)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_nothing_is_evaluated_or_saved_before_the_end_unless_asked(config, tmp_path):
    config.train.eval_every_steps = config.train.save_every_steps = 0
    config.train.log_every_steps = config.eval.overlays = 0
    trainer.run(config, str(tmp_path))
    assert [x["step"] for x in _metrics(tmp_path)] == [6, 6]
    assert not (tmp_path / "overlays").exists()
    assert load(tmp_path, 6)[2].step == 6  # a number will do for a step


def test_a_stage_of_fcn_starts_where_the_last_ended(config, tmp_path, capsys):
    """FCN-16s from FCN-32s: all is taken over, and the new skip's scores are zero."""
    config.model.kwargs = {
        "encoder_kwargs": {"widths": (2,) * 5, "depths": (1,) * 5},
        "hidden": 4,
    }
    config.optimizer.weight_decay = 0.0
    config.train.steps = 3
    still = {"train.steps": 1, "schedule.learning_rate": 1e-12}
    config.stages = (
        ("fcn32s", {"model.name": "fcn32s"}),
        ("fcn16s", {"model.name": "fcn16s"} | still),
    )
    trainer.run(config, str(tmp_path))
    assert (
        "not found there: params/decoder/skips_0/project/bias, "
        "params/decoder/skips_0/project/kernel; not used: nothing"
    ) in capsys.readouterr().out
    _, old, _ = load(tmp_path / "fcn32s")
    _, new, _ = load(tmp_path / "fcn16s")
    for path, leaf in jax.tree_util.tree_leaves_with_path(new["params"]):
        expected = old["params"]
        for key in path:
            expected = expected.get(key.key, 0 * leaf)
            if not isinstance(expected, dict):
                break
        np.testing.assert_allclose(leaf, expected, atol=1e-9)


def test_a_later_stage_is_refused_before_the_first_runs(config, tmp_path):
    config.stages = (("first", {}), ("second", {"model.name": "segnet_plus"}))
    with pytest.raises(ValueError, match="segnet_plus"):
        trainer.run(config, str(tmp_path))
    assert not (tmp_path / "first").exists()


def test_a_start_that_does_not_fit_is_refused(config, finished, tmp_path):
    config.init_from = str(finished)
    config.model.kwargs.width = 4
    with pytest.raises(ValueError, match=r"stage1/.*but must be"):
        trainer.run(config, str(tmp_path / "wide"))
    config.model.kwargs.width = 2
    config.normalization.mean = (0.0,)
    with pytest.raises(ValueError, match="give both, or neither"):
        trainer.run(config, str(tmp_path / "raw"))
    config.normalization.std = (1.0,)
    with pytest.raises(ValueError, match=r"Leave config\.normalization out"):
        trainer.run(config, str(tmp_path / "raw"))


def test_statistics_are_recomputed_over_the_training_set(config, finished, tmp_path):
    config.eval.recompute_batch_stats = True
    trainer.run(config, str(tmp_path))
    _, running, _ = load(finished, "latest")
    _, recomputed, _ = load(tmp_path, "latest")
    same = jax.tree.map(np.allclose, running, recomputed)
    assert all(jax.tree.leaves(same["params"]))
    assert not any(jax.tree.leaves(same["batch_stats"]))


def test_frozen_statistics_come_through_a_run_untouched(config, tmp_path):
    config.train.freeze_batch_stats = ("encoder/*",)
    config.train.steps = 3
    config.eval.recompute_batch_stats = True  # would otherwise touch them as well
    trainer.run(config, str(tmp_path))
    _, variables, _ = load(tmp_path, "latest")
    for stage in variables["batch_stats"]["encoder"].values():
        for layer in stage.values():
            assert np.all(layer["mean"] == 0) and np.all(layer["var"] == 1)
    decoder = jax.tree.leaves(variables["batch_stats"]["decoder"])
    assert not any(np.all(x == x.round()) for x in decoder)


def test_freezing_what_there_is_not_is_refused_in_time(config, tmp_path):
    config.train.freeze_batch_stats = ("backbone/*",)
    with pytest.raises(ValueError, match=r"'backbone/\*' .* encoder/stage1/bn1"):
        trainer.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config.optimizer.name = "sgd"
    config.schedule.name = "step"
    config.schedule.boundaries = (4,)
    config.schedule.decay = 1e38  # the fifth update throws every parameter away
    with pytest.raises(trainer.NonFiniteLossError, match="not finite at step 6") as e:
        trainer.run(config, str(tmp_path))
    assert "learning_rate" in str(e.value)
    assert find_step(tmp_path, "latest") == 4
    assert all(np.isfinite(x).all() for x in _leaves(tmp_path, 4))


def test_each_term_of_the_loss_is_logged(config, finished, tmp_path):
    config.loss.terms = (("cross_entropy", 1.0, {}), ("dice", 0.5, {"per": "batch"}))
    trainer.run(config, str(tmp_path))
    lines = [line for line in _metrics(tmp_path) if "loss" in line]
    single = next(line for line in _metrics(finished) if "loss" in line)
    assert {"loss_cross_entropy", "loss_dice"} == lines[0].keys() - single.keys()
    for line in lines:
        terms = line["loss_cross_entropy"] + line["loss_dice"]
        np.testing.assert_allclose(terms, line["loss"], rtol=1e-5)


def test_another_models_workdir_is_refused_and_left_alone(config, finished):
    before = (finished / "metadata.json").read_text()
    config.model.kwargs.width = 4
    with pytest.raises(ValueError, match=r"encoder/stage1/bn1/mean: \(2,\)") as error:
        trainer.run(config, str(finished))
    assert "config.model differs" in str(error.value)
    assert "more" in str(error.value)
    assert (finished / "metadata.json").read_text() == before


@pytest.mark.parametrize(
    "key, value, culprit",
    [
        ("train.ema_decay", 0.0, "train.ema_decay"),
        ("optimizer.name", "sgd", "optimizer"),
    ],
)
def test_what_made_the_state_another_is_named(config, finished, key, value, culprit):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=f"config.{culprit} differs"):
        trainer.run(config, str(finished))


def test_a_run_without_a_whole_checkpoint_begins_again_and_says_so(
    config, finished, tmp_path, capsys
):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    config.train.steps = 1
    trainer.run(config, str(tmp_path / "run"))
    assert "no complete checkpoint: starting over" in capsys.readouterr().out
    assert {line["step"] for line in _metrics(tmp_path / "run")} == {1}


def test_what_changed_since_the_last_start_is_said(config, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    trainer.run(config, str(tmp_path / "run"))
    assert "changes to the config" not in capsys.readouterr().out

    config.train.steps = 7
    config.seed = 5
    config.augment.crop_px = (8, 8)
    del config.data.options["val_examples"]
    trainer.run(config, str(tmp_path / "run"))
    said = capsys.readouterr().out.split("since the last start:\n")[1].splitlines()
    assert [line for line in said if "->" in line] == [
        "  augment.crop_px: None -> [8, 8]",
        "  data.options.val_examples: 6 -> absent",
        "  seed: 0 -> 5",
        "  train.steps: 6 -> 7",
    ]


def test_another_batch_size_is_refused_unless_accepted(
    config, finished, tmp_path, monkeypatch
):
    """Accepted, it goes on at the same image: none is left out and none comes twice."""
    shutil.copytree(finished, tmp_path / "run")
    config.train.steps = 7
    config.train.batch_size = 6
    with pytest.raises(ValueError, match=r"size of 4; now it is 6.*accept_batch_size"):
        trainer.run(config, str(tmp_path / "run"))

    places = []
    restore = data.TrainBatches.restore
    monkeypatch.setattr(
        data.TrainBatches,
        "restore",
        lambda self, place: places.append(dict(place)) or restore(self, place),
    )
    config.checkpoint.accept_batch_size = True
    trainer.run(config, str(tmp_path / "run"))
    assert places[-1] == {"next_sample": 24, "batch_size": 4}
    saved = tmp_path / "run/checkpoints/7/data/metadata"
    assert json.loads(saved.read_text()) == {"next_sample": 30, "batch_size": 6}


def test_a_checkpoint_of_an_older_version_is_not_called_damaged(
    config, finished, tmp_path
):
    shutil.copytree(finished, tmp_path / "run")
    place = tmp_path / "run/checkpoints/6/data/metadata"
    place.write_text('{"next_step": 6}')
    with pytest.raises(ValueError, match=r"older version.*--config\.init_from=") as e:
        trainer.run(config, str(tmp_path / "run"))
    assert not isinstance(e.value, manager.CorruptCheckpointError)


def _rename_classes(workdir, change):
    content = json.loads((workdir / "metadata.json").read_text())
    content["class_names"] = change(content["class_names"])
    (workdir / "metadata.json").write_text(json.dumps(content))


def test_a_run_is_not_resumed_with_other_classes(config, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    _rename_classes(tmp_path / "run", lambda names: names[::-1])
    before = (tmp_path / "run/metadata.json").read_bytes()
    config.train.steps = 8
    with pytest.raises(
        ValueError, match=r"class 0 is 'cross', not 'ground'.*init_head"
    ):
        trainer.run(config, str(tmp_path / "run"))
    assert (tmp_path / "run/metadata.json").read_bytes() == before


def test_a_head_for_other_classes_is_not_a_start(config, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "other")
    _rename_classes(tmp_path / "other", lambda names: [*names[:-1], "star"])
    config.init_from = str(tmp_path / "other")
    config.train.steps = 1
    with pytest.raises(ValueError, match=r"class 5 is 'star'.*config\.init_head"):
        trainer.run(config, str(tmp_path / "run"))
    config.init_head = "new"
    trainer.run(config, str(tmp_path / "run"))


def test_one_class_is_not_trained(config, tmp_path, monkeypatch):
    source = data.create_source(split="train", **source_kwargs(config))
    source.info = dataclasses.replace(source.info, class_names=("disc",))
    monkeypatch.setattr(data, "create_source", lambda *args, **kwargs: source)
    with pytest.raises(ValueError, match=r"config\.data: the only class is 'disc'"):
        trainer.run(config, str(tmp_path))


def test_weights_alone_are_no_run_to_go_on_with(config, finished, tmp_path):
    _, variables, metadata = load(finished)
    save(
        tmp_path / "weights",
        variables,
        model=metadata.model,
        normalization=metadata.normalization,
        class_names=metadata.class_names,
    )
    with pytest.raises(ValueError, match=r"no run .*init_from="):
        trainer.run(config, str(tmp_path / "weights"))


def test_checkpoints_set_aside_do_not_fall_into_each_other(tmp_path):
    (tmp_path / "corrupt_checkpoint_20").mkdir()
    (tmp_path / "corrupt_checkpoint_2_1").mkdir()
    with manager.CheckpointManager(tmp_path) as checkpoints:
        asides = []
        for _ in range(3):
            checkpoints.save(2, {"params": np.ones(3)}, {})
            checkpoints.wait()
            asides.append(checkpoints.set_aside(2).name)
    assert asides == [f"corrupt_checkpoint_2{end}" for end in ("", "_2", "_3")]
    assert all((tmp_path / name / "state").is_dir() for name in asides)


# Orbax reads arrays concurrently, and drops the errors of all but one.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_corrupt_latest_checkpoint(config, finished, tmp_path):
    """Stops and says how to go on; when told, goes on from the one before."""
    trainer.run(config, str(tmp_path))
    latest = tmp_path / "checkpoints" / "6" / "state"
    for path in latest.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(manager.CorruptCheckpointError) as error:
        trainer.run(config, str(tmp_path))
    assert "checkpoints/6" in str(error.value)
    assert "--config.checkpoint.fallback=True" in str(error.value)
    assert latest.exists()
    with pytest.raises(manager.CorruptCheckpointError, match="checkpoints/6"):
        load(tmp_path, "latest")

    config.checkpoint.fallback = True
    trainer.run(config, str(tmp_path))
    assert (tmp_path / "corrupt_checkpoint_6").is_dir()
    for a, b in zip(_leaves(finished, 6), _leaves(tmp_path, 6), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.name", "segnat", "did you mean 'segnet'"),
        ("model.kwargs", {"widht": 2}, "did you mean 'width'"),
        ("data.val_split", "tets", "has no split 'tets'"),
        ("loss.class_weights", "inverse", "median_frequency, segnet_camvid"),
        ("loss.class_weights", "segnet_camvid", "has 11 weights"),
        ("parallel.data", 3, "config.train: batch_size=4 is not divisible by the 3"),
        ("parallel.backend", "pmp", "jit, shard_map, pmap"),
        ("schedule.name", "linear", "constant, step, poly, cosine"),
        ("model.dtype", "int32", "float32, bfloat16 or float16"),
        ("data.image_size", (88,), r"data.image_size=\(88,\)"),
        ("augment.crop_px", (88,), "crop_px must be a height and a width"),
        ("train.steps", 0, "train.steps=0; it must be at least 1"),
        ("train.log_every_steps", -1, "at least 0"),
        ("train.ema_decay", 1.0, r"train.ema_decay=1.0; .* below 1"),
        ("optimizer.accumulate_steps", 0, "accumulate_steps=0; it must be at least 1"),
        (
            "optimizer.accumulate_steps",
            4,
            "train.steps=6 is not a multiple.*Use 4 steps",
        ),
        ("loss.chunks", 5, "config.loss: chunks.*divide the width 24"),
        ("parallel.space", 8, "does not fit the 4 devices"),
        ("eval.absent", "skip", "must be exclude or zero"),
        ("loss.name", "entropy", "config.loss: .*cross_entropy"),
        ("optimizer.lr_multipliers", (("x", 2.0),), "config.optimizer: .*'x'"),
        ("train.early_stopping_patience", -1, "early_stopping_patience=-1"),
    ],
)
def test_configs_that_cannot_be(config, tmp_path, key, value, message):
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(ValueError, match=message):
        trainer.run(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_normalization_for_other_channels_is_refused(config, tmp_path):
    config.normalization.mean = config.normalization.std = (100.0, 90.0)
    with pytest.raises(ValueError, match=r"images with 3 channels.*mean="):
        trainer.run(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_killed_and_resumed_equals_undisturbed():
    """Kill -9 at a random moment, in processes of their own."""
    seed = str(np.random.default_rng().integers(10**6))
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_resume", "--random=1", "--seed", seed],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, f"seed {seed}\n{result.stdout}{result.stderr}"
    assert "| 0 | equal | nothing |" in result.stdout
