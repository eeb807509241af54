"""Visible forms of characters that can't be displayed."""

import pytest

from charrnn.data.characters import name, readable, visible
from charrnn.data.vocab import END, UNKNOWN, bytes_as_chars


@pytest.mark.parametrize(
    ("char", "shown", "called"),
    [
        ("\n", "↵", "newline"),
        ("\t", "␉", "tab"),
        ("\r", "␍", "carriage return"),
        (" ", " ", "space"),
        ("\x07", "␇", "U+0007"),
        ("\udce2", "�", "byte 0xE2"),
        (END, "␃", "end of document"),
        (UNKNOWN, "�", "one of the rarer characters"),
        ("\u202e", "�", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("\ufe0f", "�", "U+FE0F VARIATION SELECTOR-16"),
        ("\U0001f600", "\U0001f600", "U+1F600 GRINNING FACE"),
        ("中", "中", "U+4E2D"),
        ("\ufffd", "\ufffd", "U+FFFD REPLACEMENT CHARACTER"),
    ],
)
def test_visible_forms_and_names(char, shown, called):
    """A character that can't be displayed has a visible form, and its name says what it is."""
    assert visible(char) == shown
    assert name(char) == called


def test_readable_text_decodes_bytes():
    """Bytes that encode a character become that character, and the joiners of emoji stay."""
    assert readable(bytes_as_chars("né 中\n")) == "né 中\n"
    assert readable("a\udcffb" + END) == "a\ufffdb␃"
    assert readable("\u202e\x1b\r\t\U0001f469\u200d\U0001f680\ufe0f") == "\ufffd␛␍\t\U0001f469\u200d\U0001f680\ufe0f"
