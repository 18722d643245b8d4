"""Torch's two layouts written by hand, opcode by opcode."""

import io
import pickle
import struct
import zipfile
from types import SimpleNamespace

import pytest


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def numbers(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key, shape, strides, offset=0, storage="torch FloatStorage", view=b""
) -> bytes:
    module, kind = storage.split()
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            text("storage"),
            f"c{module}\n{kind}\n".encode(),
            text(key) + text("cpu") + number(6) + view + b"tQ",
            number(offset) + numbers(shape) + numbers(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",
        )
    )


def dictionary(entries: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(k) + v for k, v in entries.items()) + b"u"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def zipped(saved: bytes, storages: dict[str, bytes], order: bytes = b"little") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", saved)
        archive.writestr("archive/byteorder", order)
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values)
    return content.getvalue()


def legacy(saved: bytes, storages: dict[str, bytes], little: bool = True) -> bytes:
    system = {"protocol_version": 1001, "little_endian": little}
    head = (pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, system))
    counted = (struct.pack("<q", len(x) // 4) + x for x in storages.values())
    return b"".join((*head, saved, pickle.dumps(list(storages), 2), *counted))


@pytest.fixture
def hand():
    """Writes torch's files without torch, the right ones and the wrong ones."""
    return SimpleNamespace(
        text=text,
        number=number,
        tensor=tensor,
        dictionary=dictionary,
        pickled=pickled,
        zipped=zipped,
        legacy=legacy,
    )
