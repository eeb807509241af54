"""When a sample ends: after a number of lines, or before a stop text."""

from collections.abc import Sequence


class StopCondition:
    """Ends a text after its n-th newline or before the first of its stop texts, whichever comes first.

    Characters that may begin a stop text are held back until it is known whether they do.
    """

    def __init__(self, lines: int = 0, stops: Sequence[str] = ()) -> None:
        """Start at the beginning of a text. lines: 0 sets no limit."""
        self.reached = False
        self._lines_left, self._stops, self._held = lines, stops, ""
        self._max_held = max(map(len, stops), default=1) - 1

    def feed(self, text: str) -> tuple[int, str]:
        """Read the next characters of the text.

        Returns how many of them belong to the sample or its stop text, and the text that can be written.
        """
        if not self._stops and not self._lines_left:
            return len(text), text
        output = ""
        for count, char in enumerate(text, 1):
            self._held += char
            if stops := [stop for stop in self._stops if self._held.endswith(stop)]:
                self.reached = True
                output += self._held[: -max(map(len, stops))]
                self._held = ""
                return count, output
            if char == "\n" and self._lines_left:
                self._lines_left -= 1
                if not self._lines_left:
                    self.reached = True
                    return count, output + self.flush()
            cut = len(self._held) - self._partial_stop_length()
            output, self._held = output + self._held[:cut], self._held[cut:]
        return len(text), output

    def flush(self) -> str:
        """Return the characters held back, because no more follow."""
        held, self._held = self._held, ""
        return held

    def _partial_stop_length(self) -> int:
        """Return how many of the last characters may begin a stop text."""
        for count in range(min(self._max_held, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0
