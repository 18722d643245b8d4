"""Text in pictures: no name is shown as boxes."""

import numpy as np
import pytest

from jaxseg.visualization import text
from jaxseg.visualization.overlays import overlay_with_legend
from jaxseg.visualization.text import drawable

NAMES = ["Straße", "Gebäude", "дорога", "δρόμος", "道路", "طريق", "सड़क", "도로"]


@pytest.fixture
def no_system_fonts(monkeypatch):
    drawable.cache_clear()
    monkeypatch.setattr(text, "_system_fonts", lambda: ())
    yield
    drawable.cache_clear()


def has_boxes(name):
    shown, font = drawable(name)
    box = bytes(font.getmask("\uffff"))
    return any(bytes(font.getmask(c)) == box for c in shown if not c.isspace())


@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_shown_as_boxes(name):
    assert not has_boxes(name)


@pytest.mark.parametrize("name", NAMES)
def test_characters_without_a_font_are_escaped(name, no_system_fonts):
    shown, _ = drawable(name)
    assert shown.encode("ascii").decode("unicode_escape") == name
    assert not has_boxes(name)


def test_fonts_are_found_without_a_home_folder(monkeypatch):
    """As in a container that runs as a user without an entry in /etc/passwd."""

    def getpwuid(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", getpwuid)
    assert text._font_folders()


def test_ascii_needs_no_other_font(monkeypatch):
    monkeypatch.setattr(text, "_system_fonts", lambda: pytest.fail("searched"))
    assert drawable("road sign")[0] == "road sign"


def test_accents_are_one_character_and_lines_are_escaped(no_system_fonts):
    assert drawable("cafe\u0301")[0] == drawable("caf\u00e9")[0]
    assert drawable("a\nb")[0] == r"a\nb"


@pytest.mark.parametrize("fonts", [True, False])
def test_legends_differ_where_names_do(fonts, request):
    if not fonts:
        request.getfixturevalue("no_system_fonts")
    image = np.zeros((8, 8, 3), np.uint8)
    pictures = [
        overlay_with_legend(image, image[..., 0], [(255, 0, 0)], [name])
        for name in NAMES
    ]
    assert len({p.tobytes() for p in pictures}) == len(NAMES)
