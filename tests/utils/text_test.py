"""Names from strangers reach the terminal escaped."""

import io
import sys

import pytest

from jaxseg.utils.text import PrintableStream, direct, printable, printable_output

HIDDEN = [chr(c) for c in (*range(0x20), *range(0x7F, 0xA0))] + list(
    "\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\udc80"
)


@pytest.mark.parametrize("character", HIDDEN, ids=ascii)
def test_what_a_terminal_acts_on_is_escaped(character):
    shown = printable(f"a{character}b")
    assert shown.isascii() and shown.isprintable()
    assert shown.startswith("a\\") and shown.endswith("b")


@pytest.mark.parametrize("text", ["", "road", "Straße", "道路", "a\\n", "<b>", "🚗"])
def test_other_text_is_kept(text):
    assert printable(text) == text


def test_a_stream_keeps_its_own_line_breaks():
    inner = io.StringIO()
    stream = PrintableStream(inner)
    print("step\t1", "\x1b[2J\r", "\udc80", file=stream)
    stream.writelines(["a\n", "\u202e"])
    assert inner.getvalue() == "step\t1 \\x1b[2J\\r \\udc80\na\n\\u202e"
    assert direct(stream) is inner and direct(inner) is inner


def test_streams_are_restored(capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), printable_output():
        print("\x1b[31m")
        print("\x07", file=sys.stderr)
        raise KeyError
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("\\x1b[31m\n", "\\x07\n")
