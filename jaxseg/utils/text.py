"""Text from strangers, such as names of classes and files, for terminals and pages.

Control characters can move the cursor, hide text or run commands of a terminal, and
bidirectional ones show text in another order than it has.
"""

import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_ESCAPED = {
    ord(c)
    for c in (
        "\u061c\u200e\u200f\u2028\u2029"  # marks of direction, line separators
        "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
}


def printable(text: object) -> str:
    """The text with control and bidirectional characters escaped, such as `\\x1b`.

    Also escapes line breaks, and the bytes of file names that are not UTF-8.

    Args:
        text: a string, or an object such as a path.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cs")
    if hidden or ord(character) in _ESCAPED:
        return character.encode("unicode_escape", "surrogatepass").decode()
    return character


class PrintableStream:
    """A text stream that escapes what `printable` does, except line breaks and tabs."""

    def __init__(self, stream: Any):
        """Writes to `stream`.

        Args:
            stream: any text stream. Progress bars, which move the cursor themselves,
                write to it directly; see `direct`.
        """
        self.direct = stream

    def write(self, text: str) -> int:
        """Writes text; returns its length."""
        lines = text.split("\n")
        shown = ["\t".join(map(printable, line.split("\t"))) for line in lines]
        self.direct.write("\n".join(shown))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.direct, name)


def direct(stream: Any) -> Any:
    """The stream under a `PrintableStream`, for progress bars; others as they are."""
    return getattr(stream, "direct", stream)


@contextmanager
def printable_output() -> Iterator[None]:
    """Escapes everything that is printed to stdout and stderr in the block."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(PrintableStream, map(direct, streams))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
