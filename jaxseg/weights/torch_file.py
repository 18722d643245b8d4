"""Reading of PyTorch's weight files without PyTorch."""

import contextlib
import functools
import io
import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxseg.weights.mapping import WeightsError
from jaxseg.weights.torch_pickle import MOST_BYTES, Tensor, Unpickler
from jaxseg.weights.untrusted import allowance, guarded, open_zip, read_entry

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which training scripts save the state dict, next to the optimizer etc."""

_WRAPPERS = ("module.", "_orig_mod.", "module.")
"""Prefixes of all names from DataParallel and torch.compile, in either order."""


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the state dict of a .pth or .pt, zipped or legacy (before torch 1.6).

    It may be stored under "state_dict", "model_state_dict", "model", "net" or
    "network"; everything else in the file, and entries that are not tensors, are
    ignored. A prefix "module." of all names is removed.

    Args:
        path: of the file.

    Returns:
        Read-only arrays by name, with the dtypes of the file. Tensors with a common
        storage have common memory.

    Raises:
        WeightsError: if the pickle calls a function that no state dict needs (it is
            named, and not called), or if the file is damaged, not from PyTorch, or
            contains no state dict, or several ones.
    """
    with guarded(path):
        with open(path, "rb") as file:
            layout = _zipped if file.read(2) == b"PK" else _legacy
        with layout(path) as (saved, read_storage):
            read_once = functools.cache(read_storage)
            arrays = {
                name: _array(name, tensor, read_once(tensor.storage.key))
                for name, tensor in _state_dict(saved).items()
            }
        # Strides of zero, and tensors with a common storage, repeat numbers.
        size = sum(array.nbytes for array in arrays.values())
        if size > allowance(os.path.getsize(path)):
            raise WeightsError("has tensors far larger than expected for its size.")
        return arrays


_Layout = Iterator[tuple[Any, Callable[[str], bytes]]]
"""The saved object, with `Tensor`s, and a function from a storage's key to its bytes."""


@contextlib.contextmanager
def _zipped(path: str | os.PathLike) -> _Layout:
    """A zip file with the pickle and one entry for each storage."""
    with open_zip(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise WeightsError("is a zip file, but not from PyTorch.")
        root = pickles[0].removesuffix("data.pkl")
        order = root + "byteorder"
        _check_order(order not in names or read_entry(archive, order) == b"little")
        if archive.getinfo(pickles[0]).file_size > MOST_BYTES:
            raise WeightsError("has a pickle that is too long for a state dict.")
        saved = Unpickler(io.BytesIO(read_entry(archive, pickles[0]))).load()
        yield saved, lambda key: read_entry(archive, f"{root}data/{key}")


@contextlib.contextmanager
def _legacy(path: str | os.PathLike) -> _Layout:
    """Pickles (magic number, version, system, object, keys), then the storages."""
    with open(path, "rb") as file:
        pickles = io.BytesIO(file.read(MOST_BYTES))
        for expected in (_LEGACY_MAGIC, _LEGACY_VERSION):
            if Unpickler(pickles).load() != expected:
                raise WeightsError("is a pickle, but not from PyTorch.")
        _check_order(Unpickler(pickles).load()["little_endian"])
        unpickler = Unpickler(pickles)
        saved = unpickler.load()
        keys = Unpickler(pickles).load()
        if not all(isinstance(key, str) for key in keys):
            raise WeightsError("is damaged: it has storages without names.")
        file.seek(pickles.tell())
        ranges = {key: _skip_storage(file, unpickler.itemsizes[key]) for key in keys}

        def read_storage(key: str) -> bytes:
            start, size = ranges[key]
            file.seek(start)
            return file.read(size)

        yield saved, read_storage


def _skip_storage(file: io.BufferedReader, itemsize: int) -> tuple[int, int]:
    """The position of a storage and its size in bytes; the file is then after it."""
    (count,) = struct.unpack("<q", file.read(8))
    start, size = file.tell(), count * itemsize
    if not 0 <= size <= os.fstat(file.fileno()).st_size - start:
        raise WeightsError("is damaged: it ends before its storages.")
    file.seek(start + size)
    return start, size


def _check_order(little: bool) -> None:
    if not little:
        raise WeightsError(
            "was written on a big-endian machine; load it in PyTorch and save it again "
            "on a little-endian one."
        )


def _state_dict(saved: Any) -> dict[str, Tensor]:
    """The tensors of the state dict in a saved object, by name."""
    for _ in _CONTAINERS:  # bounded, since a dictionary may contain itself
        if not isinstance(saved, dict):
            raise WeightsError("is from PyTorch, but has no dictionary of tensors.")
        inner = [name for name in _CONTAINERS if isinstance(saved.get(name), dict)]
        if len(inner) > 1:
            raise _unclear(inner)
        if not inner:
            break
        saved = saved[inner[0]]
    tensors = {name: x for name, x in saved.items() if isinstance(x, Tensor)}
    others = [name for name, value in saved.items() if _starts_with_tensor(value)]
    if others or not tensors:
        raise _unclear(others or list(saved))
    if not all(isinstance(name, str) for name in tensors):
        raise WeightsError("has tensors without names; save model.state_dict().")
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    return tensors


def _starts_with_tensor(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(
        next(iter(value.values()), None), Tensor
    )


def _unclear(names: list) -> WeightsError:
    shown = ", ".join(repr(name)[:60] for name in names[:8]) or "nothing"
    return WeightsError(
        f"has no unique state dict; it contains {shown}. In PyTorch, save only the "
        f"state dict, or save it under one of {', '.join(_CONTAINERS)}."
    )


def _array(name: str, tensor: Tensor, content: bytes) -> np.ndarray:
    """The array of a tensor, a view of the bytes of its storage."""
    itemsize = tensor.dtype.itemsize
    start = tensor.storage.start + tensor.offset
    # Python integers do not overflow.
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides))
    if 0 not in tensor.shape and start + reach >= len(content) // itemsize:
        raise WeightsError(f"is damaged: {name[:60]!r} is larger than its storage.")
    strides = [step * itemsize for step in tensor.strides]
    return np.ndarray(tensor.shape, tensor.dtype, content, start * itemsize, strides)
