"""When a sample ends: after a number of characters or lines, or before a stop text."""

import codecs
import re
from collections.abc import Sequence

from charrnn.text.characters import END

_CONTINUATION = re.compile("[\udc80-\udcbf]*")  # bytes of a UTF-8 character after its first one, as in vocab.py


class LengthLimit:
    """Ends a text after a number of characters.

    A text of bytes, one character each, ends where a UTF-8 character ends, at most three bytes later.
    left: how many characters to draw; negative: no limit.
    """

    def __init__(self, length: int, *, has_bytes: bool = False) -> None:
        """Start at the beginning of a text. length: -1 sets no limit."""
        self.left = length
        self._has_bytes, self._finishing, self._last = has_bytes, False, ""

    def feed(self, text: str) -> str:
        """Read the next characters of the text; return those that belong to the sample."""
        if self.left < 0:
            return text
        used = text[: self.left]
        if self._finishing:
            whole, used = used, _CONTINUATION.match(used)[0]  # type: ignore[index]  # it matches anything
            self.left = self.left - len(used) if used == whole else 0
            return used
        self.left -= len(used)
        self._last = (self._last + used)[-3:]
        if self._has_bytes and self.left == 0:
            self.left, self._finishing = missing_bytes(self._last), True
            used += self.feed(text[len(used) :])
        return used


def missing_bytes(text: str) -> int:
    """Return how many bytes the UTF-8 character lacks that a text of bytes ends in; 0 if it is complete."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(text.rpartition(END)[2].encode("ascii", "surrogateescape"))
    begun, _ = decoder.getstate()
    if not begun:
        return 0
    size = 2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4
    return size - len(begun)


class StopCondition:
    """Ends a text after its n-th newline or before the first of its stop texts, whichever comes first.

    Characters that may begin a stop text are held back until it is known whether they do.
    """

    def __init__(self, lines: int = 0, stops: Sequence[str] = (), *, keep_stop: bool = False) -> None:
        """Start at the beginning of a text. lines: 0 sets no limit. keep_stop: end after a stop text, except END."""
        self.reached = False
        self._lines_left, self._stops, self._keep_stop, self._held = lines, stops, keep_stop, ""
        self._max_held = max(map(len, stops), default=1) - 1

    def feed(self, text: str) -> tuple[int, str]:
        """Read the next characters of the text.

        Returns how many of them belong to the sample or its stop text, and the text that can be written.
        """
        newlines = text.count("\n") if self._lines_left else 0
        num_held, text = len(self._held), self._held + text
        ends = []  # where the sample would end: after so many characters, of which the first are written
        for stop in self._stops:
            if (start := text.find(stop)) >= 0:
                end = start + len(stop)
                ends.append((end, end if self._keep_stop and stop != END else start))
        if 0 < self._lines_left <= newlines:
            end = num_held
            for _ in range(self._lines_left):
                end = text.index("\n", end) + 1
            ends.append((end, end))
        self._lines_left -= newlines
        if ends:
            self.reached, self._held = True, ""
            end, num_written = min(ends)
            return end - num_held, text[:num_written]
        cut = len(text) - self._partial_stop_length(text)
        self._held = text[cut:]
        return len(text) - num_held, text[:cut]

    def flush(self) -> str:
        """Return the characters held back, because no more follow."""
        held, self._held = self._held, ""
        return held

    def _partial_stop_length(self, text: str) -> int:
        """Return how many of the last characters may begin a stop text."""
        for count in range(min(self._max_held, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
