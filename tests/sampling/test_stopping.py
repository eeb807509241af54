"""Where a sample ends: its length, stop texts and lines, on their own and together."""

import pytest

from charrnn.sampling.stopping import LengthLimit, StopCondition, missing_bytes
from charrnn.text.characters import END, bytes_as_chars


def test_only_a_possible_stop_is_held_back():
    """A character is passed on as soon as it can't belong to a stop text, however the text is cut into pieces."""
    stop = StopCondition(stops=["abx"])
    assert [stop.feed(char) for char in "abcab"] == [(1, ""), (1, ""), (1, "abc"), (1, ""), (1, "")]
    assert stop.feed("xyz") == (1, "")
    assert stop.reached
    assert stop.flush() == ""
    stop = StopCondition(stops=["abx"])
    assert stop.feed("zabcab") == (6, "zabc")
    assert not stop.reached
    assert stop.flush() == "ab"


@pytest.mark.parametrize(
    ("lines", "stops", "expected"),
    [(1, ["b\n"], "a"), (2, ["\nc"], "ab"), (1, ["\nc"], "ab\n"), (1, ["cd"], "ab\n"), (2, ["d"], "ab\nc")],
)
def test_a_stop_and_a_last_line_together(lines, stops, expected):
    """Whichever comes first ends the text; a newline that completes a stop text isn't written."""
    stop = StopCondition(lines, stops)
    _, text = stop.feed("ab\ncd\n")
    assert stop.reached
    assert text + stop.flush() == expected


@pytest.mark.parametrize(
    ("lines", "stops", "expected"), [(2, ["a\n"], "a\n"), (1, ["x"], "a\n"), (9, ["\nc"], "a\nb\nc")]
)
def test_a_kept_stop_ends_the_text(lines, stops, expected):
    """Whatever the pieces are; END is not kept."""
    for pieces in (["a\nb\ncd\n"], "a\nb\ncd\n"):
        stop, text, num_used = StopCondition(lines, stops, keep_stop=True), "", 0
        for piece in pieces:
            if not stop.reached:
                count, written = stop.feed(piece)
                num_used, text = num_used + count, text + written
        assert (text, num_used) == (expected, len(expected))
    assert StopCondition(0, ["b", END], keep_stop=True).feed("a" + END) == (2, "a")


def test_the_last_line_is_written_with_its_newline():
    """What follows it does not belong to the sample."""
    assert StopCondition(1).feed("a\nb") == (2, "a\n")


def test_without_conditions_everything_passes():
    """Nothing is held back."""
    stop = StopCondition()
    assert stop.feed("a\nb") == (3, "a\nb")
    assert not stop.reached


@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize(
    ("length", "data", "expected"),
    [
        (2, b"abcd", b"ab"),
        (2, "aé€".encode(), "aé".encode()),
        (4, "aé€b".encode(), "aé€".encode()),
        (1, "😀😀".encode(), "😀".encode()),
        (1, b"\xe9t\xe9", b"\xe9"),  # Latin-1
        (2, b"a\xf0\x9f\xff\xff", b"a\xf0\x9f"),
        (3, b"\x80\x80\x80\x80", b"\x80\x80\x80"),
        (0, "é".encode(), b""),
    ],
)
def test_a_text_of_bytes_ends_where_a_character_ends(size, length, data, expected):
    """However it is cut into pieces; bytes that don't finish a character are left out."""
    limit, chars, text = LengthLimit(length, has_bytes=True), data.decode("ascii", "surrogateescape"), ""
    for start in range(0, len(chars), size):
        text += limit.feed(chars[start : start + size])
    assert text.encode("ascii", "surrogateescape") == expected
    assert limit.left == 0


def test_a_length_in_characters_is_exact():
    """Whatever they are; -1 sets no limit."""
    limit = LengthLimit(3)
    assert (limit.feed("a\udce9"), limit.left) == ("a\udce9", 1)
    assert (limit.feed("\udce9b"), limit.left) == ("\udce9", 0)
    endless = LengthLimit(-1, has_bytes=True)
    assert (endless.feed("a\udce9"), endless.left) == ("a\udce9", -1)


def test_missing_bytes_are_those_of_the_last_character():
    """None after a complete or an impossible one."""
    found = [missing_bytes(bytes_as_chars("né€😀")[:count]) for count in range(11)]
    assert found == [0, 0, 1, 0, 2, 1, 0, 3, 2, 1, 0]
    assert [missing_bytes(text) for text in ("\udcff", "\udce0\udc80", "\udcc3a", "\udca9", "a" + END)] == [0] * 5
