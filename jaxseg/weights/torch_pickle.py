"""Reading of PyTorch's pickles without PyTorch, and without running their code.

A pickle is a program that may call any function. Here it can only call the few
functions below, which describe where the numbers of a tensor are stored, and the memory
it can allocate is bounded by its length.

Source: torch/serialization.py; `_rebuild_tensor_v2` and its kin in torch/_utils.py.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxseg.weights.mapping import WeightsError

MOST_BYTES = 2**23
"""Pickles of state dicts are below 1 MiB. Each byte of a malicious one may create an
object."""

_MOST_ARGUMENTS = 8
_MOST_AXES = 64


@dataclass(frozen=True)
class Storage:
    """A one-dimensional array under a key, which begins at `start`."""

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
            "has tensors with a lazy conjugation or negation; call resolve_conj() and "
            "resolve_neg() before saving."
        )
    if not (
        isinstance(storage, Storage)
        and isinstance(dtype, np.dtype)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= _MOST_AXES
        and all(map(_is_count, (storage.start, offset, *shape, *strides)))
    ):
        raise WeightsError("is damaged: it has an invalid tensor.")
    return Tensor(storage, dtype, offset, shape, strides)


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and 0 <= number < 2**63


def _rebuild_parameter(tensor, grad=None, hooks=None, state=None) -> Any:
    return tensor


def _ordered_dict(items: list | None = None) -> dict:
    """An OrderedDict: empty or, as Python 2 writes it, from a list of pairs."""
    items = [] if items is None else items
    entries = {name: value for name, value in items if isinstance(name, str)}
    items.clear()  # otherwise one list could create any number of dictionaries
    return entries


def _size(sizes: tuple) -> tuple:
    return sizes


def _ignored(*arguments) -> None:
    """Replaces objects that are not weights."""


_DTYPES = {
    f"torch.{name}": np.dtype(name)  # JAX registers the small floats in NumPy
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
    # Metrics, options and schedules that training scripts save with the state dict.
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
"""The opcodes in PyTorch's pickles, without those that `Unpickler` overrides."""


class Unpickler(pickle._Unpickler):
    """An unpickler that is restricted to the two tables above.

    It extends the Python implementation. The one in C allocates memory as the file
    requests, hashes keys of any depth, and has opcodes that cannot be removed.
    """

    # Attributes of the base class, which has no type declarations.
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in _OPCODES
    }

    def __init__(self, stream: io.BytesIO):
        """Prepares to read one pickle of a stream with `load()`.

        Args:
            stream: in memory, so that no string is longer than its content.
        """
        # Python 2 writes names as bytes.
        super().__init__(stream, encoding="utf-8", errors="backslashreplace")
        self.itemsizes: dict[str, int] = {}
        """Bytes of one number in each storage, by key."""

    def find_class(self, module: str, name: str) -> Any:
        """Looks up a name in the table; nothing is imported."""
        known = f"{module}.{name}"
        if known not in _GLOBALS:
            raise WeightsError(
                f"calls {known[:100]!r}, which no state dict needs; it was not run. If "
                "you trust the file, load it in PyTorch and save its state dict."
            )
        return _GLOBALS[known]

    def persistent_load(self, pid: Any) -> Storage:
        """("storage", type, key, device, size), in old files with (key, start, size)."""
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise WeightsError("is damaged: it refers to an object that is no storage.")
        dtype, key, view = pid[1], pid[2], pid[5:]
        if not (isinstance(dtype, np.dtype) and isinstance(key, str)):
            raise WeightsError("is damaged: it has a storage without type or key.")
        self.itemsizes.setdefault(key, dtype.itemsize)
        return Storage(key, dtype, view[0][1] if any(view) else 0)

    def load_reduce(self) -> None:
        """Calls a function of the table."""
        arguments = self.stack.pop()
        if len(arguments) > _MOST_ARGUMENTS:
            raise WeightsError("is damaged: it has a call with too many arguments.")
        self.stack[-1] = self.stack[-1](*arguments)

    def load_build(self) -> None:
        """Ignores the state of an object."""
        self.stack.pop()

    def load_setitem(self) -> None:
        """Sets one entry of a dictionary."""
        self._set([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self) -> None:
        """Sets the entries since the mark."""
        self._set(self.pop_mark())

    def _set(self, items: list) -> None:
        # Keys of other types are not names, and a tuple may be too deep to hash.
        pairs = zip(items[::2], items[1::2], strict=True)
        self.stack[-1].update({k: v for k, v in pairs if isinstance(k, str | int)})

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }
