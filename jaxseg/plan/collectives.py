"""The communication between devices in a compiled program, read from its text."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from jaxseg.plan.hlo import parse, sizes

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
        kind: one of `KINDS`.
        size: bytes of the array on one device: before a reduce-scatter, after any
            other collective.
        group: number of devices in a group.
    """

    kind: str
    size: int
    group: int

    @property
    def sent(self) -> float:
        """The least number of bytes that each device sends, as in a ring.

            all-reduce                              2 (n - 1) / n size
            all-gather, reduce-scatter, all-to-all    (n - 1) / n size
            collective-permute                                    size

        Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for
        clusters of workstations", 2009.
        """
        if self.kind == "collective-permute":
            return float(self.size)
        fraction = (self.group - 1) / self.group
        return (2 if self.kind == "all-reduce" else 1) * fraction * self.size


_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


def parse_collectives(hlo: str, devices: int) -> list[Collective]:
    """Reads the collectives of a compiled program.

    An asynchronous collective is counted at its start. On TPUs a reduce-scatter is a
    fused computation of that name around an all-reduce, and is counted as a
    reduce-scatter. The body of a loop is counted once.

    Args:
        hlo: text of the program, `compiled.as_text()`.
        devices: number of devices, which form one group if no groups are given.

    Returns:
        The collectives in the order of the text.
    """
    found = []
    for name, instructions in parse(hlo)[0].items():
        for one in instructions:
            kind, shape = one.kind.removesuffix("-start"), one.shape
            if kind not in KINDS:
                continue
            if kind != one.kind and kind != "all-reduce":
                shape = _elements(shape)[1]  # of (operands, results, ...)
            size, group = sum(sizes(shape)), _group(one.attributes, devices)
            if kind == "reduce-scatter":
                size *= group
            elif kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            found.append(Collective(kind, size, group))
    return found


def summarize(collectives: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Sums `count`, `bytes` (of the arrays) and `sent_bytes` by kind."""
    total: dict[str, dict[str, float]] = {}
    for one in collectives:
        row = total.setdefault(one.kind, {"count": 0, "bytes": 0, "sent_bytes": 0.0})
        row["count"] += 1
        row["bytes"] += one.size
        row["sent_bytes"] += one.sent
    return total


def _elements(shape: str) -> list[str]:
    """The outermost elements of a tuple's shape."""
    elements, depth = [""], 0
    for character in shape.strip()[1:-1]:
        depth += (character in "({[") - (character in ")}]")
        if character == "," and not depth:
            elements.append("")
        else:
            elements[-1] += character
    return elements


def _group(attributes: str, devices: int) -> int:
    if match := _LISTED.search(attributes):
        return match[1].count(",") + 1
    if match := _IOTA.search(attributes):
        return int(match[1])
    if match := _MESH.search(attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        # A sub-axis is written 'name':(size of what precedes it)own size.
        return math.prod(
            int(size or sizes[name])
            for name, size in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        )
    return devices
