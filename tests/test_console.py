"""What a person sees: escaping, wording, tables, streaming, and a stdout that goes away."""

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from charrnn import console
from charrnn.checkpoint import ModelFile
from charrnn.config import ModelConfig
from charrnn.errors import CharrnnError, OutputClosed
from charrnn.metrics import (
    Evaluated,
    Evaluation,
    Event,
    Finished,
    Plan,
    Progress,
    Resumed,
    Sample,
    Saved,
    Stopped,
    Warned,
)
from charrnn.vocab import Vocab

PLAN = Plan(
    step=0,
    run="poems",
    texts=["/home/me/poems.txt"],
    num_chars=4068,
    num_train_chars=3661,
    num_valid_chars=407,
    num_test_chars=0,
    valid=None,
    vocab_size=20,
    model={"cell": "gru", "vocab_size": 20, "embedding_dim": 64, "hidden_size": 16, "num_layers": 1},
    training={"batch_size": 4, "seq_len": 32, "dropout": 0.5, "learning_rate": 0.004, "weight_decay": 0.1},
    num_parameters=5556,
    memory_bytes=12_000_000,
    steps=1500,
    minutes=None,
    device="cpu",
    threads=2,
    precision="float32",
    notes=[],
    reasons={"hidden_size": "as many as pay"},
)
PROGRESS = Progress(
    7, num_steps=20, nats_per_char=2.0, learning_rate=0.004, chars_per_second=12345.6, seconds_left=61.0
)

# an event, and what a person must find in its description; None: nothing is said
DESCRIBED: list[tuple[Event, tuple[str, ...] | None]] = [
    (PLAN, ("poems.txt", "4,068", "407 held out", "gru 1x16", "5,556", "1,500 steps of 4x", "12 MB", "'poems'")),
    (Resumed(5, "going on from step 5"), ("going on from step 5",)),
    (PROGRESS, None),
    (
        Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=True),
        ("step 9", "1.0000 nats", "1.443 bits", "1,000"),
    ),
    (Sample(9, text="a rose"), ("    a rose",)),
    (Saved(9, path="checkpoints/poems/model.safetensors"), None),
    (Warned(9, "a state is damaged"), ("warning: a state is damaged",)),
    (Stopped(18, best_step=15), ("stopped", "since step 15")),
    (Finished(20, "model.safetensors", 15, 1.0, 1.442695, 4070), ("1.443 bits", "4,070", "selection score", "15")),
    (
        Finished(20, "model.safetensors", 15, 1.0, 1.442695, 4070, test_nats_per_char=2.0, num_test_chars=1234),
        ("1.443 bits", "selection score", "2.885 bits", "1,234 test characters", "chose nothing"),
    ),
]


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
        ("\udcff", r"\udcff"),  # a byte that was not UTF-8
        ("\U000e0041", r"\U000e0041"),  # an invisible tag
        ("[/]bold[/]", "[/]bold[/]"),
    ],
)
def test_printable_shows_what_could_steer_a_terminal(text: str, shown: str) -> None:
    """Control, format and surrogate characters become escapes; all else stays."""
    assert console.printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("a\nb", r"a\nb"), ("a\tb", r"a\tb"), ("a\r\nb", r"a\r\nb"), ("\x1b]0;t\x07", r"\x1b]0;t\x07")]
)
def test_one_line_has_no_newline_or_tab(text: str, shown: str) -> None:
    """In a message newlines and tabs are shown, too."""
    assert console.one_line(text) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3600, "1:00:00"), (-5, "0:00")],
)
def test_clock(seconds: float, shown: str) -> None:
    """Seconds as m:ss, from an hour on as h:mm:ss, never negative."""
    assert console.clock(seconds) == shown


def test_a_plan_says_why_when_asked() -> None:
    """A line for each setting that was chosen for a reason, only where somebody asks for the plan alone."""
    assert "hidden size: as many as pay" in console.plan_lines(PLAN, with_reasons=True).splitlines()
    assert "as many as pay" not in console.plan_lines(PLAN)


def test_every_event_is_described_or_silent_on_purpose() -> None:
    """The table above names every kind of event there is."""
    assert {type(event) for event, _ in DESCRIBED} == set(Event.__subclasses__())


@pytest.mark.parametrize(("event", "parts"), DESCRIBED, ids=lambda value: getattr(value, "event", None))
def test_describe(event: Event, parts: tuple[str, ...] | None) -> None:
    """An event says what a person wants to know, or nothing."""
    text = console.describe(event)
    if parts is None:
        assert text == ""
    else:
        assert [part for part in parts if part not in text] == []


def test_only_the_best_evaluation_is_called_so() -> None:
    """What isn't the best so far doesn't say that it is."""
    said = [console.describe(Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=best)) for best in (True, False)]
    assert ["best" in text for text in said] == [True, False]


def test_a_sample_is_indented_line_by_line() -> None:
    """Every line of a sample stands apart from the program's own words."""
    assert console.describe(Sample(3, text="\none\ntwo\n")) == "    one\n    two"


def test_a_plan_in_minutes_names_minutes() -> None:
    """A time budget is told as such, without a number of steps."""
    text = console.plan_lines(Plan(**{**vars(PLAN), "steps": None, "minutes": 2.5}))
    assert "2.5 minutes" in text
    assert "steps" not in text


def test_a_plan_of_many_texts_names_three() -> None:
    """A long list of texts is cut, and says that it is."""
    paths = [f"/texts/{number}.txt" for number in range(5)]
    first = console.plan_lines(Plan(**{**vars(PLAN), "texts": paths})).splitlines()[0]
    assert first.startswith("0.txt, 1.txt, 2.txt, …:")


def test_a_plan_ends_with_its_notes() -> None:
    """What was adjusted stands at the end, a line each."""
    lines = console.plan_lines(Plan(**{**vars(PLAN), "notes": ["first", "second"]})).splitlines()
    assert lines[-2:] == ["first", "second"]


def test_a_plan_escapes_names_from_outside() -> None:
    """Neither a text's name nor a run's can break the lines or steer a terminal."""
    plan = Plan(**{**vars(PLAN), "texts": ["/x/\x1b[31m\nred.txt"], "run": "\x1b[31m\nred"})
    text = console.plan_lines(plan)
    assert "\x1b" not in text
    assert len(text.splitlines()) == len(console.plan_lines(PLAN).splitlines())


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


def test_score_rows_name_ten_unknown_characters() -> None:
    """The most frequent unknown characters are named with their counts, the others counted."""
    unknown = {chr(0x3B1 + number): 20 - number for number in range(12)}
    rows = dict(console.score_rows("m", "t", Evaluation(100.0, 100, unknown)))
    text = rows["outside the vocabulary"]
    assert text.startswith("174, not scored: U+03B1 'α' 20x, U+03B2 'β' 19x")
    assert text.count("U+") == 10
    assert text.endswith("and 2 more")


def test_score_rows_without_unknown_characters() -> None:
    """Nothing is said about unknown characters where there are none."""
    rows = dict(console.score_rows("m", "t", Evaluation(69.314718, 100, {})))
    assert rows["characters scored"] == "100"
    assert rows["nats per character"] == "0.693147"
    assert rows["bits per character"] == "1.000000"
    assert rows["perplexity"] == "2.0000"
    assert "outside the vocabulary" not in rows


def small_model(**facts: Any) -> ModelFile:
    """A model of two characters, with what a test says about its scores and provenance."""
    config = ModelConfig(cell="rnn", vocab_size=2, embedding_dim=1, hidden_size=1, num_layers=1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    return ModelFile(config, Vocab("\x1ba"), tensors, facts.get("scores", {}), facts.get("provenance", {}))


def test_a_card_of_a_model_that_says_nothing_about_itself() -> None:
    """Missing scores and provenance are question marks, not a crash."""
    card = console.card("runs/poems/model.safetensors", small_model())
    assert card["run"] == "poems"
    assert console.card_line(card) == ("poems", "rnn 1x1", "10", "?", "?")
    assert dict(console.card_rows(card))["text SHA-256"] == "?"


def test_a_card_tells_score_and_text() -> None:
    """The list shows bits per character and the text's name; the card where the weights come from."""
    model = small_model(
        scores={
            "nats_per_char": 0.693147,
            "step": 15,
            "whole": True,
            "test": {"nats_per_char": 2 * 0.693147, "num_chars": 7},
        },
        provenance={"text": {"paths": ["/home/me/poems.txt"], "sha256": "12ab"}},
    )
    card = console.card("runs/poems/model.safetensors", model)
    assert console.card_line(card)[3:] == ("1.000", "poems.txt")
    rows = dict(console.card_rows(card))
    assert rows["text"] == "/home/me/poems.txt"
    assert "step 15" in rows["score"]
    assert rows["test score"].startswith("2.000 bits/char")
    assert json.loads(json.dumps(card)) == card


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
