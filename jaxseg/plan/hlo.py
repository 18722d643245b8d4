"""Parsing of compiled programs: computations, instructions and sizes of arrays."""

import math
import re
from dataclasses import dataclass

_INSTRUCTION = re.compile(r'^\s*(ROOT )?%?(\S+) = ([^%"]*?) ([\w-]+)\(([^)]*)\)(.*)')
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([^\s(]+) \(.*\) -> .*\{$")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a program.

    Attributes:
        name: of the result.
        shape: of the result, as text; see `sizes`.
        kind: such as "all-reduce".
        operands: names of the operands, or other text in the parentheses.
        attributes: the rest of the line.
        root: whether the result is that of the computation.
    """

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


def parse(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """Reads the text of a program.

    Args:
        hlo: text of the program, `compiled.as_text()`.

    Returns:
        The instructions of each computation, by its name, and the name of the entry
        computation.
    """
    computations: dict[str, list[Instruction]] = {}
    instructions: list[Instruction] = []
    entry = ""
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            instructions = computations[head[1]] = []
            entry = head[1] if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(line):
            root, name, shape, kind, operands, attributes = match.groups()
            names = tuple(re.findall(r"[^\s,%]+", operands))
            instructions.append(
                Instruction(name, shape, kind, names, attributes, bool(root))
            )
    return computations, entry


def sizes(shape: str, *, main: bool = False) -> list[int]:
    """Bytes of the arrays of a shape, without the padding of their layouts.

    Args:
        shape: `f32[2,3]{1,0}`, or a tuple of shapes, of any depth.
        main: whether to count arrays in on-chip memory, S(1) and above, as 0 bytes.

    Returns:
        The bytes of each array.
    """
    found = []
    for dtype, bits, dims, layout in _ARRAY.findall(shape):
        count = math.prod(int(d) for d in dims.split(",") if d)
        size = math.ceil(count * (8 if dtype == "pred" else int(bits)) / 8)
        found.append(0 if main and "S(" in layout else size)
    return found
