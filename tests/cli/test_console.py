"""What a person sees: tables, streaming, and a stdout that goes away."""

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from charrnn.cli import console
from charrnn.errors import CharrnnError, OutputClosed
from charrnn.events import Progress, Warned
from tests.test_wording import DESCRIBED, PROGRESS


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal, with the bytes that reached it."""

    def __init__(self) -> None:
        self.reached = io.BytesIO()
        super().__init__(self.reached, encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        """As a terminal answers."""
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stdout and stderr one terminal of 60 columns; called in the test, past pytest's own capture."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    return screen


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until a test sets `now.seconds`."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def test_a_table_in_a_pipe_is_tab_separated(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Header and rows are lines of cells with tabs between them."""
    console.table([("a", "1"), ("b", "2")], header=("name", "value"))
    assert capsysbinary.readouterr().out == b"name\tvalue\na\t1\nb\t2\n"


def test_a_cell_in_a_pipe_cannot_break_its_row(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Tabs, newlines and escapes inside a cell are shown as escapes."""
    console.table([("a\tb", "c\nd", "\x1b[31m", "[/]é")])
    assert capsysbinary.readouterr().out == r"a\tb	c\nd	\x1b[31m	[/]é".encode() + b"\n"


def test_a_table_on_a_terminal_shows_markup_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell with rich markup or an escape neither crashes nor colours anything."""
    terminal = open_terminal(monkeypatch)
    console.table([("model", "poems[/]x.txt"), ("text", "\x1b[31m[bold]red[/bold]")], header=("[/]title\x1b", ""))
    shown = terminal.reached.getvalue()
    assert b"poems[/]x.txt" in shown
    assert rb"\x1b[31m[bold]red[/bold]" in shown
    assert rb"[/]title\x1b" in shown
    assert b"\x1b[31m" not in shown


def test_a_long_cell_on_a_terminal_is_folded_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path longer than the window is shown whole."""
    terminal = open_terminal(monkeypatch)
    path = "/".join(f"folder{number}" for number in range(20))
    console.table([("model", path)])
    shown = terminal.reached.getvalue().decode()
    assert path in "".join(line.removeprefix("  model").strip() for line in shown.splitlines())


def test_a_table_without_rows_is_its_header(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """An empty list is still a table."""
    console.table([], header=("run", "network"))
    assert capsysbinary.readouterr().out == b"run\tnetwork\n"


def test_stream_in_a_pipe_is_faithful(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """The bytes in a pipe are the text's own, and all of it is returned."""
    text = "a\x1b[31mé漢\n\r\x00"
    console.stream(iter(text))
    assert capsysbinary.readouterr().out == text.encode()


def test_stream_writes_a_lone_surrogate(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A character that UTF-8 has no place for does not end the stream."""
    console.stream(iter("a\ud800b"))
    assert capsysbinary.readouterr().out == "a\ud800b".encode("utf-8", "surrogatepass")


def test_stream_gives_back_the_bytes_of_the_command_line(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """An echoed prompt that was not UTF-8 is what it was."""
    console.stream(iter([b"a\xff\xc3\xa9".decode("utf-8", "surrogateescape")]))
    assert capsysbinary.readouterr().out == b"a\xff\xc3\xa9"


def test_stream_on_a_terminal_shows_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal control characters are escapes; what is returned is the text itself."""
    terminal = open_terminal(monkeypatch)
    console.stream(iter("a\x1b[31m\x9b\n"))
    assert terminal.reached.getvalue() == rb"a\x1b[31m\x9b" + b"\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_each_piece_of_a_stream_leaves_at_once(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """On a terminal and in a pipe nothing waits for a newline, nor for what comes next."""
    reached, seen = io.BytesIO(), []
    if terminal:
        reached = open_terminal(monkeypatch).reached
    else:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(reached, encoding="utf-8"))

    def pieces() -> Iterator[str]:
        for piece in ("a", "b\ncd", "e\n"):
            yield piece
            seen.append(reached.getvalue())

    console.stream(pieces())
    assert seen == [b"a", b"ab\ncd", b"ab\ncde\n"]
    assert reached.getvalue() == b"ab\ncde\n"


def test_stream_writes_what_it_has_when_the_source_fails(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """What was drawn before an interruption is not lost."""

    def pieces() -> Iterator[str]:
        yield from "abc"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        console.stream(pieces())
    assert capsysbinary.readouterr().out == b"abc"


def test_write_on_a_closed_pipe_raises_output_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader went away: OutputClosed, and what is written later vanishes without an error."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(OutputClosed):
            console.write(b"text")
        console.write(b"more")
    assert OutputClosed.exit_code == 141


def test_stream_on_a_closed_pipe_raises_output_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless text ends when nobody reads it."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(OutputClosed):
            console.stream(iter(lambda: "line\n", ""))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_write_on_a_full_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is an error with exit code 1, not an end in silence."""
    with open("/dev/full", "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(CharrnnError, match="can't write to stdout: No space left") as caught:
            console.write(b"text")
    assert caught.value.exit_code == 1


def test_result_keeps_the_bytes_of_a_file_name(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A path whose bytes are not UTF-8 comes out as it is on the disk."""
    console.result("runs/\udcff/é")
    assert capsysbinary.readouterr().out == b"runs/\xff/" + "é\n".encode()


def test_result_json_is_one_line_of_ascii(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Whatever a text holds, an object stays on its line and can be parsed again."""
    value = {"text": "a\nb\u2028\x1bé\ud800", "number": 1.5}
    console.result_json(value)
    line = capsysbinary.readouterr().out
    assert line.endswith(b"\n")
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert json.loads(line) == value


def test_note_and_error_go_to_stderr_escaped(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A note keeps its lines; an error is one line with the program's name; neither touches stdout."""
    console.note("two\nlines \x1b[31m")
    console.error("two\nlines \x1b[31m")
    caught = capsysbinary.readouterr()
    assert caught.out == b""
    assert caught.err == b"two\nlines \\x1b[31m\ncharrnn: two\\nlines \\x1b[31m\n"


def test_the_view_prints_events_as_json_lines(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """With --json every event is a line on stdout; with --quiet nothing is on stderr."""
    view = console.TrainView(json_lines=True, quiet=True)
    for event, _ in DESCRIBED:
        view.show(event)
    caught = capsysbinary.readouterr()
    assert [json.loads(line) for line in caught.out.splitlines()] == [event.record() for event, _ in DESCRIBED]
    assert caught.err == b""


def test_the_view_keeps_stdout_for_results(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Without --json a person reads on stderr, and stdout stays free."""
    view = console.TrainView(json_lines=False, quiet=False)
    for event, _ in DESCRIBED:
        view.show(event)
    view.close()
    caught = capsysbinary.readouterr()
    assert caught.out == b""
    assert b"warning: a state is damaged" in caught.err


def test_the_view_tells_progress_in_a_pipe_every_ten_seconds(
    capsysbinary: pytest.CaptureFixture[bytes], now: SimpleNamespace
) -> None:
    """A log is not flooded: a line of progress at most every ten seconds."""
    view = console.TrainView(json_lines=False, quiet=False)
    for _ in range(22):
        now.seconds += 1.0
        view.show(PROGRESS)
    lines = capsysbinary.readouterr().err.splitlines()
    assert lines == [b"step 7/20: 2.885 bits, 12,346 chars/s, 1:01 left"] * 2


def test_the_view_says_that_the_speed_is_being_measured(
    capsysbinary: pytest.CaptureFixture[bytes], now: SimpleNamespace
) -> None:
    """While the number of steps is open, the line doesn't invent one."""
    view = console.TrainView(json_lines=False, quiet=False)
    now.seconds += 11.0
    view.show(Progress(3, None, 2.0, 0.004, 100.0, None))
    assert capsysbinary.readouterr().err == b"step 3/?: 2.885 bits, 100 chars/s, measuring\n"


def test_the_view_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal progress is a bar, and lines about other events go above it, escaped."""
    terminal = open_terminal(monkeypatch)
    view = console.TrainView(json_lines=False, quiet=False)
    view.show(PROGRESS)
    view.show(Warned(7, "odd \x1b[31m"))
    view.close()
    shown = terminal.reached.getvalue()
    assert b"step 7/20" in shown
    assert rb"warning: odd \x1b[31m" in shown
    assert b"\x1b[31m" not in shown
