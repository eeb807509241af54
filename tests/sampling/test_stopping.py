"""Where a sample ends: stop texts and lines, on their own and together."""

import pytest

from charrnn.sampling.stopping import StopCondition


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


def test_the_last_line_is_written_with_its_newline():
    """What follows it does not belong to the sample."""
    assert StopCondition(1).feed("a\nb") == (2, "a\n")


def test_without_conditions_everything_passes():
    """Nothing is held back."""
    stop = StopCondition()
    assert stop.feed("a\nb") == (3, "a\nb")
    assert not stop.reached
