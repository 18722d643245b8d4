"""PyTorch's pickles, read without PyTorch and without running what is in them.

A pickle is a program that may call anything. Here it finds nothing to call but the few
functions below, which only say where a tensor's numbers are; and what it makes is
bounded by its length.

Source: torch/serialization.py; `_rebuild_tensor_v2` and its kin in torch/_utils.py.
"""

import io
import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxseg.weights.mapping import WeightsError

MOST_BYTES = 2**23
"""Pickles of state dicts are below 1 MiB; each byte of a hostile one makes an object."""

_MOST_ARGUMENTS = 8
_MOST_AXES = 64


@dataclass(frozen=True)
class Storage:
    """Numbers in a row under a key, of which those before `start` are not seen."""

    key: str
    dtype: np.dtype
    start: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count numbers."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(
    storage, offset, shape, strides, grad=None, hooks=None, metadata=None
) -> Tensor:
    """`_rebuild_tensor` and `_rebuild_tensor_v2`, of a typed storage."""
    return _rebuild_typed(
        storage, offset, shape, strides, grad, hooks, storage.dtype, metadata
    )


def _rebuild_typed(
    storage, offset, shape, strides, grad, hooks, dtype, metadata=None
) -> Tensor:
    """`_rebuild_tensor_v3`, for types that have no storage of their own."""
    if metadata:
        raise WeightsError(
            "has tensors that are conjugated or negated when read; save them resolved."
        )
    if not (
        isinstance(storage, Storage)
        and isinstance(dtype, np.dtype)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= _MOST_AXES
        and all(map(_is_count, (storage.start, offset, *shape, *strides)))
    ):
        raise WeightsError("is damaged: it has a tensor of an impossible kind.")
    return Tensor(storage, dtype, offset, shape, strides)


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and 0 <= number < 2**63


def _rebuild_parameter(tensor, grad=None, hooks=None, state=None) -> Any:
    return tensor


def _ordered_dict(items: list | tuple = ()) -> dict:
    """An OrderedDict: empty or, as Python 2 wrote it, of a list of pairs."""
    entries = {name: value for name, value in items if isinstance(name, str)}
    if items:
        items.clear()  # or one list could be made into dictionaries without end
    return entries


def _size(sizes: tuple) -> tuple:
    return sizes


def _ignored(*arguments) -> None:
    """Stands for what is beside the tensors and is no weight."""


_DTYPES = {
    f"torch.{name}": np.dtype(name)  # NumPy knows the small floats from JAX
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("bool", "float8_e4m3fn", "float8_e5m2"),
    )
}

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

_GLOBALS = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_typed,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.storage.UntypedStorage": np.dtype("uint8"),
    **_DTYPES,
    **{f"torch.{name}": np.dtype(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.cuda.{name}": np.dtype(dtype) for name, dtype in _STORAGES.items()},
    # Scores, options and schedules that training scripts keep beside the state dict.
    "argparse.Namespace": _ignored,
    "collections.Counter": _ignored,
    "torch.device": _ignored,
    "_codecs.encode": _ignored,
    "numpy.dtype": _ignored,
    "numpy.ndarray": _ignored,
    "numpy.core.multiarray.scalar": _ignored,
    "numpy.core.multiarray._reconstruct": _ignored,
    "numpy._core.multiarray.scalar": _ignored,
    "numpy._core.multiarray._reconstruct": _ignored,
}

_OPCODES = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT"),
    *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "BINPERSID"),
)
"""What torch's pickles are made of, less what `Unpickler` does in its own way."""


class Unpickler(pickle._Unpickler):
    """An unpickler that can do no more than the two tables above allow.

    It is the one in Python: that in C reserves memory as the file says, hashes keys of
    any depth, and has opcodes that cannot be taken away.
    """

    dispatch: ClassVar = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in _OPCODES
    }

    def __init__(self, stream: io.BytesIO):
        """Reads one pickle of a stream, by `load()`; what follows it stays unread.

        Args:
            stream: in memory, so that no string is longer than what is there.
        """
        # Python 2 wrote names as bytes.
        super().__init__(stream, encoding="utf-8", errors="backslashreplace")
        self.itemsizes: dict[str, int] = {}
        """Bytes of one number in each storage that was met."""

    def find_class(self, module: str, name: str) -> Any:
        """What the table has, and never what Python would import."""
        known = f"{module}.{name}"
        if known not in _GLOBALS:
            raise WeightsError(
                f"asks for {known[:100]!r}, which no state dict needs; it was not run. "
                "Only if you trust the file, load it in torch and save its state dict."
            )
        return _GLOBALS[known]

    def persistent_load(self, pid: Any) -> Storage:
        """("storage", type, key, device, size) and, long ago, (key, start, size)."""
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise WeightsError("is damaged: it refers to what is no storage.")
        dtype, key, view = pid[1], pid[2], pid[5:]
        if not (isinstance(dtype, np.dtype) and isinstance(key, str)):
            raise WeightsError("is damaged: it has a storage without type or key.")
        self.itemsizes.setdefault(key, dtype.itemsize)
        return Storage(key, dtype, view[0][1] if any(view) else 0)

    def load_reduce(self) -> None:
        """Calls a function of the table, for there are no others."""
        arguments = self.stack.pop()
        if len(arguments) > _MOST_ARGUMENTS:
            raise WeightsError("is damaged: it has a call of too many arguments.")
        self.stack[-1] = self.stack[-1](*arguments)

    def load_build(self) -> None:
        """Drops the state that an object would be given."""
        self.stack.pop()

    def load_setitem(self) -> None:
        """Sets one entry of a dictionary."""
        self._set([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self) -> None:
        """Sets the entries since the mark."""
        self._set(self.pop_mark())

    def _set(self, items: list) -> None:
        # Keys of other types are no names; a tuple may be too deep to be hashed.
        pairs = zip(items[::2], items[1::2], strict=True)
        self.stack[-1].update({k: v for k, v in pairs if isinstance(k, str | int)})

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }
