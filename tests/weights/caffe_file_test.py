"""Caffe's files, put together byte by byte as protobuf writes them."""

import random
import struct

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.utils.trees import unflatten
from jaxseg.weights.caffe_file import read_caffe
from jaxseg.weights.mapping import (
    CAFFE,
    Mapping,
    Source,
    WeightsError,
    conv_bgr,
    convert,
)


def varint(value: int) -> bytes:
    value %= 1 << 64  # negative numbers are those of 64 bits
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def chunk(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(shape, values=None, *, old=False, double=False) -> bytes:
    if old:
        dims = b"".join(number(i, n) for i, n in enumerate(shape, start=1))
    else:
        dims = chunk(7, chunk(1, b"".join(map(varint, shape))))
    values = range(int(np.prod(shape))) if values is None else np.ravel(values)
    kind = "d" if double else "f"
    packed = struct.pack(f"<{len(values)}{kind}", *values)
    return chunk(8 if double else 5, packed) + dims


def layer(name: str, *blobs: bytes, kind: str = "Convolution") -> bytes:
    content = chunk(1, name.encode()) + chunk(2, kind.encode()) + chunk(3, b"data")
    return chunk(100, content + b"".join(chunk(7, b) for b in blobs))


def v1_layer(name: str, *blobs: bytes, kind: int = 4) -> bytes:
    """Type 4 is a convolution, 14 a dense layer, 39 a transposed convolution."""
    content = chunk(2, b"data") + chunk(4, name.encode()) + number(5, kind)
    return chunk(2, content + b"".join(chunk(6, b) for b in blobs))


def net(*layers: bytes) -> bytes:
    return chunk(1, b"net") + b"".join(layers)


@pytest.fixture
def file(tmp_path):
    def write(content: bytes):
        path = tmp_path / "net.caffemodel"
        path.write_bytes(content)
        return path

    return write


def test_bytes_are_those_of_the_format():
    # Written out once by hand, so that the helpers above are known to be right.
    written = net(layer("c", blob((2,), (1.0, -2.0))))
    assert written == bytes.fromhex(
        "0a 03 6e6574"  # 1: name "net"
        "a2 06 27"  # 100: a layer of 39 bytes
        "0a 01 63"  # 1: name "c"
        "12 0b 436f6e766f6c7574696f6e"  # 2: type "Convolution"
        "1a 04 64617461"  # 3: bottom "data"
        "3a 0f"  # 7: a blob of 15 bytes
        "2a 08 0000803f 000000c0"  # 5: 1.0 and -2.0
        "3a 03 0a 01 02"  # 7: shape, 1: [2]
    )


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("make", [layer, v1_layer])
def test_reads_both_kinds_of_layers_and_of_shapes(file, make, old):
    kernel = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    bias_shape = (1, 1, 1, 2) if old else (2,)
    content = make(
        "conv1", blob(kernel.shape, kernel, old=old), blob(bias_shape, old=old)
    )
    relu = make("relu1")
    tensors = read_caffe(file(net(content, relu)))
    assert list(tensors) == ["conv1/0", "conv1/1"]
    np.testing.assert_array_equal(tensors["conv1/0"], kernel)
    np.testing.assert_array_equal(tensors["conv1/1"], [0, 1])
    assert all(t.dtype == np.float32 for t in tensors.values())


def test_old_shapes_lose_the_ones_in_front_but_not_a_kernels_own(file):
    content = net(
        v1_layer("dense", blob((1, 1, 3, 2), old=True), kind=14),
        v1_layer("one_unit", blob((1, 1, 1, 2), old=True), kind=14),
        v1_layer("one_class", blob((1, 4, 1, 1), old=True), kind=4),
        v1_layer("deconv", blob((1, 1, 4, 4), old=True), kind=39),
        layer("upgraded", blob((1, 1, 3, 2), old=True), kind="InnerProduct"),
        layer("bn", *2 * [blob((1, 5, 1, 1))], kind="BN"),
    )
    shapes = {name: t.shape for name, t in read_caffe(file(content)).items()}
    assert shapes == {
        "dense/0": (3, 2),
        "one_unit/0": (1, 2),
        "one_class/0": (1, 4, 1, 1),
        "deconv/0": (1, 1, 4, 4),
        "upgraded/0": (3, 2),
        "bn/0": (1, 5, 1, 1),
        "bn/1": (1, 5, 1, 1),
    }


def test_double_numbers_and_numbers_in_parts(file):
    parts = chunk(5, struct.pack("<2f", 1, 2)) + chunk(5, struct.pack("<f", 3))
    content = net(
        layer("wide", blob((3,), (0.5, 1e-3, -7), double=True)),
        layer("parts", parts + chunk(7, number(1, 3))),
    )
    tensors = read_caffe(file(content))
    np.testing.assert_array_equal(tensors["wide/0"], np.float32([0.5, 1e-3, -7]))
    assert tensors["wide/0"].dtype == np.float32
    np.testing.assert_array_equal(tensors["parts/0"], [1, 2, 3])


def test_one_convolution_worked_by_hand(file):
    """One pixel B, G, R = 1, 2, 3 and one beside it, under two 1x2 kernels.

    left: B + 10 G + 100 R of the first pixel and -R of the second, plus 0.5;
    right: G of the second pixel, minus 1.
    """
    kernel = np.zeros((2, 3, 1, 2))
    kernel[0, :, 0, 0] = 1, 10, 100
    kernel[0, 2, 0, 1] = -1
    kernel[1, 1, 0, 1] = 1
    written = v1_layer(
        "conv1",
        blob(kernel.shape, kernel, old=True),
        blob((1, 1, 1, 2), (0.5, -1), old=True),
    )
    conv = nn.Conv(2, (1, 2), padding="VALID")
    rgb = jnp.array([[[[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]]]])
    like = jax.eval_shape(conv.init, jax.random.key(0), rgb)
    sources = {
        "params/kernel": Source(("conv1/0",), conv_bgr),
        "params/bias": Source(("conv1/1",)),
    }
    mapping = Mapping("one", lambda path, shape: sources[path], CAFFE)
    converted = convert(read_caffe(file(net(written))), like, mapping)
    output = conv.apply(unflatten(converted.variables), rgb)
    np.testing.assert_array_equal(output, [[[[315.5, 4.0]]]])  # 1 + 20 + 300 - 6 + 0.5


BROKEN = {
    "too few numbers": (layer("c", blob((2, 3), range(5))), "5 numbers for the shape"),
    "huge": (layer("c", blob((2**40, 2**40), range(4))), "4 numbers for the shape"),
    # 2**64 is 0 in 64 bits.
    "wraps around": (layer("c", blob((2**33, 2**31), ())), "0 numbers for the shape"),
    "negative": (layer("c", blob((-2, -3), range(6))), "6 numbers for the shape"),
    "negative and old": (
        v1_layer("c", blob((-1, -1, 2, 3), range(6), old=True)),
        "6 numbers for the shape",
    ),
    "empty": (layer("c", blob((0, 3), ())), "0 numbers for the shape"),
    "no shape": (layer("c", chunk(5, bytes(4))), "1 numbers for the shape"),
    "too many axes": (layer("c", blob((1,) * 100)), "blob 0 of layer b'c'"),
    "half a number": (
        layer("c", chunk(5, b"abc") + chunk(7, number(1, 1))),
        "middle of a number",
    ),
    "two kinds of numbers": (
        layer("c", blob((1,)) + blob((1,), double=True)),
        "both float and double",
    ),
    "same name": (layer("c", blob((1,))) + layer("c", blob((1,))), "occurs twice"),
    "same name in both": (
        v1_layer("c", blob((1,))) + layer("c", blob((1,))),
        "occurs twice",
    ),
    "name of no text": (
        chunk(100, chunk(1, b"\xff\xfe") + chunk(7, blob((1,)))),
        "utf-8",
    ),
    "no weights": (layer("relu"), "no layer with weights"),
    "nothing": (b"", "no layer with weights"),
    "another message": (chunk(3, b"abc") + number(7, 5), "no layer with weights"),
    "text": (b'name: "VGG_ILSVRC_16_layers"\nlayers { name: "data" }\n', "damaged"),
    "zip": (b"PK\x03\x04" + bytes(100), "damaged"),
    "longer than the file": (chunk(100, b"")[:-1] + varint(2**31), "damaged"),
    "groups without end": (varint(9 << 3 | 3) * 10_000, "damaged"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_refused(file, what):
    content, message = BROKEN[what]
    with pytest.raises(WeightsError, match=rf"net\.caffemodel .*{message}"):
        read_caffe(file(content))


def test_a_missing_file_is_not_called_a_broken_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_caffe(tmp_path / "none.caffemodel")


def test_damaged_files_are_read_or_refused_and_nothing_else(file):
    whole = net(
        v1_layer("conv1", blob((2, 3, 1, 1), old=True), blob((1, 1, 1, 2), old=True)),
        layer("fc", blob((4, 2)), blob((4,), double=True), kind="InnerProduct"),
    )
    assert len(read_caffe(file(whole))) == 4
    files = [whole[:n] for n in range(len(whole))]
    chance = random.Random(0)
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(damaged))
            what = chance.random()
            if what < 0.5:
                damaged[place] = chance.randrange(256)
            elif what < 0.75:
                del damaged[place : place + chance.randint(1, 8)]
            else:
                damaged[place:place] = chance.randbytes(chance.randint(1, 8))
        files.append(bytes(damaged))
    files += [chance.randbytes(chance.randint(1, 200)) for _ in range(100)]
    refused = 0
    for content in files:
        try:
            tensors = read_caffe(file(content))
        except WeightsError:
            refused += 1
        else:
            # What is read is no larger than what was there to read.
            assert 0 < sum(t.nbytes for t in tensors.values()) <= len(content)
    assert refused > len(files) // 2
