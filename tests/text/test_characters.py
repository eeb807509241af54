"""Visible forms of characters that can't be displayed."""

import pytest

from charrnn.text.characters import (
    END,
    UNKNOWN,
    bytes_as_chars,
    first_of,
    label,
    name,
    one_line,
    printable,
    readable,
    unescaped,
    valid_unicode,
    visible,
    visible_chars,
)


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, é 漢 😀", "plain text, é 漢 😀"),
        ("new\nline\tand tab", "new\nline\tand tab"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("bell\x07, back\x08, return\r", r"bell\x07, back\x08, return\r"),
        ("\x00\x7f", r"\x00\x7f"),
        ("\x9b31m", r"\x9b31m"),  # CSI as one byte of C1
        ("\u202egnitirw", r"\u202egnitirw"),  # right-to-left override
        ("\ufeff", r"\ufeff"),
        ("\udcff", r"\xff"),  # a byte that was not UTF-8
        ("\U000e0041", r"\U000e0041"),  # an invisible tag
        ("[/]bold[/]", "[/]bold[/]"),
    ],
)
def test_printable_text_cannot_control_a_terminal(text, shown):
    """Control, format and surrogate characters become escapes; all else stays."""
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("a\nb", r"a\nb"), ("a\tb", r"a\tb"), ("a\r\nb", r"a\r\nb"), ("\x1b]0;t\x07", r"\x1b]0;t\x07")]
)
def test_one_line_has_no_newline_or_tab(text, shown):
    """In a message newlines and tabs become escapes too."""
    assert one_line(text) == shown


def test_visible_chars_join_the_bytes_of_a_character():
    """The first byte shows the character and the others dots; invalid bytes are replaced."""
    assert visible_chars(bytes_as_chars("né\n") + "\udcff") == ["n", "é", "·", "↵", "\ufffd"]


@pytest.mark.parametrize(
    ("char", "expected"),
    [
        (END, "end"),
        (UNKNOWN, "rare"),
        ("\udce2", "E2"),
        ("\n", "↵"),
        ("\u202e", "202E"),
        (" ", "␣"),
        ("\u0301", "◌\u0301"),
        ("a", "a"),
    ],
)
def test_labels_of_single_characters(char, expected):
    """Invisible characters are shown as numbers; combining marks get a base."""
    assert label(char) == expected


@pytest.mark.parametrize("data", [b"a\xe9\xe9b", "né€😀".encode(), b"\xf0\x9f\x98", b"\xc3\xc3\xa9\xff\n"])
def test_bytes_become_valid_unicode(data):
    """As a decoder that replaces what is invalid does, whether the valid ones were decoded before or not."""
    expected = data.decode("utf-8", "replace")
    for encoding in ("ascii", "utf-8"):
        assert valid_unicode(data.decode(encoding, "surrogateescape")) == expected


def test_escapes_of_an_option_are_characters():
    """Others, and a backslash before anything else, stay as they are."""
    assert unescaped(r"\n\t\r\\n\x\ ") == "\n\t\r\\n\\x\\ "
    assert unescaped("a\nb\\") == "a\nb\\"


def test_a_message_names_the_first_of_many():
    """And says how many more there are."""
    assert [first_of(["a"] * count, 2) for count in (0, 1, 2)] == ["", "a", "a, a"]
    assert first_of(["a", "b", "c", *"d" * 1233], 3) == "a, b, c and 1,233 more"
