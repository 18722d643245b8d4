"""Reading of Caffe's weight files without Caffe.

A .caffemodel is a protobuf message: a network of named layers, each with blobs of
numbers. Only the fields that contain weights are described here.

Source: caffe.proto of BVLC/caffe.
"""

import math
import os
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from jaxseg.utils.files import read_file
from jaxseg.weights.mapping import WeightsError

MAX_BYTES = 2**31 - 1
"""Largest size of a protobuf message."""

# The number, name and type of each field. Lists of numbers are read as packed bytes, as
# Caffe writes them, which avoids a Python object per number.
_MESSAGES = {
    "BlobShape": ((1, "dim", "repeated int64"),),
    "BlobProto": (
        (1, "num", "int64"),
        (2, "channels", "int64"),
        (3, "height", "int64"),
        (4, "width", "int64"),
        (5, "data", "repeated bytes"),
        (7, "shape", "BlobShape"),
        (8, "double_data", "repeated bytes"),
    ),
    "V1LayerParameter": (
        (4, "name", "bytes"),
        (5, "type", "int64"),
        (6, "blobs", "repeated BlobProto"),
    ),
    "LayerParameter": (
        (1, "name", "bytes"),
        (2, "type", "bytes"),
        (7, "blobs", "repeated BlobProto"),
    ),
    "NetParameter": (
        (2, "layers", "repeated V1LayerParameter"),
        (100, "layer", "repeated LayerParameter"),
    ),
}

_KERNEL_AXES = {4: 4, 39: 4, 14: 2} | {
    b"Convolution": 4,
    b"Deconvolution": 4,
    b"InnerProduct": 2,
}
"""Number of axes of the kernel of each layer type, of V1 and of newer layers."""


def read_caffe(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the weights of a .caffemodel with V1 or newer layers.

    Old blobs without shapes have four axes, with leading ones; they get the axes of new
    blobs, such as two for a dense kernel and one for a bias.

    Args:
        path: of the file.

    Returns:
        float32 arrays by layer and number, such as "conv1_1/0" for the kernel and
        "conv1_1/1" for the bias.

    Raises:
        WeightsError: if the file is not a .caffemodel, is damaged, or has no weights.
    """
    try:
        content = read_file(path, MAX_BYTES)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    net: Any = _message_class("NetParameter")()
    try:
        net.ParseFromString(content)
    except DecodeError as error:
        raise WeightsError(
            f"{path} is not a .caffemodel, or is damaged: {error}."
        ) from error
    tensors: dict[str, np.ndarray] = {}
    for layer in (*net.layers, *net.layer):
        for i, blob in enumerate(layer.blobs):
            try:
                name = f"{layer.name.decode()}/{i}"
                if name in tensors:
                    raise ValueError("occurs twice")
                axes = _KERNEL_AXES.get(layer.type, 1) if i == 0 else 1
                tensors[name] = _array(blob, axes)
            except ValueError as error:
                raise WeightsError(
                    f"{path} is not a .caffemodel, or is damaged: blob {i} of layer "
                    f"{layer.name!r} {error}."
                ) from error
    if not tensors:
        raise WeightsError(
            f"{path} has no layer with weights; use the .caffemodel of a trained "
            "network."
        )
    return tensors


def _array(blob, axes: int) -> np.ndarray:
    """The array of a blob; old blobs keep at least `axes` axes."""
    if blob.HasField("shape"):
        shape = tuple(blob.shape.dim)
    else:
        shape = (blob.num, blob.channels, blob.height, blob.width)
        while len(shape) > axes and shape[0] == 1:
            shape = shape[1:]
    single, double = b"".join(blob.data), b"".join(blob.double_data)
    if single and double:
        raise ValueError("has both float and double numbers")
    if len(single) % 4 or len(double) % 8:
        raise ValueError("ends in the middle of a number")
    values = np.frombuffer(double, "<f8") if double else np.frombuffer(single, "<f4")
    # Compared as Python integers, which do not overflow.
    if min(shape, default=1) < 1 or math.prod(shape) != values.size:
        raise ValueError(f"has {values.size} numbers for the shape {shape}")
    with np.errstate(over="ignore"):  # infinite, as in Caffe
        return values.astype(np.float32, copy=False).reshape(shape)


@cache
def _message_class(name: str):
    """The protobuf class of a message in `_MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(
        name="jaxseg/caffe.proto", package="caffe", syntax="proto2"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in _MESSAGES.items():
        description = file.message_type.add(name=message)
        for number, field, kind in fields:
            *repeated, kind = kind.split()
            description.field.add(
                name=field,
                number=number,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type=kinds.TYPE_MESSAGE
                if kind in _MESSAGES
                else getattr(kinds, f"TYPE_{kind.upper()}"),
                type_name=f".caffe.{kind}" if kind in _MESSAGES else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
