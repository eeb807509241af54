"""All that a person sees: the progress bar, tables, the error line; and what scripts read on stdout.

Results go to stdout, everything else to stderr. Text from outside (file names, corpora,
samples) is never interpreted: rich markup is off, and control characters are shown.
"""

import contextlib
import json
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from charrnn.checkpoint import ModelFile
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
    Stopped,
    Warned,
    bits,
)
from charrnn.vocab import END, UNKNOWN, Vocab
from charrnn.vocab import describe as unicode_name

_SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal to draw a bar on


def printable(text: str) -> str:
    """Show control, format and surrogate characters as escapes.

    Newlines and tabs stay, and so do the two joiners that Persian and emoji are written with.
    """
    return "".join(
        c
        if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
        else c.encode("unicode_escape").decode()
        for c in text
    )


def one_line(text: str) -> str:
    """The same for a message, where a newline would be a lie."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


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


def result_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object as a line on stdout."""
    result(json.dumps(value))


def note(text: str) -> None:
    """Tell the person something on stderr."""
    with contextlib.suppress(OSError):  # nobody listens, which is no reason to stop
        print(printable(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def patience(reason: str, *, quiet: bool = False) -> Iterator[None]:
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


class TrainView:
    """Draws a run's events: a bar and lines on stderr, or JSON lines on stdout, or nothing."""

    def __init__(self, *, json_lines: bool, quiet: bool) -> None:
        self._json = json_lines
        self.quiet = quiet
        self._bar: Any = None
        self._last_line = time.monotonic()

    def show(self, event: Event) -> None:
        if self._json:
            result_json(event.record())
        if self.quiet:
            return
        with contextlib.suppress(OSError):  # of a stderr that was closed: training goes on
            if isinstance(event, Progress):
                self._progress(event)
            elif text := describe(event):
                self._line(text)

    def stopping(self) -> None:
        """Say at once that a signal was heard; what is under way is finished first.

        Called by a signal's handler, perhaps in the middle of a line: it must not use Python's buffers.
        """
        if not self.quiet:
            over_the_bar = b"\r\033[K" * (self._bar is not None)
            with contextlib.suppress(OSError, ValueError):  # nobody listens
                os.write(2, over_the_bar + b"stopping after this step; the same signal again ends at once, unsaved\n")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

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


def describe(event: Event) -> str:
    """An event as lines for a person; empty for those that nobody needs to read."""
    match event:
        case Plan():
            return plan_lines(event)
        case Resumed():
            return event.note
        case Evaluated():
            loss = f"{event.nats_per_char:.4f} nats, {event.bits_per_char:.3f} bits/char"
            return f"step {event.step}: {loss} on {event.num_chars:,} held-out characters{', best' * event.best}"
        case Sample():
            return "\n".join("    " + line for line in event.text.strip("\n").split("\n"))
        case Warned():
            return f"warning: {event.message}"
        case Stopped():
            return f"stopped: the held-out text has not been predicted better since step {event.best_step}"
        case Finished():
            lines = [
                f"{_loss(event.nats_per_char)} on all {event.num_chars:,} held-out characters",
                f"(a selection score: it chose the weights, those of step {event.best_step} of {event.step})",
            ]
            if event.test_nats_per_char is not None:
                lines += [
                    f"{_loss(event.test_nats_per_char)} on {event.num_test_chars:,} test characters",
                    "(these chose nothing)",
                ]
            return "\n".join(lines)
        case _:
            return ""


def _loss(nats: float) -> str:
    return f"{nats:.4f} nats, {bits(nats):.3f} bits per character"


def plan_lines(plan: Plan, *, with_reasons: bool = False) -> str:
    """A plan as a few lines, and one for each setting that was chosen for a reason."""
    model, training = plan.model, plan.training
    budget = f"{plan.steps:,} steps" if plan.steps else f"{plan.minutes:g} minutes"
    texts = ", ".join(os.path.basename(path) for path in plan.texts[:3]) + (", …" if len(plan.texts) > 3 else "")
    threads = f"{plan.threads} thread{'s' * (plan.threads > 1)}"
    weights = f", of weights {training['weight_drop']:g}" if training.get("weight_drop") else ""
    part = f"the last {plan.num_valid_chars:,}" if plan.valid is None else one_line(os.path.basename(plan.valid))
    test = f", {plan.num_test_chars:,} after them for the test" if plan.num_test_chars else ""
    lines = [
        f"{one_line(texts)}: {plan.num_chars:,} characters, {plan.vocab_size:,} distinct; {part} held out{test}",
        f"{model['cell']} {model['num_layers']}x{model['hidden_size']}, embedding {model['embedding_dim']}, "
        f"{plan.num_parameters:,} parameters, about {plan.memory_bytes / 1e6:,.0f} MB, "
        f"{plan.device}, {threads}, {plan.precision}",
        f"{budget} of {training['batch_size']}x{training['seq_len']} characters a step; "
        f"dropout {training['dropout']:g}{weights}, rate {training['learning_rate']:g}, "
        f"decay {training['weight_decay']:g}",
        f"run {plan.run!r}" + (f", which begins with {one_line(base)}" if (base := training.get("init_from")) else ""),
    ]
    reasons = [f"{name.replace('_', ' ')}: {reason}" for name, reason in plan.reasons.items()] if with_reasons else []
    return "\n".join([*lines, *map(one_line, plan.notes), *reasons])


def score_rows(model: str, text: str, score: Evaluation) -> list[tuple[str, str]]:
    """An evaluation as rows of a table."""
    rows = [
        ("model", model),
        ("text", text),
        ("characters scored", f"{score.num_chars:,}"),
        ("nats per character", f"{score.nats_per_char:.6f}"),
        ("bits per character", f"{score.bits_per_char:.6f}"),
        ("perplexity", f"{score.perplexity:.4f}"),
    ]
    if score.unknown:
        named = ", ".join(f"{unicode_name(char)} {count:,}x" for char, count in list(score.unknown.items())[:10])
        more = f", and {len(score.unknown) - 10} more" if len(score.unknown) > 10 else ""
        rows.append(("outside the vocabulary", f"{score.num_unknown:,}, not scored: {named}{more}"))
    return rows


def card(path: str, model: ModelFile) -> dict[str, Any]:
    """All that is known about a model, as plain values."""
    return {
        "model": path,
        "run": os.path.basename(os.path.dirname(os.path.abspath(path))),
        "config": asdict(model.config),
        "num_parameters": model.config.num_parameters,
        "vocab": model.vocab.chars,
        "scores": model.scores,
        "provenance": model.provenance,
    }


def cache_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the cache of texts holds, as rows of a table."""
    return [
        ("folder", facts["folder"]),
        ("texts", f"{facts['num_texts']:,}"),
        ("size", f"{facts['num_bytes'] / 1e6:,.1f} MB of at most {facts['most_bytes'] / 1e6:,.0f}; the oldest go"),
        ("to empty it", facts["empty"]),
    ]


CARD_HEADER = ("run", "network", "parameters", "bits/char", "trained on")


def card_line(card: Mapping[str, Any]) -> tuple[str, ...]:
    """A model as one row of the list of runs."""
    config, texts = card["config"], card["provenance"].get("text", {}).get("paths", ["?"])
    network = f"{config['cell']} {config['num_layers']}x{config['hidden_size']}"
    names = ", ".join(os.path.basename(path) for path in texts[:3])
    return card["run"], network, f"{card['num_parameters']:,}", _score(card["scores"]), names


def card_rows(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A model as rows of a table."""
    config, scores, provenance = card["config"], card["scores"], card["provenance"]
    text, split = provenance.get("text", {}), provenance.get("split", {})
    training = provenance.get("training", {})
    part = "the held-out text" if scores.get("whole") else "stretches spread over the held-out text"
    return [
        ("model", card["model"]),
        ("network", f"{config['cell']} {config['num_layers']}x{config['hidden_size']}"),
        ("embedding", str(config["embedding_dim"])),
        ("parameters", f"{card['num_parameters']:,}"),
        (
            "vocabulary",
            _vocabulary(card["vocab"]),
        ),
        ("text", ", ".join(text.get("paths", ["?"]))),
        ("text SHA-256", str(text.get("sha256", "?"))),
        ("split", f"{split.get('num_train', 0):,} characters trained on, {split.get('num_valid', 0):,} held out"),
        ("score", f"{_score(scores)} bits/char on {part} (it chose the weights, of step {scores.get('step', '?')})"),
        *([("test score", f"{_score(scores['test'])} bits/char on the test text")] if "test" in scores else []),
        ("training", ", ".join(f"{name} {value}" for name, value in training.items())),
    ]


def _vocabulary(chars: str) -> str:
    """A vocabulary in a line: how many characters, what else is known, and the first of them."""
    signs = {END: ", the end of a document", UNKNOWN: ", one symbol for rarer ones"}
    rest = "".join(words for sign, words in signs.items() if sign in chars)
    chars = "".join(char for char in chars if char not in signs)
    kind = "bytes" if Vocab(chars).of_bytes else "characters"
    return f"{len(chars):,} {kind}{rest}: {json.dumps(chars[:200], ensure_ascii=False)[1:-1]}"


def _score(scores: Mapping[str, Any]) -> str:
    nats = scores.get("nats_per_char")
    return "?" if nats is None else f"{bits(nats):.3f}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
