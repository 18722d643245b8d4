"""Damaged JSON is an error that names the file."""

import os

import pytest

from jaxseg.utils.json_file import parse_json, read_json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe", "can't decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is given twice"),
        (b"1" * 5000, "integer string conversion"),
    ],
)
def test_damage_names_the_file(content, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.json is damaged: .*{message}") as error:
        read_json(path)
    assert len(str(error.value).splitlines()) == 1


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: not a regular file"):
        read_json(tmp_path / "pipe")


def test_other_json_is_read():
    assert parse_json('{"a": [1, null, "\\u00e9"]}', "x") == {"a": [1, None, "é"]}
    assert parse_json(b"[NaN]", "x") != [None]


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "x.json").write_text('{"a": "ß"}', encoding="utf-8-sig")
    assert read_json(tmp_path / "x.json") == {"a": "ß"}
