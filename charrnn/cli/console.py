"""All that a person sees: the progress bar, tables, the error line; and what scripts read on stdout.

Results go to stdout, everything else to stderr. Text from outside (file names, corpora,
samples) is never interpreted: rich markup is off, and control characters are shown.
"""

import contextlib
import json
import math
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from charrnn.cli.messages import clock, describe, sparkline
from charrnn.data.characters import one_line, printable
from charrnn.errors import CharrnnError, OutputClosed
from charrnn.events import Evaluated, Event, Progress, bits

_SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal to draw a bar on


def write(data: bytes) -> None:
    """Put bytes on stdout and flush. Raises OutputClosed, or CharrnnError where it is full."""
    if sys.stdout is None:
        raise CharrnnError("can't write to stdout: it is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        drop_stdout()
        if isinstance(error, BrokenPipeError):
            raise OutputClosed from None
        raise CharrnnError(f"can't write to stdout: {error.strerror}") from None


def drop_stdout() -> None:
    """Let what is still buffered go nowhere, so that it isn't tried again when the interpreter ends."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def on_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def result_path(path: os.PathLike[str]) -> None:
    """Print a path: its own bytes in a pipe, escaped on a terminal."""
    result(one_line(str(path)) if on_terminal() else str(path))


def result(text: str) -> None:
    """Print one line of result on stdout, UTF-8 whatever the locale."""
    write(faithful(text) + b"\n")


def sentences(texts: Iterable[str]) -> None:
    """Print sentences on stdout, one a line; on a terminal none is broken within a word."""
    for text in texts:
        result(wrapped(text) if on_terminal() else text)


def wrapped(text: str) -> str:
    """A text's lines, broken between words where the terminal is narrower."""
    width = max(20, shutil.get_terminal_size().columns)
    return "\n".join(textwrap.fill(line, width, break_long_words=False) for line in text.split("\n"))


def result_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object as a line on stdout."""
    result(json.dumps(value))


def note(text: str) -> None:
    """Tell the person something on stderr."""
    with contextlib.suppress(OSError):  # nobody listens, which is no reason to stop
        print(printable(text), file=sys.stderr, flush=True)


def paragraph(text: str) -> None:
    """The same for sentences: on a terminal none is broken within a word."""
    note(wrapped(text) if sys.stderr.isatty() else text)


@contextlib.contextmanager
def slow_notice(reason: str, *, quiet: bool = False) -> Iterator[None]:
    """Say what takes so long, if what happens meanwhile takes more than a second."""
    timer = threading.Timer(1.0, lambda: None if quiet else note(f"{reason} …"))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def error(text: str) -> None:
    """The one line that a failed command ends with."""
    note(f"charrnn: {one_line(text)}")


def faithful(text: str) -> bytes:
    """A text in UTF-8; bytes of the command line that were none come out as they went in."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character of UTF-16, which UTF-8 has no place for
        return text.encode("utf-8", "surrogatepass")


def stream(pieces: Iterator[str]) -> None:
    """Write text as it is drawn, each piece at once.

    On a terminal control characters are shown as escapes; elsewhere the bytes are faithful.
    """
    terminal = on_terminal()
    piece = ""
    try:
        for piece in pieces:
            write(printable(piece).encode() if terminal else faithful(piece))
    finally:
        if terminal and not piece.endswith("\n"):  # the shell's prompt follows
            write(b"\n")


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str] = ()) -> None:
    """Print a table on stdout: boxed on a terminal, tab-separated in a pipe."""
    if not on_terminal():
        for row in [header, *rows] if header else rows:
            result("\t".join(one_line(cell) for cell in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE, show_header=bool(header))
    for index in range(len(rows[0]) if rows else len(header)):
        name = header[index] if header else ""
        grid.add_column(Text(one_line(name)), justify="left" if index == 0 else "default", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(one_line(cell)) for cell in row))
    Console(file=sys.stdout, highlight=False).print(grid)


# of a character's bits: up to how many, what they are called, how a terminal shows them
_SURPRISES = (
    (1.0, "below 1", ""),
    (2.0, "1–2", "black on #fff0b3"),
    (4.0, "2–4", "black on #ffcf70"),
    (6.0, "4–6", "black on #ff9d5c"),
    (math.inf, "above 6", "black on #f0605c"),
)


def in_colour() -> bool:
    """Whether a person reads stdout and wants colour."""
    from rich.console import Console

    return on_terminal() and not (console := Console(file=sys.stdout)).no_color and console.color_system is not None


def surprises(text: str, nats: Iterable[float]) -> None:
    """Print a text on a terminal, each character on a colour that says what it cost; nats may go on after it."""
    from rich.console import Console
    from rich.text import Text

    console, excerpt, legend = Console(file=sys.stdout, highlight=False), Text("\n"), Text("bits: ")
    for char, cost in zip(text, nats, strict=False):
        excerpt.append(printable(char), next(style for most, _, style in _SURPRISES if bits(cost) <= most))
    for _, name, style in _SURPRISES:
        legend.append(f" {name} ", style)
    console.print(excerpt)
    console.print(legend, "\n")


class TrainView:
    """Draws a run's events: a bar and lines on stderr, or JSON lines on stdout, or nothing."""

    def __init__(self, *, json_lines: bool, quiet: bool) -> None:
        self._json = json_lines
        self.quiet = quiet
        self._bar: Any = None
        self._last_line = time.monotonic()
        self._held_out: list[float] = []

    def show(self, event: Event) -> None:
        if self._json:
            result_json(event.record())
        if self.quiet:
            return
        with contextlib.suppress(OSError):  # of a stderr that was closed: training goes on
            if isinstance(event, Progress):
                self._progress(event)
            elif text := describe(event):
                self._line(text + self._curve(event))

    def stopping(self) -> None:
        """Say at once that a signal was heard; what is under way is finished first.

        Called by a signal's handler, perhaps in the middle of a line: it must not use Python's buffers.
        """
        if not self.quiet:
            over_the_bar = b"\r\033[K" * (self._bar is not None)
            with contextlib.suppress(OSError, ValueError):  # nobody listens
                os.write(2, over_the_bar + b"stopping after this step; press again to stop at once without saving\n")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _curve(self, event: Event) -> str:
        """How the held-out text's loss has moved, where a person sees it at a glance."""
        if not isinstance(event, Evaluated) or not sys.stderr.isatty():
            return ""
        self._held_out.append(event.nats_per_char)
        room = shutil.get_terminal_size().columns - len(describe(event)) - 3
        return f"  {sparkline(self._held_out, min(room, 24))}" if room > 3 else ""

    def _line(self, text: str) -> None:
        if self._bar is None:
            note(text)
        else:
            self._bar.write(printable(text), file=sys.stderr)

    def _progress(self, event: Progress) -> None:
        left = "measuring" if event.seconds_left is None else f"{clock(event.seconds_left)} left"
        pace = f"{bits(event.nats_per_char):.3f} bits, {event.chars_per_second:,.0f} chars/s, {left}"
        if sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(
                    total=event.num_steps,
                    initial=event.step,
                    file=sys.stderr,
                    dynamic_ncols=True,
                    leave=False,
                    bar_format="{bar} step {n_fmt}/{total_fmt}  {desc}",
                )
            self._bar.total = event.num_steps
            self._bar.n = event.step
            self._bar.set_description_str(pace)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            note(f"step {event.step}/{event.num_steps or '?'}: {pace}")
