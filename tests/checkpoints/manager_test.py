"""What a kill, a full disk or other people leave in the folder of checkpoints."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.checkpoints import (
    CheckpointManager,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
)
from jaxseg.checkpoints.manager import CheckpointWriteError, corrupt
from jaxseg.checkpoints.run import find_step

STATE = {"step": jnp.int32(0), "a": jnp.arange(4.0)}


def _save(workdir, *steps, size=4):
    with CheckpointManager(workdir) as checkpoints:
        for step in steps:
            state = {"step": jnp.int32(step), "a": step + jnp.arange(float(size))}
            checkpoints.save(step, state, {"next_sample": step, "batch_size": 1})


def _restore(workdir):
    with CheckpointManager(workdir) as checkpoints:
        found = checkpoints.restore_latest(
            STATE, batch_size=1, fallback=False, accept_batch_size=False
        )
    assert found is not None
    return found


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    _save(workdir, 1, 2)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["3", "007", "100000000000000000", "٣"])
@pytest.mark.parametrize("content", ["nothing", "half", "foreign"])
def test_folders_that_are_not_checkpoints_do_not_block(workdir, capsys, name, content):
    folder = workdir / "checkpoints" / name
    match content:
        case "nothing":
            folder.mkdir()
        case "half":
            shutil.copytree(workdir / "checkpoints" / "2", folder)
            (folder / "_CHECKPOINT_METADATA").unlink()
        case "foreign":
            folder.mkdir()
            (folder / "thesis.txt").write_text("mine")
    assert find_step(workdir, "latest") == 2
    state, position = _restore(workdir)
    assert state["step"] == 2 and position["next_sample"] == 2
    moved = workdir / f"incomplete_checkpoint_{name}"
    assert str(moved) in capsys.readouterr().out
    assert moved.is_dir() and not folder.exists()
    if content == "foreign":
        assert (moved / "thesis.txt").read_text() == "mine"
    _save(workdir, 3)
    assert find_step(workdir, "latest") == 3


def test_a_checkpoint_is_renamed_before_its_files_are_deleted(workdir, monkeypatch):
    """Otherwise a kill in between would leave half a checkpoint under its name."""
    whole = sorted(p.name for p in (workdir / "checkpoints" / "1").rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "_empty_deleted", lambda self: None)
        _save(workdir, 3, 4)
    assert _names(workdir / "checkpoints") == [".deleted", "3", "4"]
    renamed = workdir / "checkpoints" / ".deleted"
    assert _names(renamed) == ["1", "2"]
    assert sorted(p.name for p in (renamed / "1").rglob("*")) == whole
    _save(workdir, 5)
    assert _names(workdir / "checkpoints") == ["4", "5"]


def test_the_rest_of_a_killed_deletion_is_collected(workdir):
    rest = workdir / "checkpoints" / ".deleted"
    shutil.copytree(workdir / "checkpoints" / "1" / "data", rest / "0" / "data")
    assert _restore(workdir)[0]["step"] == 2
    assert _names(workdir / "checkpoints") == ["1", "2"]


@pytest.mark.parametrize("finished", [False, True])
def test_a_replacement_that_was_killed_loses_nothing(workdir, finished):
    checkpoints = workdir / "checkpoints"
    shutil.copytree(checkpoints / "2", checkpoints / "2.replaced")
    if not finished:
        shutil.rmtree(checkpoints / "2")
    assert _restore(workdir)[0]["step"] == 2
    assert _names(checkpoints) == ["1", "2"]


def test_a_checkpoint_can_be_replaced(workdir):
    with CheckpointManager(workdir) as checkpoints:
        state = {"step": jnp.int32(2), "a": jnp.zeros(4)}
        checkpoints.replace(2, state, {"next_sample": 7, "batch_size": 1}, miou=0.5)
    assert _names(workdir / "checkpoints") == ["1", "2"]
    state, position = _restore(workdir)
    np.testing.assert_array_equal(state["a"], np.zeros(4))
    assert position["next_sample"] == 7
    metrics = workdir / "checkpoints" / "2" / "metrics" / "metrics"
    assert json.loads(metrics.read_text()) == {"miou": 0.5}


@pytest.mark.parametrize(
    "position",
    [None, [], {"batch_size": 1}, {"batch_size": 1, "next_sample": -1}]
    + [{"batch_size": "1", "next_sample": 0}, {"batch_size": 1, "next_sample": 0.5}]
    + [{"batch_size": 1, "next_sample": 0, "callbacks": 3}],
)
def test_a_damaged_position_names_its_checkpoint(workdir, position):
    file = workdir / "checkpoints" / "2" / "data" / "metadata"
    file.write_text(json.dumps(position))
    with pytest.raises(CorruptCheckpointError, match="checkpoints/2"):
        _restore(workdir)


@pytest.mark.parametrize(
    "metrics", ["3", "{", "null", '{"miou": "x"}', '{"miou": null}']
)
def test_a_damaged_miou_is_named_before_anything_is_saved(workdir, metrics):
    (workdir / "checkpoints" / "1" / "metrics" / "metrics").write_text(metrics)
    with pytest.raises(CorruptCheckpointError, match="checkpoints/1/metrics/metrics"):
        _save(workdir, 3)
    assert _names(workdir / "checkpoints") == ["1", "2"]


def test_a_checkpoint_under_another_step_is_refused(workdir):
    (workdir / "checkpoints" / "2").rename(workdir / "checkpoints" / "5")
    with pytest.raises(CorruptCheckpointError, match=r"checkpoints/5.*another step"):
        _restore(workdir)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_keeps_the_last_checkpoint(mount_disk, capfd):
    small_disk = mount_disk(2**20)
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    with (
        pytest.raises(CheckpointWriteError) as error,
        CheckpointManager(small_disk) as checkpoints,
    ):
        for step in range(1, 9):
            state = {"step": jnp.int32(step), "a": jnp.asarray(values)}
            checkpoints.save(step, state, {"next_sample": step, "batch_size": 1})
    kept = find_step(small_disk, "latest")
    assert error.value.strerror is not None
    assert "No space left on device" in error.value.strerror
    assert f"{kept} are intact" in error.value.strerror
    assert error.value.filename == str(small_disk / "checkpoints")
    assert _names(small_disk / "checkpoints") == [str(kept - 1), str(kept)]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics/metrics", "text"),
        ("metrics/metrics", "bytes"),
        ("metrics/metrics", "number"),
        ("metrics/metrics", "pipe"),
        ("metrics/metrics", "endless"),
        ("_CHECKPOINT_METADATA", "number"),
        ("_CHECKPOINT_METADATA", "pipe"),
        ("data/metadata", "text"),
        ("data/metadata", "number"),
        ("data/metadata", "endless"),
    ],
)
def test_a_damaged_description_is_named(workdir, name, content):
    path = workdir / "checkpoints" / "2" / name
    path.unlink()
    match content:
        case "text":
            path.write_text("{")
        case "bytes":
            path.write_bytes(b"\xff")
        case "number":
            path.write_text("3")
        case "pipe":
            os.mkfifo(path)
        case "endless":
            path.symlink_to("/dev/zero")
    with pytest.raises(CorruptCheckpointError, match=str(workdir)):
        _restore(workdir)


def test_a_description_too_large_for_memory_is_named(workdir):
    path = workdir / "checkpoints" / "2" / "state" / "manifest.ocdbt"
    os.truncate(path, 2**40)
    with pytest.raises(CorruptCheckpointError, match=r"manifest\.ocdbt is too large"):
        _restore(workdir)


def test_arrays_read_late_are_silent_and_other_errors_are_not(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "__unraisablehook__", shown.append)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    corrupt(Path("checkpoint"))
    sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError("Event loop is closed")))
    assert not shown
    other = SimpleNamespace(exc_value=RuntimeError("another"))
    sys.unraisablehook(other)
    assert shown == [other]


def test_another_batch_size_names_the_checkpoint(workdir):
    with (
        CheckpointManager(workdir) as checkpoints,
        pytest.raises(
            IncompatibleCheckpointError, match=r"checkpoints/2 .* of 1; .* 3"
        ),
    ):
        checkpoints.restore_latest(
            STATE, batch_size=3, fallback=False, accept_batch_size=False
        )


def test_a_link_to_a_folder_in_a_checkpoint_is_refused(workdir):
    """A pipe behind it would be waited for."""
    step = workdir / "checkpoints" / "2"
    (step / "state").rename(workdir / "elsewhere")
    (step / "state").symlink_to(workdir / "elsewhere")
    with pytest.raises(CorruptCheckpointError, match="state is a link"):
        _restore(workdir)


def test_a_folder_of_checkpoints_that_is_a_link_is_not_written_to(workdir, tmp_path):
    (workdir / "checkpoints").rename(tmp_path / "mine")
    (workdir / "checkpoints").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="checkpoints: a link"):
        _save(workdir, 3, 4)
    assert _names(tmp_path / "mine") == ["1", "2"]


def test_a_replacement_beside_half_a_checkpoint(workdir):
    checkpoints = workdir / "checkpoints"
    shutil.copytree(checkpoints / "2", checkpoints / "2.replaced")
    (checkpoints / "2" / "_CHECKPOINT_METADATA").unlink()
    assert _restore(workdir)[0]["step"] == 2
    assert _names(checkpoints) == ["1", "2"]


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_lies_in_the_way_of_a_temporary_folder_is_removed(workdir, tmp_path, kind):
    """Orbax would wait for it forever."""
    planted = workdir / "checkpoints" / "3.orbax-checkpoint-tmp"
    (tmp_path / "mine").mkdir()
    if kind == "pipe":
        os.mkfifo(planted)
    else:
        planted.symlink_to(tmp_path / "mine")
    _save(workdir, 3)
    assert _names(workdir / "checkpoints") == ["2", "3"]
    assert _names(tmp_path / "mine") == []
