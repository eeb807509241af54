"""A run's events as JSON lines, as lines in a pipe, and with a bar on a terminal."""

import json
import math
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from charrnn.events import Evaluated, Event, Progress, Sample, Saved, Stopped, Warned
from charrnn.terminal import progress
from charrnn.terminal.progress import TrainView, clock, sparkline, tracked
from tests.cli.conftest import open_terminal

PROGRESS = Progress(
    7,
    num_steps=20,
    nats_per_char=2.0,
    learning_rate=0.004,
    chars_per_second=12345.6,
    seconds_left=61.0,
    grad_norm=0.3,
    clipped=0.0,
)
EVALUATED = Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=True)
EVENTS: list[Event] = [
    PROGRESS,
    EVALUATED,
    Sample(9, text="a rose"),
    Saved(9, path="checkpoints/poems/model.safetensors"),
    Warned(9, "a state is damaged"),
    Stopped(18, best_step=15),
]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until a test sets `now.seconds`."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def show_events(view: TrainView) -> None:
    """Show each kind of event, as a run does."""
    for event in EVENTS:
        view.show(event)
    view.close()


def test_json_is_one_event_per_line(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """On stdout, every event; with --quiet nothing is on stderr."""
    view = TrainView(json_lines=True, quiet=True)
    show_events(view)
    caught = capsysbinary.readouterr()
    assert [json.loads(line) for line in caught.out.splitlines()] == [event.record() for event in EVENTS]
    assert caught.err == b""


def test_lines_go_to_stderr(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Without --json stdout stays free for the result."""
    view = TrainView(json_lines=False, quiet=False)
    show_events(view)
    caught = capsysbinary.readouterr()
    assert caught.out == b""
    assert caught.err.decode().splitlines() == [
        "step 9: 1.443 bits/char held out, best",
        "    a rose",
        "warning: a state is damaged",
        "stopped early: no improvement since step 15",
    ]


def test_a_pipe_gets_progress_every_ten_seconds(
    capsysbinary: pytest.CaptureFixture[bytes], now: SimpleNamespace
) -> None:
    """At most, so that a log file stays small."""
    view = TrainView(json_lines=False, quiet=False)
    for _ in range(22):
        now.seconds += 1.0
        view.show(PROGRESS)
    lines = capsysbinary.readouterr().err.splitlines()
    assert lines == [b"step 7/20: 2.885 bits, 12,346 chars/s, 1:01 left"] * 2


def test_people_get_a_sample_every_ten_seconds(
    capsysbinary: pytest.CaptureFixture[bytes], now: SimpleNamespace
) -> None:
    """At most, and each evaluation; JSON has all samples."""
    view = TrainView(json_lines=True, quiet=False)
    for number in range(5):
        view.show(EVALUATED)
        view.show(Sample(9, text=f"sample {number}"))
        now.seconds += 4.0
    caught = capsysbinary.readouterr()
    assert caught.out.count(b'"sample"') == 5
    lines = caught.err.decode().splitlines()
    assert [line.strip() for line in lines if line.startswith(" ")] == ["sample 0", "sample 3"]
    assert len(lines) == 7


def test_the_number_of_steps_may_be_unknown(capsysbinary: pytest.CaptureFixture[bytes], now: SimpleNamespace) -> None:
    """While the speed is being measured, the line says so."""
    view = TrainView(json_lines=False, quiet=False)
    now.seconds += 11.0
    view.show(Progress(3, None, 2.0, 0.004, 100.0, None, 0.3, 0.0))
    assert capsysbinary.readouterr().err == b"step 3/?: 2.885 bits, 100 chars/s, measuring\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines about other events go above it, escaped and wrapped."""
    terminal = open_terminal(monkeypatch)
    view = TrainView(json_lines=False, quiet=False)
    view.show(PROGRESS)
    view.show(Warned(7, "odd \x1b[31m " + "word " * 12))
    view.close()
    shown = terminal.reached.getvalue()
    assert b"step 7/20" in shown
    assert rb"warning: odd \x1b[31m" in shown
    assert b"\x1b[31m" not in shown
    assert shown.count(b"\n  word") == 1


def test_a_terminal_gets_a_curve_of_the_held_out_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bar per evaluation, as many as fit next to the line."""
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "100")
    view = TrainView(json_lines=False, quiet=False)
    for nats in (8.0, 4.0, 1.0):
        view.show(replace(EVALUATED, nats_per_char=nats))
    lines = terminal.reached.getvalue().decode().splitlines()
    assert [re.search("best *(.*)$", line)[1] for line in lines] == ["▁", "█▁", "█▄▁"]
    monkeypatch.setenv("COLUMNS", "44")
    view.show(EVALUATED)
    assert terminal.reached.getvalue().endswith(b"held out, best\n")


def test_a_bar_leaves_room_for_what_a_key_prints_and_drops_the_speed_when_narrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A terminal prints ^C after the bar; in the last column it would begin a new line and leave the bar behind."""
    terminal = open_terminal(monkeypatch)
    view = TrainView(json_lines=False, quiet=False)
    for columns in (100, 50, 80):  # as somebody changes the window
        monkeypatch.setenv("COLUMNS", str(columns))
        view.show(PROGRESS)
        bar = terminal.reached.getvalue().decode().rpartition("\r")[2].rstrip()
        assert columns - 12 < len(bar) <= columns - 3
        assert bar.endswith("1:01 left")
        assert ("chars/s" in bar) == (columns > 50)
    view.close()


def test_a_terminal_without_blocks_gets_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their escapes would be a riddle."""
    open_terminal(monkeypatch).reconfigure(encoding="cp1252", errors="strict")
    TrainView(json_lines=False, quiet=False).show(EVALUATED)


def test_stopping_is_announced_at_once(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture) -> None:
    """By a handler, without Python's buffers; a bar is overwritten; --quiet says nothing."""
    notice = b"stopping after this step; press again to stop at once without saving\n"
    TrainView(json_lines=False, quiet=True).stopping()
    assert capfdbinary.readouterr().err == b""
    TrainView(json_lines=False, quiet=False).stopping()
    assert capfdbinary.readouterr().err == notice
    with monkeypatch.context() as patch:
        open_terminal(patch)
        view = TrainView(json_lines=False, quiet=False)
        view.show(PROGRESS)
        view.stopping()
        view.close()
    assert capfdbinary.readouterr().err == b"\r\033[K" + notice


def test_a_closed_stderr_does_not_end_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are no longer shown, and no error is raised."""

    def fail(_text: str) -> None:
        raise BrokenPipeError

    for stderr in (open_terminal(monkeypatch), SimpleNamespace(isatty=lambda: False, flush=lambda: None)):
        stderr.write = fail
        monkeypatch.setattr(sys, "stderr", stderr)
        view = TrainView(json_lines=False, quiet=False)
        view.show(EVALUATED)
        view.show(PROGRESS)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3600, "1:00:00"), (-5, "0:00")],
)
def test_clock(seconds: float, shown: str) -> None:
    """Seconds as m:ss, from an hour on as h:mm:ss, never negative."""
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("values", "width", "shown"),
    [
        ([], 24, ""),
        ([1.0], 24, "▁"),
        ([2.0, 2.0], 24, "▁▁"),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 24, "█▇▆▅▄▃▂▁"),
        ([4.0, 2.0, 2.0, 0.0, math.nan, math.inf], 2, "█▁"),
    ],
)
def test_a_sparkline_shows_where_numbers_go(values: list[float], width: int, shown: str) -> None:
    """From the lowest to the highest; numbers that are not finite are left out."""
    assert sparkline(values, width) == shown


def test_a_bar_names_what_is_being_done(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """On a terminal, where it disappears at the end; a pipe gets nothing."""
    assert list(tracked(["memory", "units"], "looking inside")) == ["memory", "units"]
    assert capsysbinary.readouterr().err == b""
    screen = open_terminal(monkeypatch)
    names = tracked(["memory", "units"], "looking inside")
    assert next(names) == "memory"
    assert screen.reached.getvalue().decode().endswith("looking inside: memory (0 of 2 done)")
    assert list(names) == ["units"]
    assert screen.reached.getvalue().decode().rpartition("done)")[2].strip() == ""
