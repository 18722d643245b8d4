import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxseg.utils.files import (
    FileLockedError,
    atomic_path,
    expand_home,
    file_lock,
    read_file,
    write_atomically,
)


def test_reads_regular_files_and_links_to_them(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_file(tmp_path / "file") == read_file(tmp_path / "link") == b"content"
    assert read_file(tmp_path / "file", limit=7) == b"content"


@pytest.mark.parametrize("kind", ["pipe", "device", "endless"])
def test_special_files_are_refused_at_once(tmp_path, kind):
    path = tmp_path / kind
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/null")
        case "endless":
            path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{kind}: not a regular file"):
        read_file(path)


def test_a_missing_home_folder_is_named(monkeypatch):
    assert expand_home("~/data") == Path(os.path.expanduser("~/data"))

    def getpwuid(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", getpwuid)
    assert expand_home("/data") == Path("/data")
    with pytest.raises(ValueError, match="~/data: this user has no home folder"):
        expand_home("~/data")


def test_large_files_are_not_read(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"sparse: 1,099,511,627,776 bytes, .* 100;"):
        read_file(path, limit=100)


def test_an_error_keeps_the_old_file(tmp_path):
    write_atomically(tmp_path / "file", "old")
    with pytest.raises(KeyError), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_writing_replaces_a_link_and_not_its_target(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "link").read_text() == "new"


HOLD = """
import sys, time
from jaxseg.utils.files import file_lock
with file_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_excludes_other_processes_until_they_end(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("content")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(FileLockedError), file_lock(path):
            pass
        holder.kill()
    with file_lock(path) as descriptor:
        assert descriptor is not None
    assert path.read_text() == "content"


@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard", "pipe"])
def test_a_lock_opens_no_link_and_no_pipe(tmp_path, kind):
    mine, path = tmp_path / "mine", tmp_path / ".lock"
    mine.write_text("mine")
    match kind:
        case "symbolic":
            path.symlink_to(mine)
        case "dangling":
            path.symlink_to(tmp_path / "new")
        case "hard":
            path.hardlink_to(mine)
        case "pipe":
            os.mkfifo(path)
    with pytest.raises(ValueError, match="a link or a special file"), file_lock(path):
        pass
    assert mine.read_text() == "mine" and not (tmp_path / "new").exists()


def test_a_disk_without_locks_is_reported(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with file_lock(tmp_path / ".lock") as descriptor:
        assert descriptor is None


def test_a_folder_is_named_and_not_kept_open(tmp_path):
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    with pytest.raises(IsADirectoryError) as error:
        read_file(tmp_path)
    assert str(error.value.filename) == str(tmp_path)
    after = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    assert len(after) == len(before)
