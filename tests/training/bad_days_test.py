"""Full disks, little memory, clocks set back: what is said, and that nothing is lost."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import load
from jaxseg.checkpoints.run import find_step
from jaxseg.training import trainer
from jaxseg.training.callbacks import Callback
from jaxseg.training.errors import OutOfMemoryError
from tests.helpers import JAXSEG, ROOT, tiny_config

# TensorStore's threads report to an event loop that Orbax has closed after the error.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def config(prepared):
    config = tiny_config(prepared)
    config.train.save_every_steps = config.train.log_every_steps = 1
    config.train.eval_every_steps = 3
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared):
    """The workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("finished")
    config = tiny_config(prepared)
    config.train.save_every_steps = config.train.log_every_steps = 1
    config.train.eval_every_steps = 3
    trainer.run(config, str(workdir))
    return workdir


def assert_same_end(workdir, finished):
    for a, b in zip(
        *(jax.tree.leaves(load(x, "latest")[1]) for x in (workdir, finished)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert _losses(workdir) == _losses(finished)


def _losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.mark.parametrize("kibibytes", [16, 150, 700])
def test_a_full_disk_is_one_error_and_more_room_resumes(
    config, finished, mount_disk, kibibytes, capfd
):
    """At the first metrics, at the first checkpoint, and at a later one."""
    disk = mount_disk(kibibytes * 1024)
    config.model.kwargs.width = 2 if kibibytes < 500 else 4
    with pytest.raises(OSError, match=f"No space left on device.*{disk}"):
        trainer.run(config, str(disk / "run"))
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    mount_disk(64 * 2**20, "remount")
    trainer.run(config, str(disk / "run"))
    assert not list(disk.glob("run/checkpoints/*tmp*"))
    if kibibytes < 500:
        assert_same_end(disk / "run", finished)


def test_a_workdir_that_cannot_be_written_is_one_line(finished, mount_disk, tmp_path):
    disk = mount_disk(64 * 2**20)
    shutil.copytree(finished, disk / "run")
    mount_disk(None, "remount", "ro")
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.helpers import tiny_config\n"
        f"def get_config():\n    return tiny_config({str(tmp_path)!r})\n"
    )
    result = subprocess.run(
        [sys.executable, *JAXSEG, "train", f"--config={config}"]
        + [f"--workdir={disk / 'run'}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "Read-only file system" in result.stderr and str(disk) in result.stderr


def test_a_limit_on_the_size_of_files_is_named(config, tmp_path):
    """As `ulimit -f` sets it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large.*{tmp_path}"):
            trainer.run(config, str(tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("where", ["host", "device"])
def test_little_memory_is_named_and_the_checkpoint_stays(config, tmp_path, where):
    class Greedy(Callback):
        def on_step(self, event):
            if event.step == 3:
                (np.ones if where == "host" else jnp.ones)(10**14, np.float32)

    with pytest.raises(OutOfMemoryError, match=f"memory on .* {where}.*batch_size"):
        trainer.run(config, str(tmp_path), [Greedy()])
    assert find_step(tmp_path, "latest") == 2


def test_a_stopped_process_goes_on(config, finished, tmp_path):
    """SIGSTOP from another process, SIGCONT a second later."""
    code = (
        f"import os,time; p={os.getpid()}; os.kill(p,19); time.sleep(1); os.kill(p,18)"
    )

    class Stop(Callback):
        def on_step(self, event):
            if event.step == 2:
                subprocess.Popen([sys.executable, "-c", code]).wait()

    trainer.run(config, str(tmp_path), [Stop()])
    assert_same_end(tmp_path, finished)


def test_a_clock_set_back_changes_no_order(config, finished, tmp_path, monkeypatch):
    now = time.time

    class SetBack(Callback):
        def on_step(self, event):
            monkeypatch.setattr(time, "time", lambda: now() - 1e7 * event.step)
            monkeypatch.setattr(
                time, "time_ns", lambda: int(1e9 * (now() - 1e7 * event.step))
            )

    config.train.steps = 4
    trainer.run(config, str(tmp_path), [SetBack()])
    monkeypatch.undo()
    assert find_step(tmp_path, "latest") == 4
    for path in (tmp_path / "checkpoints" / "4").rglob("*"):
        os.utime(path, (0, 0))
    config.train.steps = 6
    trainer.run(config, str(tmp_path), [SetBack()])
    assert_same_end(tmp_path, finished)


def test_a_workdir_can_be_moved_and_copied(config, finished, tmp_path):
    config.train.steps = 3
    trainer.run(config, str(tmp_path / "first"))
    (tmp_path / "first").rename(tmp_path / "second")
    config.train.steps = 5
    trainer.run(config, str(tmp_path / "second"))
    shutil.copytree(tmp_path / "second", tmp_path / "third")
    config.train.steps = 6
    for name in ("second", "third"):
        trainer.run(config, str(tmp_path / name))
        assert_same_end(tmp_path / name, finished)
