"""Changes to bytes, to JSON, to containers, and to what a path is."""

import contextlib
import functools
import io
import json
import os
import random
import re
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_NUMBERS = (
    *(0, -1, 1, 2, 3, 5, 7, 254, 255, 256, 65535, 65536, 10**6, 2**31 - 1, 2**31),
    *(2**32, 2**63 - 1, 2**63, 2**64, 10**17, -(10**17), 10**400),
    *(0.0, -0.0, 0.5, 1.5, 1e-320, 1e17, 1e308, float("nan"), float("inf")),
    -float("inf"),
)
_STRINGS = (
    *("", " ", "null", "1", "true", "..", "../../outside/file", "/", "/dev/zero"),
    *("canary_module.Feature", "canary_module", "os.system", "__class__", "val"),
    *(
        "\x1b[31mred\x1b[0m",
        "\u202eevil",
        "\0",
        "\ud800",
        "\r\nerror: fake",
        "a" * 9999,
    ),
    *("<script>alert(1)</script>", "%s%n{0}", "folder", "unet", "float64", "bfloat16"),
)
_TEXTS = (
    *(
        b"null",
        b"[]",
        b"{}",
        b"",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
        b'"text"',
        b"0",
    ),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"[" * 500 + b"]" * 500, b"\0" * 4096),
    *(b"1" * 5000, b'{"a": 1}{"a": 1}', b"NaN", b"{'a': 1}"),
)
_DEEP = json.loads("[" * 900 + "]" * 900)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """A copy of JSON values with one of them changed."""
    if not isinstance(value, dict | list):
        return _any_json(rng)
    value = _copy(value)
    # Every place of the tree, with the value that it is in.
    places: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        parent = pending.pop()
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        for key in keys:
            places.append((parent, key))
            if isinstance(parent[key], dict | list):
                pending.append(parent[key])
    if not places:
        return _any_json(rng)
    parent, key = rng.choice(places)
    how = rng.choice(("set", "set", "set", "same", "remove", "add", "rename", "swap"))
    if how == "set":
        parent[key] = _any_json(rng)
    elif how == "same":
        parent[key] = _similar(rng, parent[key])
    elif how == "remove":
        del parent[key]
    elif how == "add" and isinstance(parent, dict):
        parent[rng.choice(_STRINGS)] = _any_json(rng)
    elif how == "rename" and isinstance(parent, dict):
        parent[rng.choice((*_STRINGS, key.upper(), key + " "))] = parent.pop(key)
    elif how == "swap":
        other, place = rng.choice(places)
        # One may contain the other, which is then in another place.
        with contextlib.suppress(KeyError, IndexError, TypeError):
            parent[key], other[place] = _copy(other[place]), _copy(parent[key])
    else:  # a list that grows
        parent.insert(key, _copy(parent[key]))
    return value


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _any_json(rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(_NUMBERS)
    if kind < 5:
        return rng.choice(_STRINGS)
    simple = (None, True, False, [], {}, [None], [[]], {"": None}, [1] * 1000, _DEEP)
    return rng.choice(simple)


def _similar(rng: random.Random, value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, -value, value * 1000, value + 0.5))
    if isinstance(value, str):
        return rng.choice(
            (value + "x", value[:-1], value * 3, value.upper(), f" {value}")
        )
    if isinstance(value, list):
        return rng.choice((value[:-1], value * 2, value * 300, value[::-1]))
    return {} if rng.random() < 0.5 else {**value, "extra": 1}


def mutate_text(rng: random.Random, data: bytes) -> bytes | None:
    """Changes a file of JSON, or of JSON lines; None if it is neither."""
    if rng.random() < 0.05:
        return rng.choice(_TEXTS)
    try:
        text = data.decode()
        lines = [text] if text.startswith("{\n") else text.splitlines()
        values = [json.loads(line) for line in lines]
    except ValueError:
        try:
            lines, values = [data.decode()], [json.loads(data)]
        except (ValueError, RecursionError):
            return None
    except RecursionError:
        return None
    if not values:
        return rng.choice(_TEXTS)
    number = rng.randrange(len(values))
    lines[number] = json.dumps(mutate_json(rng, values[number]))
    if rng.random() < 0.1:  # a key twice, which JSON's own types cannot express
        other = json.dumps(_any_json(rng))
        lines[number] = re.sub(
            r'"(\w+)": ', lambda m: f'"{m[1]}": {other}, {m[0]}', lines[number], count=1
        )
    return "\n".join(lines).encode() + b"\n" * (len(lines) > 1)


def mutate_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes bytes without regard to their meaning."""
    content = bytearray(data or b"\0")
    how = rng.choice(("bits", "bits", "number", "number", "cut", "block", "splice"))
    start = rng.randrange(len(content))
    # Headers matter most.
    if rng.random() < 0.5:
        start = rng.randrange(min(64, len(content)))
    length = rng.choice((1, 2, 4, 16, 100, 1000))
    block = bytes(content[start : start + length])
    if how == "bits":
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[start] ^= 1 << rng.randrange(8)
            start = rng.randrange(len(content))
    elif how == "number":
        width = rng.choice((1, 2, 4, 8))
        most = 2 ** (8 * width) - 1
        value = rng.choice(
            (0, 1, most, most // 2, most // 2 + 1, most - 8, 1000, 65535)
        )
        order = rng.choice(("little", "big"))
        content[start : start + width] = (value & most).to_bytes(width, order)
    elif how == "cut":
        cut = rng.choice((len(content) - 1, start, len(content) // 2, 0))
        return bytes(content[:cut])
    elif how == "block":
        content[start : start + length] = rng.choice(
            (b"", block * 2, block * 100, bytes(len(block)), rng.randbytes(len(block)))
        )
    else:
        where = rng.randrange(len(other) or 1)
        content[start : start + length] = other[where : where + length]
    return bytes(content)


def mutate_inside(
    rng: random.Random, path: Path, data: bytes, other: bytes
) -> bytes | None:
    """Changes the content of a container, whose checksums are then right.

    Returns:
        The new content; None if the file is no container.
    """
    if data.startswith(b"PK"):
        return _mutate_zip(rng, data, other)
    if data.startswith(b"\x89PNG"):
        return _mutate_png(rng, data, other)
    if data[8:9] == b"{":  # safetensors
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        about = header.get("__metadata__", {})
        if "jaxseg" in about and rng.random() < 0.7:
            about["jaxseg"] = json.dumps(mutate_json(rng, json.loads(about["jaxseg"])))
        else:
            header = mutate_json(rng, header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]
    if ".array_record" in path.name:
        return _mutate_records(rng, path, other)
    return None


def _mutate_zip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    chosen = rng.randrange(len(entries))
    how = rng.choice(
        ("change", "change", "change", "remove", "rename", "twice", "bomb")
    )
    with zipfile.ZipFile(content, "w") as archive:
        for number, (info, entry) in enumerate(entries):
            copies = 1
            if number == chosen:
                if how == "change":
                    entry = _mutate_entry(rng, info.filename, entry, other)
                elif how == "remove":
                    continue
                elif how == "rename":
                    info.filename = rng.choice(("../x", "a" * 999, "x.npy", "\u202e"))
                elif how == "twice":
                    copies = 2
                else:
                    info.compress_type = zipfile.ZIP_DEFLATED
                    entry = entry[:128] + bytes(2**26)
            for _ in range(copies):
                archive.writestr(info, entry)
    return content.getvalue()


def _mutate_entry(rng: random.Random, name: str, entry: bytes, other: bytes) -> bytes:
    if name == "about.npy" and rng.random() < 0.7:
        about = json.loads(str(np.load(io.BytesIO(entry))))
        changed = io.BytesIO()
        np.save(changed, np.array(json.dumps(mutate_json(rng, about))))
        return changed.getvalue()
    return mutate_bytes(rng, entry, other)


def _mutate_png(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes one chunk, and gives it the right length and checksum."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    if not chunks:
        return data[:8]
    number = rng.randrange(len(chunks))
    kind, content = chunks[number]
    how = rng.choice(("size", "size", "change", "remove", "twice", "kind", "bomb"))
    if how == "size" and len(chunks[0][1]) == 13:
        sizes = (0, 1, 13, 17, 1000, 13_000, 50_000, 2**31 - 1, 2**32 - 1)
        size = struct.pack(">II", rng.choice(sizes), rng.choice(sizes))
        chunks[0] = (chunks[0][0], size + chunks[0][1][8:])
    elif how == "change":
        chunks[number] = (kind, mutate_bytes(rng, content, other))
    elif how == "remove":
        del chunks[number]
    elif how == "twice":
        chunks.insert(number, chunks[number])
    elif how == "kind":
        kinds = (b"IDAT", b"PLTE", b"tRNS", b"gAMA", b"acTL", b"fcTL", b"eXIf", b"cHRM")
        chunks.insert(
            number, (rng.choice(kinds), rng.randbytes(rng.choice((0, 1, 4, 26))))
        )
    else:
        text = b"a\0\0" + zlib.compress(bytes(2**27), 9)
        chunks.insert(1, (rng.choice((b"zTXt", b"iCCP", b"IDAT")), text))
    return data[:8] + b"".join(
        len(content).to_bytes(4, "big")
        + kind
        + content
        + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content in chunks
    )


def _mutate_records(rng: random.Random, path: Path, other: bytes) -> bytes:
    from array_record.python.array_record_module import (
        ArrayRecordReader,
        ArrayRecordWriter,
    )

    reader = ArrayRecordReader(str(path))
    records = [reader.read([i])[0] for i in range(reader.num_records())]
    reader.close()
    number = rng.randrange(len(records))
    how = rng.choice(("change", "change", "change", "remove", "twice", "png"))
    if how == "remove":
        del records[number]
    elif how == "twice":
        records.insert(number, records[number])
    elif how == "png" and b"\x89PNG" in records[number]:
        # Of the same length, so that the message around it stays right.
        start = records[number].rindex(b"\x89PNG")
        png = records[number][start:]
        wide = png[:16] + struct.pack(">II", 13_000, 13_000) + png[24:29]
        png = wide + zlib.crc32(wide[12:]).to_bytes(4, "big") + png[33:]
        records[number] = records[number][:start] + png
    else:
        records[number] = mutate_bytes(rng, records[number], other)
    changed = path.with_name("changed")
    writer = ArrayRecordWriter(str(changed), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    content = changed.read_bytes()
    changed.unlink()
    return content


_FOREIGN = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
    b"P6 3 2 255\n" + bytes(18),
    b"P6 99999 99999 255\n",
    b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"#define im_width 8\n#define im_height 1\nstatic char im_bits[] = {0x00};\n",
    b"SIMPLE  =                    T" + b" " * 2850,
    b"8BPS\0\1" + bytes(6) + b"\0\3" + struct.pack(">IIHH", 9, 9, 8, 3) + bytes(400),
    b"PK\x05\x06" + bytes(18),
    b"\x89HDF\r\n\x1a\n" + bytes(99),
    b"#!/bin/sh\ntouch outside\n",
    b"",
)


@functools.cache
def _other_images() -> tuple[bytes, ...]:
    """Images in formats that jaxseg does not document."""
    contents = []
    for kind in ("GIF", "BMP", "PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "MPO"):
        content = io.BytesIO()
        with contextlib.suppress(Exception):  # not in every build of PIL
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(content, kind)
            contents.append(content.getvalue())
    return tuple(contents)


def mutate_content(rng: random.Random, path: Path, files: Sequence[Path]) -> str:
    """Changes the content of one file; returns what it did."""
    data = path.read_bytes()
    other = rng.choice(files)
    other = other.read_bytes() if other.is_file() else b""
    if rng.random() < 0.06:
        foreign = (*_FOREIGN, *_other_images())
        number = rng.randrange(len(foreign))
        path.write_bytes(foreign[number])
        return f"foreign content {number}"
    changed = mutate_text(rng, data) if rng.random() < 0.75 else None
    how = "JSON"
    if changed is None and rng.random() < 0.5:
        changed, how = _quietly(mutate_inside, rng, path, data, other), "inside"
    if changed is None:
        changed, how = mutate_bytes(rng, data, other), "bytes"
    path.write_bytes(changed)
    return how


def _quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result; None if the content was changed too much before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*arguments)
        except Exception:
            return None


def mutate_file(rng: random.Random, path: Path, outside: Path) -> str:
    """Changes what a path is; returns what it did."""
    how = rng.choice(
        (
            *("removed", "emptied", "folder", "link to outside", "link to itself"),
            *(
                "FIFO",
                "link to /dev/zero",
                "link to a folder",
                "1 TiB",
                "link to nowhere",
            ),
        )
    )
    if how == "emptied":
        path.write_bytes(b"")
    elif how == "1 TiB":
        os.truncate(path, 2**40)
    else:
        path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "link to outside":
        path.symlink_to(outside / "file")
    elif how == "link to a folder":
        path.symlink_to(outside / "folder")
    elif how == "link to itself":
        path.symlink_to(path)
    elif how == "link to /dev/zero":
        path.symlink_to("/dev/zero")
    elif how == "link to nowhere":
        path.symlink_to(outside / "nowhere")
    elif how == "FIFO":
        os.mkfifo(path)
    return how


_FOLDER_NAMES = (
    *("0", "7", "007", "-1", "1e3", "1.5", str(10**17), "9" * 200, "\u0663", "\u00b2"),
    *(
        "15.orbax-checkpoint-tmp-1",
        "tmp",
        ".hidden",
        "a b",
        "\x1b[31m",
        "\u202e",
        "step_3",
    ),
)


def mutate_folder(rng: random.Random, path: Path, outside: Path) -> str:
    """Changes a folder of the input; returns what it did."""
    how = rng.choice(("removed", "renamed", "added", "added", "copied", "file", "link"))
    name = rng.choice(_FOLDER_NAMES)
    target, inside = path.with_name(name), path / name
    if os.path.lexists(target) or os.path.lexists(inside):
        return "nothing"
    if how == "added":
        inside.mkdir()
        if rng.random() < 0.5:
            (inside / "file").write_bytes(b"{}")
    elif how == "copied":
        shutil.copytree(path, target, symlinks=True, copy_function=_copy_plain)
    elif how == "renamed":
        path.rename(target)
    elif how == "link":
        inside.symlink_to(outside / rng.choice(("folder", "file", "nowhere")))
    else:
        shutil.rmtree(path)
        if how == "file":
            path.write_bytes(b"{}")
    return f"{how} {name!r}"


def _copy_plain(source: str, target: str) -> None:
    """Copies regular files only: a FIFO would wait."""
    if Path(source).is_file() and os.path.getsize(source) < 2**30:
        shutil.copyfile(source, target)


_WRITTEN = (
    *("metadata.json", "metadata.tmp", "metrics.jsonl", "metrics.tmp", ".lock", "lock"),
    *("checkpoints", "checkpoints/7", "shapes", "shapes/.lock", "shapes/.preparing-1"),
    *("exported.safetensors", "checkpoints/7.orbax-checkpoint-tmp", "run.lock"),
)


def plant(rng: random.Random, case: Path, outside: Path) -> str:
    """Puts a link where jaxseg may write; returns what it did."""
    path = case / rng.choice(_WRITTEN)
    if path.is_symlink() or path.exists():
        return "nothing"
    if path.parent != case:
        if path.parent.is_symlink() or path.parent.is_file():
            return "nothing"
        path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    done = mutate_file(rng, path, outside)
    if path.name in ("checkpoints", "shapes") and done == "link to a folder":
        path.unlink()  # users keep these on other disks
        done = "nothing"
    return f"{path.relative_to(case)}: {done}"
