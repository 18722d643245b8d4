"""Prepared data from elsewhere: no code, no path and no damage comes with them."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxseg.data import Source
from jaxseg.data.records import DamagedDataError, DamagedRecordError
from tests.data.conftest import damage_record


def edit(path, change):
    """Changes a JSON file; without its checksum, as written by an earlier version."""
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    change(content)
    path.write_text(json.dumps(content))


def shard(source):
    (path,) = source.directory.glob(f"*-{source.split}.array_record-*")
    return path


@pytest.mark.parametrize("kind", ["class", "module"])
def test_no_description_on_disk_decides_what_is_imported(folder, tmp_path, kind):
    masks = folder.fill(2)
    source = folder.source()
    mark = tmp_path / "mark"
    module = tmp_path / "planted_module.py"
    module.write_text(f"open({str(mark)!r}, 'w').close()\nclass Text: pass\n")

    def name_a_module(features):
        if kind == "class":
            features["featuresDict"]["features"]["name"]["pythonClassName"] = (
                "planted_module.Text"
            )
        else:
            features["pythonClassName"] = "planted_module.Text"

    edit(source.directory / "features.json", name_a_module)
    edit(
        source.directory / "dataset_info.json",
        lambda info: info.update(moduleName="planted_module", name="planted_module"),
    )
    code = (
        "import sys; from jaxseg.data import Source; "
        "source = Source(sys.argv[1], 'train'); print(source[0]['name'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source.directory)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)]),
        },
    )
    assert done.stdout.strip() in masks, done.stderr
    assert not mark.exists()


def test_the_descriptions_of_tfds_are_not_needed(folder):
    folder.fill(2)
    source = folder.source()
    for name in ("features.json", "dataset_info.json"):
        (source.directory / name).unlink()
    assert len(list(folder.source())) == 2


@pytest.mark.parametrize("shards", ["../../elsewhere", "/etc/passwd"])
def test_no_description_on_disk_names_a_file_elsewhere(folder, tmp_path, shards):
    folder.fill(2)
    source = folder.source()

    def lead_elsewhere(info):
        info["splits"][0]["filepathTemplate"] = shards

    edit(source.directory / "dataset_info.json", lead_elsewhere)
    assert len(list(folder.source())) == 2
    # Nor does the name of the data set or of a split.
    shutil.copy(shard(source), tmp_path / "x-train.array_record-00000-of-00001")
    edit(source.directory / "jaxseg.json", lambda meta: meta.update(name="../../../x"))
    with pytest.raises(
        DamagedDataError, match="files of the split 'train' are missing"
    ):
        folder.source()


@pytest.mark.parametrize("target", ["record", "pipe", "folder"])
def test_records_are_regular_files(folder, tmp_path, target):
    folder.fill(2)
    source = folder.source()
    path = shard(source)
    path.rename(tmp_path / "record")
    if target == "pipe":
        os.mkfifo(path)
    elif target == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / target)
    with pytest.raises(DamagedDataError, match="is not a regular file"):
        folder.source()


def missing(key):
    return lambda meta: meta.pop(key)


def changed(**values):
    return lambda meta: meta.update(values)


@pytest.mark.parametrize(
    "change",
    [
        missing("name"),
        missing("sizes"),
        changed(name=3),
        changed(class_names=[]),
        changed(class_names=[1, 2, 3]),
        changed(class_names=None),
        changed(palette=[[0, 0, 0]]),
        changed(palette=[[0, 0], [1, 1], [2, 2]]),
        changed(palette=[[0, 0, 256], [1, 1, 1], [2, 2, 2]]),
        changed(palette=[[0, 0, 0.5], [1, 1, 1], [2, 2, 2]]),
        changed(channels=4),
        changed(channels="3"),
        changed(sizes=[]),
        changed(sizes={}),
        changed(sizes={"train": []}),
        changed(sizes={"train": [[8, 10], [8]]}),
        changed(sizes={"train": [[8, 10], [8, -10]]}),
        changed(sizes={"train": [[8, 10], [8, True]]}),
        changed(sizes={"train": [[8, 10], [2**20, 2**20]]}),
        changed(sizes={"train": [[8, 10]]}),
        changed(sizes={"train": [[8, 10]] * 3}),
    ],
)
def test_a_damaged_description_is_named_with_the_cure(folder, change):
    folder.fill(2)
    directory = folder.source().directory
    edit(directory / "jaxseg.json", change)
    with pytest.raises(DamagedDataError, match="delete this folder") as error:
        folder.source()
    assert str(error.value).startswith(f"{directory}: ")


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"\xff", b"[" * 10**5, b'{"name": ', None]
)
def test_a_description_that_is_none_is_named_with_the_cure(folder, content):
    folder.fill(2)
    path = folder.source().directory / "jaxseg.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedDataError, match=r"\(jaxseg\.json: .*delete this folder"):
        folder.source()


def test_a_changed_letter_of_the_description_is_noticed(folder):
    folder.fill(2)
    path = folder.source().directory / "jaxseg.json"
    text = path.read_text()
    for old, new in (("class_1", "class_0"), ("[8, 10]", "[9, 10]")):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(DamagedDataError, match="wrong checksum"):
            folder.source()
    path.write_text(text)
    edit(path, lambda meta: meta)
    assert len(list(folder.source())) == 2


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_bits(path):
    content = bytearray(path.read_bytes())
    content[2**16 + 30] ^= 1  # in the block that lists the records
    path.write_bytes(content)


def add_shard(path):
    shutil.copy(path, path.with_name("folder-train.array_record-00001-of-00002"))


def rename_shard(path):
    path.rename(path.with_name("folder-train.array_record-00001-of-00002"))


@pytest.mark.parametrize("damage", [os.remove, cut, flip_bits, add_shard, rename_shard])
def test_damaged_files_are_named_with_the_cure(folder, damage):
    folder.fill(2)
    source = folder.source()
    damage(shard(source))
    with pytest.raises(DamagedDataError, match="delete this folder") as error:
        folder.source()
    assert str(error.value).startswith(f"{source.directory}: ")
    assert "\n" not in str(error.value)
    # The advice helps.
    shutil.rmtree(source.directory)
    assert len(list(folder.source())) == 2


def test_the_files_of_a_split_are_read_in_their_order(folder):
    folder.fill(2)
    folder.fill(3, split="val")
    source = folder.source("val")
    names = [record["name"] for record in [*folder.source(), *source]]
    sizes = json.loads((source.directory / "jaxseg.json").read_text())["sizes"]
    edit(
        source.directory / "jaxseg.json",
        lambda meta: meta.update(sizes={"val": sizes["train"] + sizes["val"]}),
    )
    for split, old, new in (
        ("val", "0-of-00001", "1-of-00002"),
        ("train", "0-of-00001", "0-of-00002"),
    ):
        path = source.directory / f"folder-{split}.array_record-0000{old}"
        path.rename(source.directory / f"folder-val.array_record-0000{new}")
    assert [record["name"] for record in folder.source("val")] == names


def test_a_damaged_record_is_named_and_the_others_are_read(folder):
    masks = folder.fill(3)
    source = folder.source()
    names = [source.name(i) for i in range(3)]
    damage_record(source, 1)
    source = folder.source()
    for read in (source.__getitem__, source.label, source.name):
        with pytest.raises(
            DamagedRecordError, match=r"record 1 .*'train'.*delete"
        ) as e:
            read(1)
        assert str(e.value).startswith(f"{source.directory}: ")
    for i in (0, 2, -1):
        np.testing.assert_array_equal(source[i]["label"], masks[names[i]])


def test_a_record_of_another_size_than_described_is_damaged(folder):
    folder.fill(2)
    source = folder.source()
    edit(
        source.directory / "jaxseg.json",
        lambda meta: meta.update(sizes={"train": [[8, 10], [8, 11]]}),
    )
    source = folder.source()
    assert source[0]["label"].shape == (8, 10)
    for read in (source.__getitem__, source.label):
        with pytest.raises(
            DamagedRecordError, match=r"record 1 'train0\d' .*\(8, 11\)"
        ):
            read(1)


def test_on_error_is_raise_or_skip(folder):
    folder.fill(2)
    with pytest.raises(ValueError, match=r"on_error is 'ignore'.*raise or skip"):
        folder.source(on_error="ignore")
    assert Source(folder.source().directory, "train").on_error == "raise"
