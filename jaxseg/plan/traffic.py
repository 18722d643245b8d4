"""The memory traffic of a compiled program, read from its text."""

import re

from jaxseg.plan.hlo import Instruction, parse, sizes

_CALLED = re.compile(r"calls=%?([\w.-]+)")
_FREE = {
    "bitcast",
    "conditional",
    "constant",
    "custom-call",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "tuple",
    "while",
}
_SLICING = {"dynamic-slice", "gather", "slice"}
_COUNTER = 4
"""Largest size in bytes of the arrays that signal the end of an asynchronous copy."""


def memory_traffic(hlo: str) -> int:
    """A lower bound on the bytes that a program reads from and writes to main memory.

    Every instruction reads each operand once and writes its result once. An instruction
    that slices an array reads only the slice, and one that updates a slice touches only
    the slice. Arrays in on-chip memory, which TPUs mark by S(1) and above, are free,
    and so are instructions that only rename. Loops, branches and custom calls are left
    out, and arrays are counted without padding.

    XLA's `bytes accessed` is not a lower bound: it includes on-chip memory, and counts
    copies between it and main memory twice, at their start and at their end.

    Args:
        hlo: text of the program, `compiled.as_text()`.

    Returns:
        Bytes on one device.
    """
    computations, entry = parse(hlo)
    total, shapes = 0, {}
    for one in computations[entry]:
        shapes[one.name] = one.shape
        operands = [shapes.get(name, "") for name in one.operands]
        if one.kind in _FREE or one.kind.endswith("-done"):
            continue
        called = _CALLED.search(one.attributes) if one.kind == "fusion" else None
        if called:
            total += _fusion_traffic(computations[called[1]], operands, one.shape)
        else:
            total += _instruction_traffic(one.kind, operands, one.shape)
    return total


def _instruction_traffic(kind: str, operands: list[str], shape: str) -> int:
    """The traffic of an instruction that is not a fusion."""
    if kind in ("copy-start", "slice-start"):
        # Source and destination, and of the source only what is copied.
        both = [
            (whole, main)
            for whole, main in zip(sizes(shape), sizes(shape, main=True))
            if whole > _COUNTER
        ]
        moved = min((whole for whole, _ in both), default=0)
        return sum(min(moved, main) for _, main in both)
    if kind.endswith("-start"):  # its results include its operands
        return _main(shape)
    if kind in _SLICING:
        return min(_main(operands[0]), sum(sizes(shape))) + _main(shape)
    if kind == "dynamic-update-slice":
        return _main(operands[1]) + min(_main(shape), sum(sizes(operands[1])))
    return sum(map(_main, operands)) + _main(shape)


def _fusion_traffic(inner: list[Instruction], operands: list[str], shape: str) -> int:
    """The traffic of a fusion; of operands that it only slices, the slices count."""
    shapes = {one.name: one.shape for one in inner}
    (root,) = (one for one in inner if one.root)
    updates = root.kind == "dynamic-update-slice"
    update = sum(sizes(shapes[root.operands[1]])) if updates else 0
    total = min(_main(shape), update) if updates else _main(shape)
    for parameter in (one for one in inner if one.kind == "parameter"):
        whole = _main(operands[int(parameter.operands[0])])
        users = [one for one in inner if parameter.name in one.operands]
        if updates and users == [root] and root.operands[0] == parameter.name:
            continue
        if all(one.kind in _SLICING for one in users):
            whole = min(whole, sum(sum(sizes(one.shape)) for one in users))
        total += whole
    return total


def _main(shape: str) -> int:
    return sum(sizes(shape, main=True))
