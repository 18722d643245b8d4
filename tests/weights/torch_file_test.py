"""Torch's files read without it: its own, hand-written ones, and hostile ones."""

import argparse
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from jaxseg.weights import torch_pickle
from jaxseg.weights.mapping import WeightsError
from jaxseg.weights.torch_file import read_torch

SIX = np.arange(6, dtype=np.float32)
LAYOUTS = pytest.mark.parametrize("layout", ["zip", "legacy"])
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
    *("uint64", "uint32", "uint16", "float8_e4m3fn", "float8_e5m2"),
)


@pytest.fixture
def save(tmp_path, layout):
    """Saves by torch itself."""
    torch = pytest.importorskip("torch")

    def save(value, **options):
        path = tmp_path / "file.pth"
        zipped = layout == "zip"
        torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
        return path

    return save


@pytest.fixture
def write(tmp_path, layout, hand):
    """Writes by hand: what was saved as opcodes, and the storages' bytes."""

    def write(body, storages=None, **options):
        path = tmp_path / "file.pth"
        storages = {"0": SIX.tobytes()} if storages is None else storages
        lay = hand.zipped if layout == "zip" else hand.legacy
        path.write_bytes(lay(hand.pickled(body), storages, **options))
        return path

    return write


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_read_bit_for_bit(save, dtype):
    torch = pytest.importorskip("torch")
    content = np.random.default_rng(0).integers(0, 256, 96, np.uint8)
    if dtype == "bool":
        content %= 2
    values = torch.from_numpy(content).view(getattr(torch, dtype)).reshape(2, -1)
    read = read_torch(save({"x": values}))["x"]
    assert read.dtype == np.dtype(dtype)
    assert read.shape == tuple(values.shape)
    assert read.tobytes() == content.tobytes()


@LAYOUTS
def test_views_of_one_storage_are_as_torch_sees_them(save):
    torch = pytest.importorskip("torch")
    whole = torch.arange(60.0).reshape(3, 4, 5)
    views = {
        "whole": whole,
        "slice": whole[1:, ::2, 1:4],
        "transposed": whole.permute(2, 0, 1),
        "channels_last": whole.reshape(1, 3, 4, 5).to(
            memory_format=torch.channels_last
        ),
        "expanded": whole[0, 0, :1].expand(7, 2),
        "scalar": whole[2, 3, 4],
        "empty": whole[:0],
        "end": whole[3:],
        "nothing": torch.zeros(0, 3),
    }
    read = read_torch(save(views))
    assert read.keys() == views.keys()
    for name, view in views.items():
        np.testing.assert_array_equal(read[name], view.numpy(), strict=True)
    assert np.shares_memory(read["whole"], read["slice"])
    assert np.shares_memory(read["whole"], read["transposed"])
    assert not np.shares_memory(read["whole"], read["channels_last"])


@pytest.fixture
def trained(layout):
    """A model and its optimizer after a step."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    return torch, model, optimizer


@LAYOUTS
def test_checkpoints_of_training_scripts(save, trained):
    torch, model, optimizer = trained
    weights = model.state_dict()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    checkpoints = {
        "bare": weights,
        "parameters": dict(model.named_parameters()) | dict(model.named_buffers()),
        "pytorch-fcn": {
            "epoch": 3,
            "arch": "FCN8s",
            "optim_state_dict": optimizer.state_dict(),
            "model_state_dict": weights,
            "best_mean_iu": np.float64(0.5),
        },
        "torchvision": {
            "model": weights,
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": scheduler.state_dict(),
            "args": argparse.Namespace(
                device=torch.device("cpu"), batch=torch.Size([2])
            ),
            "scores": np.arange(3.0),
        },
        "nested": {"net": {"state_dict": weights, "loss": torch.tensor(1.0)}},
        "beside": weights | {"epoch": 3, "note": None, "sizes": [1, 2]},
        "parallel": torch.nn.DataParallel(model).state_dict(),
        "compiled": {f"_orig_mod.module.{k}": v for k, v in weights.items()},
        "both": {f"module._orig_mod.{k}": v for k, v in weights.items()},
    }
    for name, checkpoint in checkpoints.items():
        for protocol in (2, 4):
            read = read_torch(save(checkpoint, pickle_protocol=protocol))
            assert read.keys() == weights.keys(), name
            for key, value in weights.items():
                np.testing.assert_array_equal(read[key], value.numpy(), strict=True)


@LAYOUTS
def test_module_is_kept_where_it_is_not_before_every_name(write, hand):
    x = hand.tensor("0", [6], [1])
    names = read_torch(write(hand.dictionary({"module.a": x, "head": x})))
    assert names.keys() == {"module.a", "head"}


@LAYOUTS
@pytest.mark.parametrize(
    ("entries", "named"),
    [
        (("model", "net"), "'model', 'net'"),
        (("generator",), "'generator'"),
        (("teacher", "student"), "'teacher', 'student'"),
        (("x", "encoder"), "'encoder'"),
        (("epoch",), "'epoch'"),
        ((), "nothing"),
    ],
)
def test_what_is_not_clearly_a_state_dict_is_refused(write, hand, entries, named):
    x = hand.tensor("0", [6], [1])
    values = {"x": x, "epoch": hand.number(3)}
    values = {name: values.get(name, hand.dictionary({"x": x})) for name in entries}
    storages = {} if set(entries) <= {"epoch"} else None
    with pytest.raises(
        WeightsError, match=f"no unique state dict; it contains {named}"
    ):
        read_torch(write(hand.dictionary(values), storages))


@LAYOUTS
def test_what_is_no_dictionary_is_refused(write, hand):
    for body in (b"]", b"N", hand.number(1)):
        with pytest.raises(WeightsError, match="no dictionary"):
            read_torch(write(body, {}))
    unnamed = b"}(K\x01" + hand.tensor("0", [6], [1]) + b"u"
    with pytest.raises(WeightsError, match="without names"):
        read_torch(write(unnamed))


@LAYOUTS
def test_a_model_saved_whole_is_refused_by_its_class(save, trained):
    _, model, _ = trained
    with pytest.raises(
        WeightsError, match=r"torch\.nn\.modules\.container\.Sequential"
    ):
        read_torch(save(model))


@LAYOUTS
def test_tensors_that_are_not_what_their_numbers_say_are_refused(save):
    torch = pytest.importorskip("torch")
    conjugated = torch.ones(2, dtype=torch.complex64).conj()
    with pytest.raises(WeightsError, match="conjugation"):
        read_torch(save({"x": conjugated}))
    sparse = torch.eye(2).to_sparse()
    with pytest.raises(WeightsError, match="_rebuild_sparse_tensor"):
        read_torch(save({"x": sparse}))


@LAYOUTS
def test_hand_written_file(write, hand):
    body = hand.dictionary(
        {
            "a": hand.tensor("0", [2, 3], [3, 1]),
            "b": hand.tensor(
                "0", [2], [2], offset=3, storage="torch.cuda FloatStorage"
            ),
        }
    )
    read = read_torch(write(body))
    np.testing.assert_array_equal(read["a"], np.array([[0, 1, 2], [3, 4, 5]], "f4"))
    np.testing.assert_array_equal(read["b"], np.array([3, 5], "f4"))
    assert not read["a"].flags.writeable


def test_file_of_python_2(tmp_path, hand):
    """As torch 0.1 wrote its models: byte strings, pairs in a list, storage views."""
    view = b"(" + hand.text("other") + b"K\x02K\x03t"
    x = hand.tensor("0", [2], [1], offset=1, view=view)
    body = b"ccollections\nOrderedDict\n(](](U\x01a" + x + b"eetR}U\x04_metNsb"
    path = tmp_path / "vgg16.pth"
    path.write_bytes(hand.legacy(hand.pickled(body), {"0": SIX.tobytes()}))
    read = read_torch(path)
    assert read.keys() == {"a"}
    np.testing.assert_array_equal(read["a"], np.array([3, 4], "f4"))


@LAYOUTS
def test_big_endian_files_are_refused(write, hand, layout):
    body = hand.dictionary({"x": hand.tensor("0", [6], [1])})
    options = {"order": b"big"} if layout == "zip" else {"little": False}
    with pytest.raises(WeightsError, match="big-endian"):
        read_torch(write(body, **options))


@LAYOUTS
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_the_system_is_not_run(write, tmp_path, layout, protocol):
    sentinel = tmp_path / "sentinel"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {sentinel}",)

    pickle.loads(pickle.dumps(Evil(), protocol))
    assert sentinel.exists(), "otherwise this test would show nothing"
    sentinel.unlink()
    for saved in (Evil(), {"state_dict": Evil()}, [Evil()]):
        path = write(pickle.dumps(saved, protocol)[2:-1])
        with pytest.raises(WeightsError, match=r"'posix\.system'.*it was not run"):
            read_torch(path)
    if layout == "legacy":  # where a plain pickle would be read as its first word
        path.write_bytes(pickle.dumps(Evil(), protocol))
        with pytest.raises(WeightsError, match=r"'posix\.system'"):
            read_torch(path)
    assert not sentinel.exists()


@LAYOUTS
@pytest.mark.parametrize(
    "body",
    {
        "inst": b"(X\x01\0\0\0xios\nsystem\n",
        "obj": b"(cos\nsystem\nX\x01\0\0\0xo",
        "newobj": b"cos\nsystem\nX\x01\0\0\0x\x85\x81",
        "newobj_ex": b"ccollections\nOrderedDict\n)}\x92",
        "getattr": b"cbuiltins\ngetattr\nX\x01\0\0\0xX\x01\0\0\0y\x86R",
        "dotted": b"\x80\x04X\x05\0\0\0torchX\x0c\0\0\0Size.__doc__\x93",
        "of a table's name": b"ctorch\nSize\nX\x0b\0\0\0__globals__\x86R",
        "extension": b"\x82\x01",
        "bytes of torch": b"ctorch.storage\n_load_from_bytes\nX\x01\0\0\0x\x85R",
    }.values(),
)
def test_other_ways_to_call_are_refused_too(write, body):
    with pytest.raises(WeightsError):
        read_torch(write(body))


@LAYOUTS
def test_state_that_is_set_on_the_readers_functions_is_dropped(write, hand):
    state = hand.dictionary({"__kwdefaults__": b"}", "storage": b"N"})
    size = b"ctorch\nSize\n" + b"N" + state + b"\x86b0"
    with pytest.raises(WeightsError):  # POP is not among the opcodes
        read_torch(write(size + hand.dictionary({"x": hand.tensor("0", [6], [1])})))
    kept = hand.dictionary({"f": b"ctorch\nSize\n" + b"N" + state + b"\x86b"})
    with pytest.raises(WeightsError, match="no unique state dict"):
        read_torch(write(kept, {}))
    assert not vars(torch_pickle._size)


@LAYOUTS
@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ([7], [1], 0),
        ([6], [1], 1),
        ([2, 3], [4, 1], 0),
        ([1], [1], 6),
        ([], [], 2**62),
        ([2], [2**62], 0),
        ([5], [2**60], 0),  # the reach in bytes is 0 modulo 2**64
        ([2**62], [1], 0),
        ([2**40, 2**40], [0, 0], 0),
        ([2**28], [0], 0),
        ([2**64], [1], 0),
        ([-1], [1], 0),
        ([2], [-1], 1),
        ([1], [1], -1),
        ([6], [], 0),
        ([6], [1, 1], 0),
        ([1] * 65, [1] * 65, 0),
    ],
)
def test_tensors_that_cannot_be_are_refused(write, hand, shape, strides, offset):
    body = hand.dictionary({"x": hand.tensor("0", shape, strides, offset)})
    with pytest.raises(WeightsError):
        read_torch(write(body))


@LAYOUTS
def test_storages_that_are_missing_or_short_are_refused(write, hand):
    body = hand.dictionary({"x": hand.tensor("0", [6], [1])})
    for storages in ({}, {"1": SIX.tobytes()}, {"0": SIX.tobytes()[:-4]}, {"0": b""}):
        with pytest.raises(WeightsError):
            read_torch(write(body, storages))
    elsewhere = hand.dictionary({"x": hand.tensor("../../0", [6], [1])})
    with pytest.raises(WeightsError):
        read_torch(write(elsewhere))


def test_storage_counts_of_the_legacy_layout_are_bounded(tmp_path, hand):
    body = hand.pickled(hand.dictionary({"x": hand.tensor("0", [6], [1])}))
    whole = hand.legacy(body, {"0": SIX.tobytes()})
    path = tmp_path / "file.pth"
    for count in (7, 2**60, 2**63 - 1, -1, -(2**62)):
        path.write_bytes(whole[:-32] + struct.pack("<q", count) + whole[-24:])
        with pytest.raises(WeightsError, match="damaged"):
            read_torch(path)
    x = hand.tensor("0", [6], [1], storage="torch ByteStorage")
    whole = hand.legacy(hand.pickled(hand.dictionary({"x": x})), {"0": bytes(6)})
    path.write_bytes(whole[:-14] + struct.pack("<q", -1) + whole[-6:])
    with pytest.raises(WeightsError, match="ends before"):
        read_torch(path)


PAIRS = b"".join(b"](X\4\0\0\0%04dNe" % i for i in range(1000))
CALLED = b"ccollections\nOrderedDict\nh\0\x85R" * 1000


@LAYOUTS
@pytest.mark.parametrize(
    "body",
    {
        "memo of 64 GB": b"}r\xff\xff\xff\xff",
        "string of 4 GB": b"X\xff\xff\xff\xffabc",
        "string of 2^62 bytes": b"\x8d" + struct.pack("<Q", 2**62),
        "bytearray of 2^62 bytes": b"\x96" + struct.pack("<Q", 2**62),
        "frame of 2^62 bytes": b"\x95" + struct.pack("<Q", 2**62),
        "number of 2^31 digits": b"\x8b\xff\xff\xff\x7f1",
        "one list many times": b"(](" + PAIRS + b"eq\0(" + CALLED + b"t",
    }.values(),
)
def test_hostile_pickles_take_no_memory(write, body):
    path = write(body, {})
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            read_torch(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24


def nested(depth: int) -> bytes:
    return b")" + b"\x85" * depth


@LAYOUTS
@pytest.mark.parametrize(
    "body",
    {
        "key nested deep": b"}" + nested(200_000) + b"Ns",
        "keys nested deep": b"}(" + nested(200_000) + b"Nu",
        "storage nested deep": nested(200_000) + b"Q",
        "many arguments, many times": b"((" + b"N" * 10**5 + b"tq\0"
        b"(" + b"c_codecs\nencode\nh\0R" * 10**5 + b"t",
    }.values(),
)
def test_hostile_pickles_take_neither_stack_nor_time(write, body):
    with pytest.raises(WeightsError):
        read_torch(write(body, {}))


@LAYOUTS
def test_a_dictionary_in_itself_is_refused(write, hand):
    with pytest.raises(WeightsError):
        read_torch(write(b"}q\0" + hand.text("model") + b"h\0s"))


def test_a_pickle_too_long_for_a_state_dict_is_refused(tmp_path, hand):
    path = tmp_path / "file.pth"
    saved = hand.pickled(b"]" * 2**23)
    path.write_bytes(hand.zipped(saved, {}))
    with pytest.raises(WeightsError, match="too long"):
        read_torch(path)


@LAYOUTS
def test_every_truncation_is_refused(write, hand):
    body = hand.dictionary({"x": hand.tensor("0", [6], [1])})
    path = write(body)
    whole = path.read_bytes()
    assert read_torch(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            read_torch(path)
