"""Reading weight files of all kinds, and writing safetensors.

The kind of a file is determined by its content, not by its suffix.
"""

import io
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from jaxseg.utils.files import atomic_path, read_file
from jaxseg.weights.caffe_file import read_caffe
from jaxseg.weights.mapping import WeightsError
from jaxseg.weights.torch_file import read_torch
from jaxseg.weights.untrusted import guarded, open_zip, read_entry

MAX_NPY_BYTES = 2**32
"""Largest .npy file, which is one array."""

_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a weight file of PyTorch, Caffe, NumPy or safetensors.

    Args:
        path: a .pth or .pt (zipped or legacy), .safetensors, .npz, .npy (one array,
            named like the file) or .caffemodel, with any suffix.

    Returns:
        Arrays by name, with the names, dtypes and layouts of the file.

    Raises:
        WeightsError: if the file is none of these, is damaged, or would run code.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(
            f"{path} is a folder, not a weight file; open workdirs with jaxseg.load."
        )
    if not path.exists():
        raise WeightsError(f"The file {path} does not exist.")
    with guarded(path):
        with open(path, "rb") as file:
            start = file.read(16)
        if start.startswith(b"PK") and _is_npz(path):
            return _read_npz(path)
        if start.startswith(b"\x93NUMPY"):
            return {path.stem: _read_npy(read_file(path, MAX_NPY_BYTES))}
        if start[8:9] == b"{":
            return safetensors.numpy.load_file(path)
    if start.startswith((b"PK", b"\x80")):
        return read_torch(path)
    try:
        return read_caffe(path)
    except WeightsError as error:
        begins = f"begins with {start!r}" if start else "is empty"
        raise WeightsError(
            f"{path} is not a supported weight file (.pth, .pt, .safetensors, .npz, "
            f".caffemodel), or is damaged: it {begins}. (As a .caffemodel: {error})"
        ) from error


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a .safetensors file atomically.

    Args:
        path: of the file; an existing file is replaced.
        tensors: arrays by name.
        metadata: for the header of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    with atomic_path(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, dict(metadata))


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata in the header of a .safetensors file; empty for other files.

    Raises:
        WeightsError: if the file does not exist or is damaged.
    """
    with guarded(path):
        with open(path, "rb") as file:
            if file.read(9)[8:] != b"{":
                return {}
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}


def _is_npz(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with open_zip(path) as archive:
        return {
            name.removesuffix(".npy"): _read_npy(read_entry(archive, name))
            for name in archive.namelist()
        }


def _read_npy(content: bytes) -> np.ndarray:
    """Reads an array of numbers; memory is bounded by the content, unlike in NumPy."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    shape, by_columns, dtype = _NPY_HEADERS[version](stream)
    if dtype.kind not in "biufc":
        raise WeightsError(
            f"contains an array of {dtype}, not of numbers; pickled objects are not "
            "supported, and bfloat16 needs safetensors."
        )
    if min(shape, default=0) < 0:
        raise WeightsError("is damaged: it has a negative size.")
    values = np.frombuffer(content, dtype, math.prod(shape), offset=stream.tell())
    array = values.reshape(shape, order="F" if by_columns else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
