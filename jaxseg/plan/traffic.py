"""What a compiled program moves through a device's memory, read from its text."""

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
_PICKING = {"dynamic-slice", "gather", "slice"}
_COUNTER = 4
"""Bytes of the arrays by which an asynchronous copy says that it is done, at most."""


def memory_traffic(hlo: str) -> int:
    """Counts the bytes that a program reads from main memory and writes to it at least.

    Every instruction reads each of its operands once and writes its result once; one
    that picks a part reads no more than that, and one that updates a part touches that
    alone. What lies in a memory of the chip itself, which TPUs mark by S(1) and above,
    costs nothing, nor does what only renames. Loops, branches and custom calls are left
    out, and arrays count without padding: it is a lower bound.

    XLA's own `bytes accessed` is none: it counts the chip's memories too, and copies
    between them and the main memory both where they start and where they end.

    Args:
        hlo: the program's text, `compiled.as_text()`.

    Returns:
        Bytes of one device.
    """
    computations, entry = parse(hlo)
    total, shapes = 0, {}
    for one in computations[entry]:
        shapes[one.name] = one.shape
        operands = [shapes.get(name, "") for name in one.operands]
        if one.kind in _FREE or one.kind.endswith("-done"):
            continue
        if one.kind == "fusion":
            called = _CALLED.search(one.attributes)[1]
            total += _fused(computations[called], operands, one.shape)
        else:
            total += _alone(one.kind, operands, one.shape)
    return total


def _alone(kind: str, operands: list[str], shape: str) -> int:
    """Of an instruction that is not a fusion."""
    if kind in ("copy-start", "slice-start"):
        # Source and destination; of the source no more than goes over.
        both = [
            (whole, main)
            for whole, main in zip(sizes(shape), sizes(shape, main=True))
            if whole > _COUNTER
        ]
        moved = min((whole for whole, _ in both), default=0)
        return sum(min(moved, main) for _, main in both)
    if kind.endswith("-start"):  # has its operands among its results
        return _main(shape)
    if kind in _PICKING:
        return min(_main(operands[0]), sum(sizes(shape))) + _main(shape)
    if kind == "dynamic-update-slice":
        return _main(operands[1]) + min(_main(shape), sum(sizes(operands[1])))
    return sum(map(_main, operands)) + _main(shape)


def _fused(inner: list[Instruction], operands: list[str], shape: str) -> int:
    """Of a fusion: what it only picks from costs what it picks."""
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
        if all(one.kind in _PICKING for one in users):
            whole = min(whole, sum(sum(sizes(one.shape)) for one in users))
        total += whole
    return total


def _main(shape: str) -> int:
    return sum(sizes(shape, main=True))
