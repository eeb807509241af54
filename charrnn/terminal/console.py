"""Prints: results on stdout, everything else on stderr.

Text from outside (file names, corpora, samples) is never interpreted: rich markup is off, and
a terminal is shown control characters as escapes.
"""

import contextlib
import json
import math
import os
import sys
import textwrap
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from charrnn.errors import CharrnnError, OutputClosed
from charrnn.events import bits
from charrnn.text.characters import one_line, printable, visible_chars

MAX_HALF = 600  # characters of an error's beginning, which names a file, and of its end, which says what to do
MIN_ROOM = 20  # columns of a terminal; a text is not wrapped to less
NOTICE_DELAY = 1.0  # seconds that something takes before a notice says what it is


def write(data: bytes) -> None:
    """Write bytes to stdout and flush. Raises OutputClosed if the reader is gone, CharrnnError for other failures."""
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
    """Discard what stdout has buffered, so that the interpreter doesn't try to write it again when it exits."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as devnull:  # stdout may be no real file
            os.dup2(devnull.fileno(), sys.stdout.fileno())


def on_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def is_stdout(path: str) -> bool:
    """Return whether a path leads to the file or pipe that stdout is, as /dev/stdout does."""
    with contextlib.suppress(AttributeError, OSError):  # closed, or no real file
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    return False


def result_path(path: os.PathLike[str]) -> None:
    """Print a path: its own bytes in a pipe, escaped on a terminal."""
    result(one_line(str(path)) if on_terminal() else str(path))


def result(text: str) -> None:
    """Print a result on stdout and end the line."""
    write(encoded(text + "\n"))


def sentences(texts: Iterable[str]) -> None:
    """Print sentences on stdout, one per line; on a terminal they wrap between words."""
    for text in texts:
        result(wrapped(text) if on_terminal() else text)


def wrapped(text: str) -> str:
    """Wrap a text's lines between words to the width of the terminal; what continues a line is indented more."""
    width = max(MIN_ROOM, terminal_width())
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
        lines.append(
            textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        )
    return "\n".join(lines)


def terminal_width() -> int:
    """Return the columns of the terminal that stdout or stderr is. COLUMNS, if set and not 0, has precedence."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # closed, or not a terminal
            if (width := os.get_terminal_size(stream.fileno()).columns) > 0:
                return width
    return 80


def result_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object as a line on stdout."""
    result(json.dumps(value))


def note(text: str) -> None:
    """Print a message on stderr."""
    with contextlib.suppress(OSError):  # stderr was closed, which is no reason to stop
        print(printable(text), file=sys.stderr, flush=True)


def paragraph(text: str) -> None:
    """Print sentences on stderr; on a terminal they wrap between words."""
    note(wrapped(text) if sys.stderr.isatty() else text)


@contextlib.contextmanager
def slow_notice(activity: str, *, quiet: bool = False) -> Iterator[None]:
    """Print what the program is doing if the block takes more than a second."""
    timer = threading.Timer(NOTICE_DELAY, paragraph, [f"{activity} …"])
    if not quiet:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def error(text: str) -> None:
    """Print the one line that a failed command ends with, without the middle of a very long one."""
    line = one_line(text)
    if len(line) > 2 * MAX_HALF:
        line = f"{line[:MAX_HALF]} … {line[-MAX_HALF:]}"
    note(f"charrnn: {line}")


def encoded(text: str) -> bytes:
    """Encode text for stdout: as UTF-8 in every locale, but for a terminal in its encoding, with escapes."""
    if sys.stdout is None or not on_terminal():
        return faithful(text)
    return text.encode(sys.stdout.encoding, "backslashreplace")


def faithful(text: str) -> bytes:
    """Encode as UTF-8; bytes of the command line that are not UTF-8 come out unchanged."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a UTF-16 pair, which UTF-8 can't encode
        return text.encode("utf-8", "surrogatepass")


def stream(pieces: Iterator[str], *, null: bool = False) -> None:
    """Write a text piece by piece, as it is drawn. A terminal is shown control characters as escapes.

    A complete text ends with a newline, which is added where the text has none at its end. null: a NUL
    follows the text instead.
    """
    terminal, complete, piece = on_terminal(), False, ""
    try:
        for piece in pieces:
            write(encoded(printable(piece) if terminal else piece))
        complete = True
    finally:
        if (terminal or (complete and not null)) and not piece.endswith("\n"):
            write(b"\n")  # on a terminal in any case, or the shell's prompt would follow on the same line
    if null:
        write(b"\0")


def column_widths(columns: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return the widths of columns that have room for so many characters together; None if a word would be broken.

    What is left after the longest words goes to the columns that lack least.
    """
    from rich.cells import cell_len

    full = [max(cell_len(one_line(cell)) for cell in column) for column in columns]
    widths = [max(cell_len(word) for cell in column for word in (one_line(cell).split() or [""])) for column in columns]
    left = room - sum(widths)
    if left < 0:
        return None
    for index in sorted(range(len(columns)), key=lambda index: full[index] - widths[index]):
        more = min(left, full[index] - widths[index])
        widths[index] += more
        left -= more
    return widths


def tab_separated(rows: Iterable[Sequence[str]]) -> None:
    """Print rows on stdout with tabs between their cells."""
    for row in rows:
        result("\t".join(one_line(cell) for cell in row))


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and their values on stdout: aligned on a terminal, tab-separated in a pipe.

    On a terminal a value wraps between words. If there is too little room beside the names, the value starts on the
    next line, where only words longer than the line are broken.
    """
    if on_terminal():
        result("\n".join(["", *_fact_lines(rows), ""]))
    else:
        tab_separated(rows)


def _fact_lines(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lay out names and their values for a terminal."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    screen, names = Console(file=sys.stdout), max(len(name) for name, _ in rows)
    lines = []
    for name, value in rows:
        label, shown = f" {name:<{names}}  ", one_line(value)
        room = terminal_width() - len(label)
        words = shown.split() if room >= MIN_ROOM else [shown]
        if max(map(cell_len, words), default=0) > room:
            lines.append(f" {name}")
            label = "   "
        for line in Text(shown).wrap(screen, max(MIN_ROOM, terminal_width() - len(label)), overflow="fold"):
            lines.append(f"{label}{line.plain}".rstrip())
            label = " " * len(label)
    return lines


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str]) -> None:
    """Print a table on stdout: aligned on a terminal, tab-separated in a pipe.

    On a terminal too narrow for its longest words, each row is printed as facts.
    """
    if not on_terminal():
        tab_separated([header, *rows])
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = list(zip(header, *rows, strict=True))
    room = terminal_width() - len(columns) - 1  # a space around each column
    widths, padding = column_widths(columns, room - len(columns) + 1), 1
    if widths is None:
        widths, padding = column_widths(columns, room), 0
    if widths is None:
        shown = [[(name, cell) for name, cell in zip(header, row, strict=True) if cell] for row in rows]
        result("\n".join(["", *(line for row in shown for line in (*_fact_lines(row), ""))]))
        return
    grid = Table(box=box.SIMPLE, collapse_padding=True, pad_edge=False, padding=(0, padding))
    for name, width in zip(header, widths, strict=True):
        grid.add_column(Text(one_line(name)), width=width)
    for row in rows:
        grid.add_row(*(Text(one_line(cell)) for cell in row))
    Console(file=sys.stdout, highlight=False, width=terminal_width()).print(grid)


# a character's surprisal: up to how many bits, the legend's text, the style on a terminal
_SURPRISAL_STYLES = (
    (1.0, "below 1", ""),
    (2.0, "1–2", "black on #fff0b3"),
    (4.0, "2–4", "black on #ffcf70"),
    (6.0, "4–6", "black on #ff9d5c"),
    (math.inf, "above 6", "black on #f0605c"),
)


def uses_colour() -> bool:
    """Return whether stdout is a terminal that shows colours, and the user wants them."""
    from rich.console import Console

    if not on_terminal():
        return False
    console = Console(file=sys.stdout)
    return not console.no_color and console.color_system is not None


def shown_chars(text: str) -> list[str]:
    """Return the visible form of each character of a text in colours, in which newlines stay."""
    return [char if char == "\n" else form for char, form in zip(text, visible_chars(text), strict=True)]


def surprisal(text: str, nats: Iterable[float]) -> None:
    """Print a text on a terminal, each character on a colour that shows its surprisal. nats may be longer than it."""
    from rich.console import Console
    from rich.text import Text

    excerpt, legend = Text("\n"), Text("bits: ")
    for char, cost in zip(shown_chars(text), nats, strict=False):
        excerpt.append(char, next(style for most, _, style in _SURPRISAL_STYLES if bits(cost) <= most))
    for _, name, style in _SURPRISAL_STYLES:
        legend.append(f" {name} ", style)
    console = Console(file=sys.stdout, highlight=False, width=terminal_width())
    console.print(excerpt)
    console.print(legend, "\n")
