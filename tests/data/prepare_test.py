"""Prepared once, whole or not at all, and again when the source changed."""

import errno
import logging as stdlib_logging
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import logging

from jaxseg.data import Source, create_source
from jaxseg.data.datasets import BUILDERS, Shapes
from jaxseg.data.images import encode_png
from jaxseg.data.records import DamagedRecordError, Records


def visible(path):
    return sorted(p.name for p in path.iterdir() if not p.name.startswith("."))


def test_prepared_once(folder, monkeypatch):
    folder.fill(3)
    first = folder.source().directory

    def fail(*args):
        raise AssertionError("prepared again")

    monkeypatch.setattr(BUILDERS["folder"], "examples", fail)
    assert folder.source().directory == first


def touch_mask(folder):
    path = folder.root / "train/masks/train01.png"
    os.utime(path, ns=(1, 1))


def swap_image(folder):
    gray = np.full((8, 10, 3), 77, np.uint8)
    folder.add("train01", gray, None)


def add_pair(folder):
    gray = np.full((8, 10, 3), 77, np.uint8)
    folder.add("new", gray, gray[..., 0] * 0)


def describe(folder):
    folder.describe(classes=["x", "y", "z"])


@pytest.mark.parametrize("change", [touch_mask, swap_image, add_pair, describe])
def test_prepared_again_when_the_source_changed(folder, change):
    folder.fill(3)
    before = folder.source()
    change(folder)
    after = folder.source()
    assert after.directory != before.directory
    if change is swap_image:
        images = {r["name"]: r["image"] for r in after}
        assert (images["train01"] == 77).all()
    if change is add_pair:
        assert len(after) == 4
    if change is describe:
        assert after.info.class_names == ("x", "y", "z")
    assert len(before) == 3  # who reads the old data goes on


def test_options_and_roots_are_kept_apart(folder, tmp_path):
    folder.fill(1)
    one = folder.source(channels=1)
    assert one.directory != folder.source(channels=3).directory
    (tmp_path / "elsewhere").symlink_to(folder.root)
    same = create_source(
        "folder",
        "train",
        root=tmp_path / "elsewhere",
        prepared_dir=tmp_path / "prepared",
        channels=1,
    )
    assert same[0]["name"] == one[0]["name"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Killed])
def test_nothing_is_left_of_a_failure(folder, monkeypatch, error):
    folder.fill(3)
    builder = BUILDERS["folder"]
    examples = builder.examples

    def fail(self, split):
        yield next(examples(self, split))
        raise error

    monkeypatch.setattr(builder, "examples", fail)
    with pytest.raises(error):
        folder.source()
    parent = folder.root.parent / "prepared/folder"
    assert [p.name for p in parent.iterdir()] == [".lock"]
    monkeypatch.undo()
    assert len(folder.source()) == 3


def test_what_a_killed_process_left_is_removed(folder):
    folder.fill(1)
    leftover = folder.root.parent / "prepared/folder/.preparing-123/folder"
    leftover.mkdir(parents=True)
    folder.source()
    assert not leftover.parent.exists()


def test_nothing_is_removed_through_links_and_nothing_of_other_users(folder, tmp_path):
    folder.fill(1)
    parent = folder.root.parent / "prepared/folder"
    precious = tmp_path / "precious"
    for place in (precious, parent / ".preparing-1"):
        place.mkdir(parents=True)
        (place / "file").write_text("content")
    (parent / ".preparing-2").symlink_to(precious)
    (parent / ".preparing-1" / "link").symlink_to(precious)
    (parent / ".preparing-3").write_text("no folder")
    theirs = parent / ".preparing-4"
    theirs.mkdir()
    if os.geteuid() == 0:
        os.chown(theirs, 65534, 65534)
    folder.source()
    assert (precious / "file").read_text() == "content"
    assert not (parent / ".preparing-1").exists()
    assert theirs.exists() or os.geteuid() != 0


@pytest.mark.parametrize("kind", [os.symlink, os.link])
def test_a_planted_lock_overwrites_nothing(folder, tmp_path, kind):
    folder.fill(1)
    parent = folder.root.parent / "prepared/folder"
    parent.mkdir(parents=True)
    (tmp_path / "precious").write_text("content")
    kind(tmp_path / "precious", parent / ".lock")
    with pytest.raises(ValueError, match=r"\.lock: a link or a special file"):
        folder.source()
    assert (tmp_path / "precious").read_text() == "content"


def test_what_is_in_the_place_of_the_data_is_named(folder, tmp_path):
    folder.fill(1)
    directory = folder.source().directory
    shutil.rmtree(directory)
    directory.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="remove what is in the place") as error:
        folder.source()
    assert error.value.filename == str(directory)
    assert not (tmp_path / "nowhere").exists()
    assert not list(directory.parent.glob(".preparing-*"))


@pytest.mark.parametrize("free", [2**20, 2**14])
def test_a_full_disk_is_named_and_nothing_is_left_on_it(mount_disk, free):
    small_disk = mount_disk(2**20)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2**20 - free))
    options = {"prepared_dir": small_disk / "prepared", "val_examples": 1}
    with pytest.raises(OSError, match=r"No space left.*free some space") as error:
        create_source("shapes", "train", train_examples=400, **options)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(small_disk / "prepared/shapes")
    assert "\n" not in str(error.value)
    assert [p.name for p in (small_disk / "prepared/shapes").iterdir()] == [".lock"]
    filler.unlink()
    assert len(create_source("shapes", "train", train_examples=4, **options)) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_the_limit_of_a_file_s_size_is_named(tmp_path):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17));"
        + _PREPARE_SHAPES
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert "OSError" in done.stdout and "File too large" in done.stdout, done.stderr
    assert os.listdir(tmp_path / "shapes") == [".lock"]


_PREPARE_SHAPES = """
import sys
from jaxseg.data.prepare import prepare
try:
    prepare("shapes", prepared_dir=sys.argv[1])
except OSError as error:
    print("OSError", error)
"""

_PREPARE = """
import sys
from jaxseg.data.prepare import prepare
print("ready", flush=True)
sys.stdin.readline()
print(prepare("folder", root=sys.argv[1], prepared_dir=sys.argv[2]))
"""


def test_two_processes_at_once(folder):
    folder.fill(20)
    prepared_dir = folder.root.parent / "prepared"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _PREPARE, str(folder.root), str(prepared_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            text=True,
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    found = {worker.communicate()[0] for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0]
    (directory,) = visible(prepared_dir / "folder")
    assert found == {f"{prepared_dir / 'folder' / directory}\n"}
    assert not list(prepared_dir.glob("folder/.preparing-*"))
    assert len({r["name"] for r in folder.source()}) == 20


def test_without_locks_the_first_to_finish_wins(folder, monkeypatch):
    """As on a network file system: another process is done while this one prepares."""
    folder.fill(3)
    examples = BUILDERS["folder"].examples
    directories = []

    def flock(*args):
        raise OSError(errno.ENOLCK, "no locks here")

    def overtaken(self, split):
        monkeypatch.setattr(BUILDERS["folder"], "examples", examples)
        directories.append(folder.source().directory)
        yield from examples(self, split)

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(BUILDERS["folder"], "examples", overtaken)
    directories.append(folder.source().directory)
    assert directories[0] == directories[1]
    left = sorted(p.name for p in directories[0].parent.iterdir())
    assert left == [".lock", directories[0].name]
    assert len(list(folder.source())) == 3


def test_source_survives_pickling(folder):
    folder.fill(3, sizes=[(8, 10), (9, 7), (5, 6)])
    source = folder.source()
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1000
    assert copy.sizes == source.sizes and copy.info == source.info
    for mine, theirs in zip(source, copy, strict=True):
        assert mine["name"] == theirs["name"]
        np.testing.assert_array_equal(mine["image"], theirs["image"])


def test_records_match_their_files_and_sizes(folder):
    masks = folder.fill(5, sizes=[(8, 10), (9, 7), (5, 6), (12, 3), (8, 8)])
    source = folder.source()
    assert sorted(r["name"] for r in source) == sorted(masks)
    for index, record in enumerate(source):
        np.testing.assert_array_equal(record["label"], masks[record["name"]])
        np.testing.assert_array_equal(source.label(index), record["label"])
        assert source.sizes[index] == record["label"].shape
        assert record["image"].shape == (*record["label"].shape, 3)


def test_index_bounds(folder):
    folder.fill(2)
    source = folder.source()
    assert source[-1]["name"] == source[1]["name"]
    with pytest.raises(IndexError):
        source[2]


def test_unknown_split_lists_those_there_are(folder):
    folder.fill(1)
    folder.fill(1, split="val")
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        folder.source("test")
    assert Source(folder.source().directory, "val").splits == ("train", "val")


def test_unknown_data_set_lists_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"'shape'.*camvid, folder, shapes"):
        create_source("shape", "train", prepared_dir=tmp_path)


def test_unknown_option_lists_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"no option color; known: .*image_size"):
        create_source("shapes", "train", prepared_dir=tmp_path, color=3)


def test_root_for_a_data_set_that_draws_itself(tmp_path):
    with pytest.raises(ValueError, match="synthetic"):
        create_source("shapes", "train", root="x", prepared_dir=tmp_path)


def test_preparing_logs_its_begin_and_end_and_prints_nothing(folder, capfd):
    folder.fill(2)
    lines = []
    handler = stdlib_logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger, verbosity = logging.get_absl_logger(), logging.get_verbosity()
    logger.addHandler(handler)
    logging.set_verbosity(logging.INFO)
    try:
        directory = folder.source().directory
        assert logging.get_verbosity() == logging.INFO
        folder.source()
    finally:
        logger.removeHandler(handler)
        logging.set_verbosity(verbosity)
    begin, end = lines
    assert begin == f"Preparing folder in {directory}"
    assert "{'train': 2}" in end and end.endswith(str(directory))
    assert capfd.readouterr().out == ""


def test_no_tensorflow(tmp_path):
    """Preparing and reading, in a fresh process, leave TensorFlow unimported."""
    code = f"""
import sys
from jaxseg import data
source = data.create_source(
    "shapes", "train", prepared_dir={str(tmp_path)!r}, train_examples=2, val_examples=1
)
batch = next(data.train_batches(source, batch_size=2, seed=0))
print(batch["image"].shape, "tensorflow" in sys.modules)
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "(2, 64, 64, 3) False\n", done.stderr


def test_builder_can_be_used_with_tfds_alone(tmp_path):
    builder = Shapes(data_dir=str(tmp_path), train_examples=3, val_examples=1)
    builder.download_and_prepare()
    records = builder.as_data_source("train")
    assert len(records) == 3
    assert records[0]["image"].shape == (64, 64, 3)
    assert records[0]["label"].shape == (64, 64, 1)


def test_a_root_may_begin_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    with pytest.raises(ValueError, match=r"/me/street' is not a folder"):
        create_source("folder", "train", root="~/street", prepared_dir=str(tmp_path))


def test_two_prepared_folders_cannot_be_exchanged(folder):
    folder.fill(3)
    first = folder.source().directory
    folder.add("other", np.zeros((8, 10, 3), np.uint8), np.ones((8, 10), np.uint8))
    second = folder.source().directory
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    with pytest.raises(ValueError, match="has been renamed"):
        folder.source()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": b"../../precious"}, "name cannot be that of a file"),
        ({"name": b"/tmp/precious"}, "name cannot be that of a file"),
        ({"name": b""}, "name cannot be that of a file"),
        ({"label": encode_png(np.full((8, 10), 3, np.uint8))}, "label 3 is neither"),
    ],
)
def test_records_that_lead_elsewhere_or_have_unknown_labels(
    folder, monkeypatch, change, message
):
    """As somebody else may have prepared them."""
    folder.fill(2)
    source = folder.source()
    read = Records.__getitem__
    monkeypatch.setattr(
        Records, "__getitem__", lambda self, index: read(self, index) | change
    )
    with pytest.raises(DamagedRecordError, match=f"record 1 .*{message}"):
        source[1]
