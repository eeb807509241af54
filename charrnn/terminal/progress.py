"""Shows a training run's events: a progress bar and lines on stderr, or JSON lines on stdout."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from charrnn.events import Evaluated, Event, Progress, Sample, bits
from charrnn.hardware import split_range
from charrnn.terminal import console
from charrnn.terminal.messages import describe
from charrnn.text.characters import printable

SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal to draw a bar on
SECONDS_BETWEEN_SAMPLES = 10.0  # or those of a short run would fill the screen
MAX_CURVE = 24  # columns
MIN_BAR = 8  # columns; if fewer are left, the speed isn't shown
ECHO = 3  # columns after the bar, for the ^C that a terminal prints
BARS = "▁▂▃▄▅▆▇█"


class TrainView:
    """Shows events as a bar and lines on stderr, unless quiet, and as JSON lines on stdout, if asked to."""

    def __init__(self, *, json_lines: bool, quiet: bool) -> None:
        self._json = json_lines
        self.quiet = quiet
        self._bar: Any = None
        self._last_line = time.monotonic()
        self._last_sample = -math.inf
        self._losses: list[float] = []

    def show(self, event: Event) -> None:
        if self._json:
            console.result_json(event.record())
        if self.quiet:
            return
        with contextlib.suppress(OSError):  # stderr was closed, which is no reason to stop training
            if isinstance(event, Progress):
                self._show_progress(event)
            elif isinstance(event, Sample):
                self._show_sample(event)
            elif text := describe(event):
                self._show_line(text + self._curve(event))

    def stopping(self) -> None:
        """Say that a signal arrived and that the current step is finished first.

        Runs in a signal handler, perhaps in the middle of a line, so it must not use Python's buffers.
        """
        if not self.quiet:
            clear_bar = b"" if self._bar is None else b"\r\033[K"
            with contextlib.suppress(OSError, ValueError):
                os.write(2, clear_bar + b"stopping after this step; press again to stop at once without saving\n")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _curve(self, event: Event) -> str:
        """Draw the held-out losses so far; empty for other events and off a terminal."""
        if not isinstance(event, Evaluated) or not sys.stderr.isatty() or "utf" not in sys.stderr.encoding.lower():
            return ""
        self._losses.append(event.nats_per_char)
        width = min(MAX_CURVE, console.terminal_width() - len(describe(event)) - 3)
        return f"  {sparkline(self._losses, width)}" if width > 3 else ""

    def _show_sample(self, event: Sample) -> None:
        now, text = time.monotonic(), describe(event)
        if text and now - self._last_sample >= SECONDS_BETWEEN_SAMPLES:
            self._last_sample = now
            self._show_line(text)

    def _show_line(self, text: str) -> None:
        if self._bar is None:
            console.paragraph(text)
        else:
            self._bar.write(console.wrapped(printable(text)), file=sys.stderr)

    def _show_progress(self, event: Progress) -> None:
        step = f"step {event.step}/{event.num_steps or '?'}"
        loss = f"{bits(event.nats_per_char):.3f} bits"
        speed = f"{event.chars_per_second:,.0f} chars/s"
        left = "measuring" if event.seconds_left is None else f"{clock(event.seconds_left)} left"
        if sys.stderr.isatty():
            width = console.terminal_width() - ECHO
            facts = f"{step}  {loss}, {speed}, {left}"
            self._draw_bar(event, width, facts if len(facts) + MIN_BAR <= width else f"{step}  {loss}, {left}")
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            console.note(f"{step}: {loss}, {speed}, {left}")

    def _draw_bar(self, event: Progress, width: int, facts: str) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(initial=event.step, file=sys.stderr, ncols=width, leave=False, bar_format="{bar} {desc}")
        self._bar.total = event.num_steps
        self._bar.n = event.step
        self._bar.ncols = width
        self._bar.set_description_str(facts)


def tracked(names: Sequence[str], activity: str) -> Iterator[str]:
    """Yield the names of things to do; on a terminal a bar shows which one is being done."""
    if not sys.stderr.isatty():
        yield from names
        return
    from tqdm import tqdm

    bar_format = "{bar} {desc} ({n_fmt} of {total_fmt} done)"
    with tqdm(total=len(names), file=sys.stderr, dynamic_ncols=True, leave=False, bar_format=bar_format) as bar:
        for name in names:
            bar.set_description_str(f"{activity}: {name}")
            yield name
            bar.update()


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw numbers as a row of at most `width` bars, each the mean of neighbours. Only finite ones are drawn."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    means = [fmean(finite[part]) for part in split_range(len(finite), min(len(finite), width))]
    low = min(means)
    step = (max(means) - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((mean - low) / step)] for mean in means)
