"""Weight files told apart by what they hold, written whole, and refused when hostile."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxseg.weights import untrusted
from jaxseg.weights.caffe_file import read_caffe
from jaxseg.weights.files import read, read_metadata, write_safetensors
from jaxseg.weights.mapping import WeightsError
from jaxseg.weights.torch_file import read_torch

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)


def npy(array, **options) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def npz(entries: dict[str, bytes], method=zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    return content.getvalue()


def field(number: int, content: bytes) -> bytes:
    """A field of protobuf, shorter than 128 bytes."""
    tag = number << 3 | 2
    tags = bytes((tag,)) if tag < 128 else bytes((tag & 127 | 128, tag >> 7))
    return tags + bytes((len(content),)) + content


def caffemodel() -> bytes:
    blob = field(7, field(1, b"\2\3")) + field(5, SIX.tobytes())
    return field(100, field(1, b"x") + field(2, b"InnerProduct") + field(7, blob))


def state_dict(hand) -> bytes:
    return hand.pickled(hand.dictionary({"x": hand.tensor("0", [2, 3], [3, 1])}))


@pytest.fixture
def contents(hand):
    """A file of each kind that holds `SIX`, and how it is wrapped up."""
    storages = {"0": SIX.tobytes()}
    return {
        "zip": (hand.zipped(state_dict(hand), storages), bytes),
        "pickle in zip": (state_dict(hand), lambda x: hand.zipped(x, storages)),
        "legacy": (hand.legacy(state_dict(hand), storages), bytes),
        "safetensors": (safetensors.numpy.save({"x": SIX}, {"a": "b"}), bytes),
        "npy": (npy(SIX), bytes),
        "npy in npz": (npy(SIX), lambda x: npz({"x.npy": x})),
        "npz": (npz({"x.npy": npy(SIX)}), bytes),
        "deflated": (npz({"x.npy": npy(SIX)}, zipfile.ZIP_DEFLATED), bytes),
        "caffemodel": (caffemodel(), bytes),
    }


def test_a_file_is_what_its_content_says(contents, tmp_path):
    for kind, (content, wrap) in contents.items():
        path = tmp_path / "x.txt"
        path.write_bytes(wrap(content))
        name = "x/0" if kind == "caffemodel" else "x"
        tensors = read(str(path))
        assert tensors.keys() == {name}, kind
        np.testing.assert_array_equal(tensors[name], SIX, strict=True)


def test_arrays_of_numpy_in_every_order(tmp_path):
    arrays = {
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float16),
        "bool": np.array([True, False]),
        "../outside": np.ones(1),
    }
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    tensors = read(path)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == array.dtype.newbyteorder("=")
    assert os.listdir(tmp_path) == ["x.npz"]


def test_what_is_no_weight_file_says_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WeightsError, match=r"folder.*jaxseg\.load"):
        read(tmp_path)
    with pytest.raises(WeightsError, match="does not exist"):
        read(tmp_path / "missing.pth")
    os.mkfifo(tmp_path / "pipe")
    for special in ("/dev/zero", tmp_path / "pipe"):
        for open_file in (read, read_metadata, read_torch):
            with pytest.raises(WeightsError, match="is not a regular file"):
                open_file(special)
        with pytest.raises(WeightsError, match="not a regular file"):
            read_caffe(special)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(WeightsError, match="sparse is larger than"):
        read(tmp_path / "sparse")
    others = {
        b"": "not a supported weight file.* is empty.*no layer with weights",
        b"accuracy: 0.5\n"
        * 9: "not a supported weight file.*accuracy.*not a .caffemodel",
        b"\x89HDF\r\n\x1a\n"
        + bytes(90): "not a supported weight file.*HDF.*not a .caffemodel",
        npz({}): "a zip file, but not from PyTorch",
        npz(
            {"x.npy": npy(SIX), "notes.txt": b"text"}
        ): "a zip file, but not from PyTorch",
        pickle.dumps({"x": 1}, 2): "a pickle, but not from PyTorch",
    }
    for content, message in others.items():
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(WeightsError, match=f"file (is|has) {message}"):
            read(tmp_path / "file")


def test_safetensors_there_and_back(tmp_path):
    tensors = {
        "params/conv/kernel": np.random.default_rng(0).normal(size=(3, 3, 2, 4)),
        "transposed": SIX.T,
        "bfloat16": np.arange(4).astype(ml_dtypes.bfloat16),
        "half": np.array([[1.5]], np.float16),
        "scalar": np.array(7, np.int32),
        "empty": np.zeros((0, 2), np.float32),
        "flags": np.array([True, False]),
    }
    metadata = {"model": json.dumps({"name": "fcn8s", "num_classes": 11}), "ä": "ö\n"}
    path = tmp_path / "new" / "x.safetensors"
    write_safetensors(path, tensors, metadata)
    back = read(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)
    assert read_metadata(path) == metadata
    write_safetensors(path, {"x": SIX}, {})
    assert read_metadata(path) == {}
    assert read(path).keys() == {"x"}


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"x": SIX}, {})
    before = path.read_bytes()

    def fill_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fill_disk)
    with pytest.raises(OSError, match="space"):
        write_safetensors(path, {"x": SIX + 1}, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_files_of_other_kinds_have_no_metadata(contents, tmp_path):
    path = tmp_path / "x"
    for kind, (content, wrap) in contents.items():
        path.write_bytes(wrap(content))
        assert read_metadata(path) == ({"a": "b"} if kind == "safetensors" else {})
    path.write_bytes(contents["safetensors"][0][:-1])
    with pytest.raises(WeightsError):
        read_metadata(path)
    with pytest.raises(WeightsError):
        read_metadata(tmp_path / "missing")


def test_arrays_that_are_not_of_numbers_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'sentinel'}",)

    arrays = {
        "objects": npy(np.array([Evil()]), allow_pickle=True),
        "text": npy(np.array(["abc"])),
        "structures": npy(np.zeros(2, "f4,i4")),
        "bfloat16": npy(np.zeros(2, ml_dtypes.bfloat16)),
    }
    path = tmp_path / "x"
    for content in arrays.values():
        for whole in (content, npz({"x.npy": content})):
            path.write_bytes(whole)
            with pytest.raises(WeightsError, match="not of numbers"):
                read(path)
    assert os.listdir(tmp_path) == ["x"]


@pytest.fixture
def refused(tmp_path):
    """Reads what must be refused, and gives the most bytes that this took."""

    def refused(content: bytes, match: str | None = None) -> int:
        path = tmp_path / "hostile"
        path.write_bytes(content)
        tracemalloc.start()
        try:
            with pytest.raises(WeightsError, match=match):
                read(path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return refused


@pytest.mark.parametrize(
    "shape", ["(2**40,)", "(2, 4)", "(-1,)", "(-2, -3)", "(9,)*99"]
)
def test_shapes_larger_than_the_file_take_no_memory(refused, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    content = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + SIX.tobytes()
    assert refused(content) < 2**20
    assert refused(npz({"x.npy": content})) < 2**20


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 2**31, 0, 1])
def test_headers_longer_than_the_file_take_no_memory(refused, length):
    whole = safetensors.numpy.save({"x": SIX})
    assert refused(struct.pack("<Q", length) + whole[8:]) < 2**20


def test_a_bomb_is_refused_before_it_expands(refused, monkeypatch):
    monkeypatch.setattr(untrusted, "_FREE", 2**20)
    entry = npy(np.zeros(2**22, np.float32))
    bomb = npz({"x.npy": entry}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**16
    assert refused(bomb, "far more") < 2**20
    assert refused(npz({"archive/data.pkl": entry}, zipfile.ZIP_DEFLATED)) < 2**20


def test_a_bomb_that_declares_little_is_not_expanded(refused):
    entry = npy(np.zeros(2**22, np.float32))
    bomb = npz({"x.npy": entry}, zipfile.ZIP_DEFLATED)
    declared = bomb.replace(struct.pack("<I", len(entry)), struct.pack("<I", 200))
    assert declared != bomb
    assert refused(declared) < 2**20


def test_a_zip_that_declares_more_than_there_is_is_refused(refused):
    whole = npz({"x.npy": npy(SIX)})
    size = struct.pack("<I", len(npy(SIX)))
    for declared in (2**32 - 2, 2**20):
        assert refused(whole.replace(size, struct.pack("<I", declared))) < 2**22


def test_zips_of_other_methods_and_of_doubled_names_are_refused(refused):
    refused(npz({"x.npy": npy(SIX)}, zipfile.ZIP_LZMA), "compression method")
    doubled = npz({"x.npy": npy(SIX), "y.npy": npy(SIX)}).replace(b"y.npy", b"x.npy")
    refused(doubled, "two entries")


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Flips, cuts, inserts, repeats or makes huge, once to four times."""
    for _ in range(rng.integers(1, 5)):
        start, stop = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        width = int(rng.integers(1, 9))
        middle = (
            rng.bytes(width),
            b"\xff" * width,
            content[start:stop] * 2,
            b"",
            content[start : start + 1],
        )[rng.integers(0, 5)]
        end = (start, start + len(middle), stop, len(content))[rng.integers(0, 4)]
        content = content[:start] + middle + content[end:]
    return content


def fuzz(path, contents, cases: int, seed: int) -> tuple[int, int]:
    """How many mutations of each kind of file were refused, and how many were read."""
    rng, refusals, readings = np.random.default_rng(seed), 0, 0
    for content, wrap in contents.values():
        for _ in range(cases):
            path.write_bytes(wrap(mutate(content, rng)))
            try:
                tensors = read(path)
            except WeightsError as error:
                assert str(error).startswith(str(path))
                refusals += 1
            else:
                for name, array in tensors.items():
                    assert isinstance(name, str)
                    assert isinstance(array, np.ndarray)
                    assert array.nbytes <= 2**28
                    array.tobytes()
                readings += 1
    return refusals, readings


def test_broken_files_are_refused_or_read_but_raise_nothing_else(contents, tmp_path):
    refusals, readings = fuzz(tmp_path / "x", contents, cases=80, seed=0)
    assert refusals > 500
    assert readings > 10  # some mutations do no harm
    assert os.listdir(tmp_path) == ["x"]


def test_every_truncation_is_refused(contents, tmp_path):
    path = tmp_path / "x"
    for kind, (content, wrap) in contents.items():
        step = 1 if len(content) < 200 else 7
        for length in range(0, len(content), step):
            path.write_bytes(wrap(content[:length]))
            with pytest.raises(WeightsError):
                pytest.fail(f"{kind} {length} {read(path)}")


def test_a_file_of_holes_is_no_weight_file(tmp_path):
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(safetensors.numpy.save({"a": SIX}))
    with path.open("rb+") as file:
        file.truncate(2**33)
    with pytest.raises(WeightsError, match="it is no weight file"):
        read(path)
