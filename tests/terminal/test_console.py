"""What is printed: tables, streams, notices, and a stdout that goes away."""

import functools
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from charrnn.errors import CharrnnError, OutputClosed
from charrnn.terminal import console
from tests.cli.conftest import open_terminal, posix

# tables


def test_a_table_in_a_pipe_is_tab_separated(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Header and rows are lines of cells with tabs between them."""
    console.table([("a", "1"), ("b", "2")], header=("name", "value"))
    assert capsysbinary.readouterr().out == b"name\tvalue\na\t1\nb\t2\n"


def test_a_cell_in_a_pipe_cannot_break_its_row(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Tabs, newlines and escapes inside a cell are shown as escapes."""
    console.facts([("a\tb", "c\nd"), ("\x1b[31m", "[/]é")])
    assert capsysbinary.readouterr().out == "a\\tb\tc\\nd\n\\x1b[31m\t[/]é\n".encode()


def test_a_table_on_a_terminal_shows_markup_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell with rich markup or an escape neither crashes nor colours anything."""
    terminal = open_terminal(monkeypatch)
    console.table([("model", "poems[/]x.txt"), ("text", "\x1b[31m[bold]red[/bold]")], header=("[/]title\x1b", ""))
    shown = terminal.reached.getvalue()
    assert b"poems[/]x.txt" in shown
    assert rb"\x1b[31m[bold]red[/bold]" in shown
    assert rb"[/]title\x1b" in shown
    assert b"\x1b[31m" not in shown


@pytest.mark.parametrize("columns", [44, 52, 60, 100])
def test_a_narrow_table_breaks_no_word(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Nothing is cut at any width. Where the columns have no room, each row is a list of facts."""
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    header = ("run", "network", "parameters", "score", "trained on")
    row = ("poems", "gru 1x256", "931,083", "2.173 bits/char", "poems.txt")
    console.table([row], header=header)
    shown = re.sub("\x1b\\[[0-9;]*m|─", "", terminal.reached.getvalue().decode())
    words = " ".join(header + row).split()
    assert all(len(line) <= columns for line in shown.splitlines())
    assert sorted("".join(shown.split())) == sorted("".join(words))
    assert all(word in shown for word in words)
    assert (" run         poems" in shown) == (columns < 52)


def test_only_a_value_longer_than_the_line_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no room beside the names starts on the next line; other values wrap between words."""
    screen = open_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "50")
    path, checksum, other = "checkpoints/poems/model.safetensors", "0123456789abcdef" * 4, "stop after two steps"
    console.facts([("known documents", path), ("text SHA-256", checksum), ("training", f"{other}, {other}"), ("é", "")])
    assert screen.reached.getvalue().decode().splitlines() == [
        "",
        " known documents",
        f"   {path}",
        " text SHA-256",
        f"   {checksum[:47]}",
        f"   {checksum[47:]}",
        " training         stop after two steps, stop after",
        "                  two steps",
        " é",
        "",
    ]


@pytest.mark.parametrize("columns", [1, 20, 50, 80])
def test_facts_lose_nothing_at_any_width(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Wide characters fit as well."""
    screen = open_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    value = "春眠不觉晓" * 20
    console.facts([("vocabulary", value)])
    lines = screen.reached.getvalue().decode().splitlines()
    assert max(cell_len(line) for line in lines) <= max(23, columns)
    assert "".join(line.strip() for line in lines).removeprefix("vocabulary") == value


def test_columns_move_together_before_a_word_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one space between them instead of two."""
    screen = open_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "32")
    console.table([("aaaaaaaaa", "bbbbbbbbb", "ccccccccc")], header=("one", "two", "three"))
    assert " aaaaaaaaa bbbbbbbbb ccccccccc " in screen.reached.getvalue().decode()


def test_a_table_without_rows_is_its_header(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """An empty list is still a table."""
    console.table([], header=("run", "network"))
    assert capsysbinary.readouterr().out == b"run\tnetwork\n"


# streams


def test_a_stream_in_a_pipe_is_the_text_itself(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Byte for byte, then a newline, unless it ends with one; or a NUL."""
    text = "a\x1b[31mé漢\n\r\x00"
    console.stream(iter(text))
    assert capsysbinary.readouterr().out == text.encode() + b"\n"
    for pieces, newline, nul in [("ab\n", b"ab\n", b"ab\n\0"), ("", b"\n", b"\0")]:
        console.stream(iter(pieces))
        console.stream(iter(pieces), null=True)
        assert capsysbinary.readouterr().out == newline + nul


def test_a_stream_can_have_a_lone_surrogate(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A character that UTF-8 can't encode does not end the stream."""
    console.stream(iter("a\ud800b"))
    assert capsysbinary.readouterr().out == "a\ud800b\n".encode("utf-8", "surrogatepass")


def test_a_stream_returns_the_bytes_of_the_command_line(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A prompt that was not UTF-8 is echoed unchanged."""
    console.stream(iter([b"a\xff\xc3\xa9".decode("utf-8", "surrogateescape")]))
    assert capsysbinary.readouterr().out == b"a\xff\xc3\xa9\n"


def test_a_stream_on_a_terminal_shows_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """As escapes."""
    terminal = open_terminal(monkeypatch)
    console.stream(iter("a\x1b[31m\x9b\n"))
    assert terminal.reached.getvalue() == rb"a\x1b[31m\x9b" + b"\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_each_piece_of_a_stream_is_written_at_once(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
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


def test_a_stream_writes_what_it_has_if_the_source_fails(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """What was drawn before an interruption is not lost; it has no end, because it is not complete."""

    def pieces() -> Iterator[str]:
        yield from "abc"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        console.stream(pieces())
    assert capsysbinary.readouterr().out == b"abc"


# a stdout that goes away


def test_a_closed_pipe_raises_output_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written later vanishes without an error; a stream ends as well."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(OutputClosed):
            console.stream(iter(lambda: "line\n", ""))
        console.write(b"more")
    assert OutputClosed.exit_code == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With exit code 1; what is left is not written again."""
    with open("/dev/full", "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(CharrnnError, match="can't write to stdout: No space left") as caught:
            console.write(b"text")
    assert caught.value.exit_code == 1


def test_a_stdout_that_was_never_open_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `>&-`; dropping it does nothing."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(CharrnnError, match="it is closed"):
        console.write(b"text")
    console.drop_stdout()


# results and notes


def test_a_result_has_the_bytes_of_a_file_name(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A path whose bytes are not UTF-8 comes out as it is on the disk."""
    console.result_path(Path("runs/\udcff/é"))
    assert capsysbinary.readouterr().out == b"runs/\xff/" + "é\n".encode()


def test_a_path_on_a_terminal_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can't control it."""
    terminal = open_terminal(monkeypatch)
    console.result_path(Path("a\x1b[31m"))
    assert terminal.reached.getvalue() == rb"a\x1b[31m" + b"\n"


def test_json_is_one_line_of_ascii(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Whatever a text contains, an object is one line and can be parsed."""
    value = {"text": "a\nb\u2028\x1bé\ud800", "number": 1.5}
    console.result_json(value)
    line = capsysbinary.readouterr().out
    assert line.endswith(b"\n")
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert json.loads(line) == value


def test_notes_and_errors_go_to_stderr_escaped(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A note keeps its lines; an error is one line with the program's name; neither uses stdout."""
    console.note("two\nlines \x1b[31m")
    console.error("two\nlines \x1b[31m")
    caught = capsysbinary.readouterr()
    assert caught.out == b""
    assert caught.err == b"two\nlines \\x1b[31m\ncharrnn: two\\nlines \\x1b[31m\n"


LONG = "one two-three " * 6 + "\n    four " + "five " * 12 + "x" * 70
WRAPPED = (
    "one two-three one two-three one two-three one two-three one\n"
    "  two-three one two-three\n"
    "    four five five five five five five five five five five\n"
    "      five five\n"
    f"      {'x' * 70}"
)


def test_a_paragraph_wraps_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Between words, with what continues a line indented; a word longer than the line stays whole."""
    console.paragraph(LONG)
    console.sentences([LONG])
    caught = capsysbinary.readouterr()
    assert caught.out == caught.err == LONG.encode() + b"\n"
    terminal = open_terminal(monkeypatch)
    console.paragraph(LONG)
    console.sentences([LONG])
    assert terminal.reached.getvalue().decode() == f"{WRAPPED}\n{WRAPPED}\n"


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("0", 80), ("x", 80), ("", 80)])
def test_the_width_without_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: str, width: int) -> None:
    """COLUMNS, if it is a positive number; else 80."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert console.terminal_width() == width


@posix
def test_the_width_is_that_of_stderr_if_stdout_is_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `path=$(charrnn train ...)`."""
    import pty
    import termios

    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (30, 47))
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with open(terminal, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert console.terminal_width() == 47
    os.close(screen)


@pytest.mark.parametrize(("quiet", "shown"), [(False, "reading …\n".encode()), (True, b"")])
def test_what_takes_long_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], quiet: bool, shown: bytes
) -> None:
    """On stderr, unless quiet; what is quick is not."""
    with console.slow_notice("reading", quiet=quiet):
        pass
    assert capsysbinary.readouterr().err == b""
    timers: list[object] = []

    class AtOnce:
        """A timer that ends when it is started."""

        def __init__(self, _seconds: float, act: Callable[[str], None], args: list[str]) -> None:
            self.start = functools.partial(act, *args)
            timers.append(self)

        def cancel(self) -> None:
            """Do nothing."""

    monkeypatch.setattr(console.threading, "Timer", AtOnce)
    with console.slow_notice("reading", quiet=quiet):
        assert capsysbinary.readouterr().err == shown
    assert len(timers) == 1


def test_colours_need_a_terminal_that_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a person who wants them."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert not console.uses_colour()
    open_terminal(monkeypatch)
    assert console.uses_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not console.uses_colour()


def test_a_very_long_error_loses_its_middle(capsys: pytest.CaptureFixture[str]) -> None:
    """What names the file and what says what to do stay."""
    console.error(f"{'a' * 100_000}; use --run NAME")
    line = capsys.readouterr().err
    assert line.startswith("charrnn: aaa")
    assert line.endswith("a; use --run NAME\n")
    assert len(line) < 1300


def test_symbols_and_bytes_have_visible_forms_in_a_coloured_text() -> None:
    """An escape for each would take more room than the text."""
    assert "".join(console.shown_chars("é\udc02a\udc00\nb\tc\x1b")) == "é␟a␃\nb␉c␛"
    assert "".join(console.shown_chars("\udcc3\udca9x")) == "é·x"
