"""PyTorch's weight files, read without PyTorch."""

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
"""Where training scripts keep the state dict, beside epoch and optimizer."""

_WRAPPERS = ("module.", "_orig_mod.", "module.")
"""What DataParallel and torch.compile put in front of every name, in either order."""


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the state dict of a .pth or .pt, zipped or legacy (before torch 1.6).

    It may lie under "state_dict", "model_state_dict", "model", "net" or "network" with
    other things beside it; those, and entries of it that are no tensors, are left out.
    A "module." in front of every name is taken off.

    Args:
        path: of the file.

    Returns:
        Read-only arrays by name, of the file's own types; bfloat16 is JAX's. Tensors
        that share a storage share memory.

    Raises:
        WeightsError: if the pickle asks for what no state dict needs (it is named, and
            not run); if the file is damaged, not torch's, or does not say which of its
            dictionaries is the state dict.
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
        # One number is seen as many by strides of zero, and by many tensors.
        if sum(array.nbytes for array in arrays.values()) > allowance(path):
            raise WeightsError("has tensors far larger than a file of its size holds.")
        return arrays


_Layout = Iterator[tuple[Any, Callable[[str], bytes]]]
"""What was saved, `Tensor`s in it, and a function from a storage's key to its bytes."""


@contextlib.contextmanager
def _zipped(path: str | os.PathLike) -> _Layout:
    """A zip of the pickle and of one entry for each storage."""
    with open_zip(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise WeightsError("is a zip, but not one of torch.")
        root = pickles[0].removesuffix("data.pkl")
        order = root + "byteorder"
        _check_order(order not in names or read_entry(archive, order) == b"little")
        if archive.getinfo(pickles[0]).file_size > MOST_BYTES:
            raise WeightsError("has a pickle far longer than that of a state dict.")
        saved = Unpickler(io.BytesIO(read_entry(archive, pickles[0]))).load()
        yield saved, lambda key: read_entry(archive, f"{root}data/{key}")


@contextlib.contextmanager
def _legacy(path: str | os.PathLike) -> _Layout:
    """Pickles (magic, version, system, what was saved, keys), then the storages."""
    with open(path, "rb") as file:
        pickles = io.BytesIO(file.read(MOST_BYTES))
        for expected in (_LEGACY_MAGIC, _LEGACY_VERSION):
            if Unpickler(pickles).load() != expected:
                raise WeightsError("is a pickle, but not one of torch.")
        _check_order(Unpickler(pickles).load()["little_endian"])
        unpickler = Unpickler(pickles)
        saved = unpickler.load()
        keys = Unpickler(pickles).load()
        if not all(isinstance(key, str) for key in keys):
            raise WeightsError("is damaged: it has storages without names.")
        file.seek(pickles.tell())
        places = {key: _skip_storage(file, unpickler.itemsizes[key]) for key in keys}

        def read_storage(key: str) -> bytes:
            start, size = places[key]
            file.seek(start)
            return file.read(size)

        yield saved, read_storage


def _skip_storage(file: io.BufferedReader, itemsize: int) -> tuple[int, int]:
    """Where a storage's numbers begin and their bytes; the file is then behind them."""
    (count,) = struct.unpack("<q", file.read(8))
    start, size = file.tell(), count * itemsize
    if not 0 <= size <= os.fstat(file.fileno()).st_size - start:
        raise WeightsError("is damaged: it ends before its storages do.")
    file.seek(start + size)
    return start, size


def _check_order(little: bool) -> None:
    if not little:
        raise WeightsError(
            "was written on a big-endian machine; load it in torch and save it again "
            "on another."
        )


def _state_dict(saved: Any) -> dict[str, Tensor]:
    """The tensors of the state dict in what was saved, by their names."""
    for _ in _CONTAINERS:  # no more often: a dictionary may contain itself
        if not isinstance(saved, dict):
            raise WeightsError("is torch's, but holds no dictionary of tensors.")
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
        f"does not say which is its state dict; it has {shown}. In torch, save the "
        f"state dict alone, or under one of {', '.join(_CONTAINERS)}."
    )


def _array(name: str, tensor: Tensor, content: bytes) -> np.ndarray:
    """The view that a tensor is of its storage's bytes."""
    itemsize = tensor.dtype.itemsize
    start = tensor.storage.start + tensor.offset
    # In whole numbers of Python, which do not overflow.
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides))
    if 0 not in tensor.shape and start + reach >= len(content) // itemsize:
        raise WeightsError(f"is damaged: {name[:60]!r} reaches beyond its storage.")
    strides = [step * itemsize for step in tensor.strides]
    return np.ndarray(tensor.shape, tensor.dtype, content, start * itemsize, strides)
