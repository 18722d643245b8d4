"""One run per workdir."""

import json
import os
import platform
import subprocess
import sys

import pytest

from jaxseg.checkpoints.lock import (
    HOLDER,
    LOCK,
    WorkdirInUseError,
    WorkdirMovedError,
    exclusive_workdir,
)
from tests.helpers import ROOT

HOLD = """
import sys, time
from pathlib import Path
from jaxseg.checkpoints.lock import exclusive_workdir
with exclusive_workdir(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def _describe(folder, **changes):
    by = {"host": platform.node(), "pid": os.getpid(), "started": "2026-01-01 10:00"}
    (folder / HOLDER).write_text(json.dumps(by | changes))


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path):
    workdir = tmp_path / "new" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, workdir],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with (
            pytest.raises(
                WorkdirInUseError, match=f"process {first.pid} on .*, started"
            ),
            exclusive_workdir(workdir),
        ):
            pass
        first.kill()
    with exclusive_workdir(workdir):
        assert json.loads((workdir / HOLDER).read_text())["pid"] == os.getpid()
    assert not (workdir / HOLDER).exists()


def test_runs_follow_each_other(tmp_path):
    for _ in range(2):
        with exclusive_workdir(tmp_path):
            pass
        with pytest.raises(KeyError), exclusive_workdir(tmp_path):
            raise KeyError


@pytest.mark.parametrize("content", ["null", "[]", "{", '{"host": 1}', "[" * 10**5])
def test_a_damaged_description_changes_nothing(tmp_path, content):
    (tmp_path / HOLDER).write_text(content)
    with exclusive_workdir(tmp_path):
        with (
            pytest.raises(WorkdirInUseError, match=r"in use by process \d+"),
            exclusive_workdir(tmp_path),
        ):
            pass
        (tmp_path / HOLDER).write_text(content)
        with (
            pytest.raises(WorkdirInUseError, match="in use by another process"),
            exclusive_workdir(tmp_path),
        ):
            pass


def test_without_locks_the_description_decides(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    _describe(tmp_path, pid=dead.pid)
    with exclusive_workdir(tmp_path):
        pass
    for changes in ({"pid": os.getppid()}, {"host": "elsewhere", "pid": dead.pid}):
        _describe(tmp_path, **changes)
        with (
            pytest.raises(WorkdirInUseError, match=r"has ended, delete .*\.lock\.json"),
            exclusive_workdir(tmp_path),
        ):
            pass


@pytest.mark.parametrize(
    "name", [LOCK, "metrics.jsonl", "overlays", "checkpoints", "checkpoints/3"]
)
@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "pipe"])
def test_a_run_writes_through_no_link(tmp_path, name, kind):
    mine, workdir = tmp_path / "mine", tmp_path / "run"
    (workdir / name).parent.mkdir(parents=True)
    match kind:
        case "file":
            mine.write_text("mine")
            (workdir / name).symlink_to(mine)
        case "folder":
            mine.mkdir()
            (workdir / name).symlink_to(mine)
        case "dangling":
            (workdir / name).symlink_to(mine)
        case "pipe":
            os.mkfifo(workdir / name)
    with (
        pytest.raises(ValueError, match=f"{name}: a link or a special file"),
        exclusive_workdir(workdir),
    ):
        pass
    if kind == "file":
        assert mine.read_text() == "mine"
    if kind == "folder":
        assert not list(mine.iterdir())


def test_a_description_that_is_a_link_is_replaced(tmp_path):
    mine, workdir = tmp_path / "mine", tmp_path / "run"
    mine.write_text("mine")
    with exclusive_workdir(workdir):
        (workdir / HOLDER).unlink()
        (workdir / HOLDER).symlink_to(mine)
    assert mine.read_text() == "mine"
    link = tmp_path / "link"
    link.symlink_to(workdir)
    with exclusive_workdir(link):
        pass


@pytest.mark.parametrize("name", ["metrics.jsonl", "metadata.json", "overlays"])
def test_names_that_a_run_needs_for_something_else_are_refused(tmp_path, name):
    if name == "overlays":
        (tmp_path / name).touch()
    else:
        (tmp_path / name).mkdir()
    with (
        pytest.raises(ValueError, match=f"{name}: a run needs this name"),
        exclusive_workdir(tmp_path),
    ):
        pass


def test_a_workdir_that_is_moved_is_noticed(tmp_path):
    with exclusive_workdir(tmp_path / "run") as check:
        check()
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(WorkdirMovedError, match="moved or deleted"):
            check()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / LOCK).touch()
        with pytest.raises(WorkdirMovedError, match="moved or deleted"):
            check()


def test_leftovers_of_killed_writes_are_removed(tmp_path):
    rest = tmp_path / f".metadata.json.{'0' * 32}.tmp"
    folder = tmp_path / f".mine.{'0' * 32}.tmp"
    rest.touch()
    folder.mkdir()
    with exclusive_workdir(tmp_path):
        assert not rest.exists() and folder.exists()
