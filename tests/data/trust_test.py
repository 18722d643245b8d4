"""Prepared data that another user could have written, and folders of another user."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile

import pytest

from jaxseg.data import create_source, pixel_counts, trust
from jaxseg.data.trust import UntrustedDataError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files have no owners")

as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="only root can act as another user",
)
STRANGER = 65534


def every_file(directory):
    return [directory, *directory.iterdir()]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o000])
def test_what_is_prepared_here_is_trusted_here(folder, umask):
    folder.fill(2)
    before = os.umask(umask)
    try:
        source = folder.source()
        pixel_counts(source)
        assert len(folder.source()) == 2
    finally:
        os.umask(before)
    for path in every_file(source.directory):
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@as_root
@pytest.mark.parametrize("which", [0, 1, -1])
def test_data_of_another_user_are_refused_unless_trusted(folder, which):
    folder.fill(2)
    path = sorted(every_file(folder.source().directory))[which]
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(
        UntrustedDataError, match=r"belongs to .*trust_prepared=True"
    ) as e:
        folder.source()
    assert str(folder.source(trust_prepared=True).directory) in str(e.value)


def test_data_of_another_user_are_refused_by_whoever_is_not_root(folder, monkeypatch):
    folder.fill(2)
    folder.source()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    if mine:
        with pytest.raises(UntrustedDataError, match="belongs to"):
            folder.source()
    else:  # everybody trusts root
        folder.source()


@pytest.mark.parametrize("name", [".", "jaxseg.json"])
def test_data_that_everybody_can_write_are_refused(folder, name):
    folder.fill(2)
    path = folder.source().directory / name
    path.chmod(0o777)
    with pytest.raises(
        UntrustedDataError, match=r"all users can change .*chmod -R go-w"
    ):
        folder.source()
    assert len(folder.source(trust_prepared=True)) == 2


@as_root
def test_data_that_a_group_can_write_are_refused(folder, monkeypatch):
    folder.fill(2)
    path = folder.source().directory / "jaxseg.json"
    path.chmod(0o664)
    assert len(folder.source()) == 2  # a private group, as the umask 002 expects
    os.chown(path, 0, STRANGER)
    with pytest.raises(UntrustedDataError, match=r"the group .* can change"):
        folder.source()
    # A user's group with other members is no private one.
    os.chown(path, 0, 0)
    root = trust.grp.getgrgid(0)
    shared = trust.grp.struct_group((root.gr_name, "x", 0, ["guest"]))
    monkeypatch.setattr(trust.grp, "getgrgid", lambda gid: shared)
    with pytest.raises(UntrustedDataError, match="the group 'root' can change"):
        folder.source()


def test_a_link_of_ones_own_to_the_data_is_followed(folder, tmp_path):
    folder.fill(2)
    directory = folder.source().directory
    directory.rename(tmp_path / "moved")
    directory.symlink_to(tmp_path / "moved")
    assert len(folder.source()) == 2
    (tmp_path / "moved").chmod(0o777)
    with pytest.raises(UntrustedDataError, match="all users"):
        folder.source()


@as_root
def test_a_link_of_another_user_is_refused(folder, tmp_path):
    folder.fill(2)
    directory = folder.source().directory
    directory.rename(tmp_path / "moved")
    directory.symlink_to(tmp_path / "moved")
    os.lchown(directory, STRANGER, STRANGER)
    with pytest.raises(UntrustedDataError, match="belongs to"):
        folder.source()


_SOURCE = """
import sys
from jaxseg.data import create_source, pixel_counts
try:
    source = create_source(
        "shapes", "train", prepared_dir=sys.argv[1], train_examples=2, val_examples=1,
        trust_prepared="trust" in sys.argv, seed=int(sys.argv[2]),
    )
    print(len(source), pixel_counts(source)[0].sum() > 0)
except (ValueError, OSError) as error:
    print(type(error).__name__, error)
"""


def source_of_stranger(prepared_dir, seed=0, *arguments):
    done = subprocess.run(
        ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups",
         sys.executable, "-c", _SOURCE, prepared_dir, str(seed), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "HOME": "/"},
    )  # fmt: skip
    if "Permission denied" in done.stderr:
        pytest.skip("another user cannot run this Python")
    return done.stdout + done.stderr


@pytest.fixture
def shared():
    """A folder that other users can reach."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        os.chmod(path, 0o755)
        yield path


@as_root
def test_a_second_user_reads_what_the_first_prepared_or_is_told_what_to_do(shared):
    sizes = {"train_examples": 2, "val_examples": 1}
    directory = create_source("shapes", "train", prepared_dir=shared, **sizes).directory
    for path in every_file(directory):
        os.chown(path, 1, 1)
    refused = source_of_stranger(shared)
    assert refused.startswith(f"UntrustedDataError {directory}: ")
    assert source_of_stranger(shared, 0, "trust") == "2 True\n"
    assert not list(directory.glob("pixel_counts*"))  # not allowed to write there
    # Other data have to be prepared, in a folder that belongs to root.
    denied = source_of_stranger(shared, 1)
    assert denied.startswith("PermissionError") and denied.count("\n") == 1
    assert "belongs to user 'root'" in denied and "another prepared_dir" in denied
    # Or in one that the group or all may write to, beside the lock of root.
    os.chmod(directory.parent, 0o1777)
    assert source_of_stranger(shared, 1) == "2 True\n"
    os.chmod(directory.parent, 0o700)
    denied = source_of_stranger(shared, 1)
    assert "belongs to user 'root'" in denied and denied.count("\n") == 1
