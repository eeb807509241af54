"""`charrnn eval`: score a text, and compare the score with baselines or with those of other models."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charrnn.cli.evaluations import adapt, compare_models, evaluate_labels
from charrnn.cli.options import (
    Column,
    Device,
    Encoding,
    Errors,
    Format,
    Inside,
    Json,
    Label,
    LabelFrom,
    MaxBytes,
    ModelNames,
    Threads,
    choose_parts,
    given,
    output_option,
    text_option,
)
from charrnn.cli.report import MAX_SHOWN, NUM_HARDEST, NUM_TOP, check_target, write_report
from charrnn.cli.texts import TextOptions, check_no_run, load_network, read_texts
from charrnn.config import ADAPT_RATE, BLANK_LINES, LINES, check_number, flag
from charrnn.errors import UsageError
from charrnn.evaluation.scores import Assessment
from charrnn.evaluation.verdict import sentences
from charrnn.hardware import choose_reader_device, count_threads, set_up_torch
from charrnn.inspection.findings import QUICK_PARTS
from charrnn.terminal import console, messages, progress, tables
from charrnn.terminal.completion import one_of
from charrnn.terminal.inside import print_inside
from charrnn.text.characters import END

if TYPE_CHECKING:
    from charrnn.data.corpus import Corpus
    from charrnn.evaluation.scores import Line
    from charrnn.evaluation.summary import Summary
    from charrnn.evaluation.texts import EvalText
    from charrnn.inspection.findings import Inside as Findings
    from charrnn.inspection.inside import ScoredText
    from charrnn.kernels.head import Predictions
    from charrnn.model.file import ModelFile
    from charrnn.model.windows import Reader

EXCERPT = 400  # characters of the text, coloured by surprisal


@dataclass(frozen=True)
class Wanted:
    """What to show of a score or instead of it, as the options say; fields have their names."""

    per_line: bool
    per_char: bool
    worst: int | None
    by_label: bool
    inside: tuple[str, ...]
    html: str | None
    yardsticks: bool
    adapt: bool
    adapt_rate: float | None
    json: bool

    def __post_init__(self) -> None:
        if [self.per_line, self.per_char, self.worst is not None].count(True) > 1:
            raise UsageError("--per-line, --per-char and --worst each print something else; give one of them")
        if self.worst is not None and self.worst < 1:
            raise UsageError(f"--worst must be at least 1, not {self.worst}")
        if self.adapt_rate is not None:
            check_number("--adapt-rate", self.adapt_rate, 0.0, 1.0)
            if not self.adapt:
                raise UsageError("--adapt-rate has no effect without --adapt")
        if self.html is not None:
            check_target(self.html)
        others = self.per_char or self.worst is not None or self.inside or self.html is not None or self.adapt
        if self.by_label and others:
            raise UsageError("--by-label can be combined only with --per-line and --json")
        for option, is_wanted in (("--inside", self.inside), ("--adapt", self.adapt)):
            if is_wanted and not self.shows_score:
                raise UsageError(f"--per-line, --per-char and --worst show nothing of {option}; leave one out")

    @property
    def shows_items(self) -> bool:
        """Whether lines or characters are printed instead of the score."""
        return self.per_line or self.per_char or self.worst is not None

    @property
    def shows_score(self) -> bool:
        """Whether the score itself is shown, with what it is compared with."""
        return self.html is not None or not self.shows_items

    @property
    def rate(self) -> float | None:
        """The learning rate of dynamic evaluation; None leaves it out."""
        return None if not self.adapt else ADAPT_RATE if self.adapt_rate is None else self.adapt_rate


def evaluate(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="[TEXT]", help="Text to score, or - for stdin.", show_default="the part held out in training"
        ),
    ] = None,
    model: ModelNames = None,
    yardsticks: Annotated[
        bool, typer.Option(help="Compare with baselines (n-grams, xz) and measure copied text.")
    ] = True,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Also score a copy of the model that learns from the text as it reads.")
    ] = False,
    adapt_rate: Annotated[
        float | None, typer.Option(help="Learning rate for --adapt.", show_default=f"{ADAPT_RATE:g}")
    ] = None,
    per_line: Annotated[bool, output_option("--per-line", help="Print each line's score instead, as JSON.")] = False,
    per_char: Annotated[
        bool,
        output_option("--per-char", help="Print each character's score and likeliest alternatives instead, as JSON."),
    ] = False,
    worst: Annotated[
        int | None,
        output_option(help="Show the N least predictable lines instead, those with unknown characters first."),
    ] = None,
    inside: Inside = None,
    html: Annotated[str | None, output_option(metavar="FILE", help="Write a report page to this file.")] = None,
    json: Json = False,
    by_label: Annotated[
        bool,
        output_option(
            "--by-label", help="Show scores given each document's label and without it, and how well the model labels."
        ),
    ] = False,
    documents: Annotated[
        str | None,
        text_option(
            metavar="KIND",
            help="Split the text into documents and score each separately; lines works with any model.",
            show_default="as in training",
            autocompletion=one_of(LINES, BLANK_LINES),
        ),
    ] = None,
    column: Column = None,
    label: Label = None,
    label_from: LabelFrom = None,
    format_: Format = None,
    encoding: Encoding = None,
    errors: Errors = None,
    max_bytes: MaxBytes = None,
    train_text: Annotated[
        list[str] | None,
        text_option(
            metavar="FILE",
            help="Path of the training text; repeat it for each file in the same order, with a --valid file last.",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Score how well a model predicts a text, and compare the score with baselines.

    \b
    Examples:
      charrnn eval
      charrnn eval chapter.txt --worst 5
      charrnn eval -m poems --adapt --html report.html
      charrnn eval -m poems --inside
      charrnn eval -m poems -m sonnets chapter.txt
    """
    wanted = Wanted(
        per_line=per_line,
        per_char=per_char,
        worst=worst,
        by_label=by_label,
        inside=choose_parts(inside),
        html=html,
        yardsticks=yardsticks,
        adapt=adapt,
        adapt_rate=adapt_rate,
        json=json,
    )
    several = model if model is not None and len(model) > 1 else []
    if several and (wanted.shows_items or html is not None or adapt or wanted.inside or by_label):
        raise UsageError(
            "--per-line, --per-char, --worst, --by-label, --inside, --html and --adapt need one model; give -m once"
        )
    reading = given(column=column, label=label, label_from=label_from, format=format_, encoding=encoding, errors=errors)
    if text is None and reading:
        raise UsageError(f"{flag(next(iter(reading)))} needs a TEXT; the held-out text is read as in training")
    is_compared = wanted.shows_score and (yardsticks or adapt) and not (several or by_label)
    if train_text and text is not None and not is_compared:
        raise UsageError("--train-text has no effect here: nothing is compared with the training text; leave it out")
    settings = {**reading, **given(documents=documents, max_bytes=max_bytes)}
    if per_line and not wanted.shows_score:
        settings["keep_empty"] = True  # each line of the text is one of the output
    if text is not None:
        check_no_run(text)
    options, cores = TextOptions(text, train_text, settings), count_threads(threads)
    target = str(set_up_torch(device, cores)) if adapt else choose_reader_device(device, cores)
    if several:
        compare_models(several, options, device=target, threads=cores, json=json)
        return
    from charrnn.runs.models import find_model

    path = find_model(model[0] if model else None)
    if by_label:
        evaluate_labels(path, options, device=target, threads=cores, per_line=per_line, json=json)
    else:
        evaluate_text(path, options, wanted, device=target, threads=cores)


def evaluate_text(path: Path, options: TextOptions, wanted: Wanted, *, device: str, threads: int) -> None:
    """Score a text by one model and show what is wanted. path: of the model file."""
    from charrnn.model.file import load_model

    file = load_model(path)
    text, corpus = read_texts(
        path, file, options, needs_corpus=wanted.adapt, wants_corpus=wanted.yardsticks and wanted.shows_score
    )
    compile_kernels(wanted)
    network = load_network(file, text, device=device, threads=threads)
    with console.slow_notice("scoring the text"):
        scored = score(network, file, text, wanted)
        if wanted.worst is not None:
            print_worst(scored.summary, wanted.worst, file.vocab.unit, json=wanted.json)
        if not wanted.shows_score:
            return
        assessment = compare(scored, corpus, wanted, device=device, threads=threads)
    findings = inspect(wanted.inside, scored, num_shown=EXCERPT if wanted.html is None else None)
    if not wanted.shows_items:
        print_assessment(path, scored, assessment, findings, json=wanted.json)
    if wanted.html is not None:
        from charrnn.inspection.inside import look_inside

        inside = findings or look_inside(QUICK_PARTS, scored)
        write_report(Path(wanted.html), path, scored, assessment, inside, threads=threads)
        console.note(f"wrote {wanted.html}")


def compile_kernels(wanted: Wanted) -> None:
    """Compile what scoring, and what is wanted with it, needs."""
    from charrnn import precompile

    with console.slow_notice(messages.compiling("scoring")):
        if wanted.adapt:
            precompile.for_adapting()
        if "gradient" in wanted.inside:
            precompile.for_inspecting()
        elif not wanted.adapt:
            precompile.for_scoring()


def score(network: "Reader", file: "ModelFile", text: "EvalText", wanted: Wanted) -> "ScoredText":
    """Score a text in one pass; print each line or character on the way, if that is wanted."""
    from charrnn.evaluation.scoring import predict
    from charrnn.inspection.inside import ScoredText

    for_page = wanted.html is not None or bool(wanted.inside)  # which show more of the text than an excerpt
    num_top = NUM_TOP if wanted.per_char or for_page else 0
    parts = predict(network, text.ids, context=text.context, num_top=num_top, mixture=file.mixture)
    return ScoredText.from_predictions(
        print_items(parts, text, file, wanted),
        network,
        file,
        text,
        num_first=MAX_SHOWN if for_page else EXCERPT,
        num_hardest=max(wanted.worst or 0, NUM_HARDEST if for_page else 0),
    )


def compare(scored: "ScoredText", corpus: "Corpus | None", wanted: Wanted, *, device: str, threads: int) -> Assessment:
    """Compare a score with what is wanted, if the training text is there: the adapting model, baselines, copying."""
    from charrnn.evaluation.assessment import assess

    file, text, own, adapted = scored.file, scored.text, scored.summary.score, None
    if wanted.rate is not None and corpus is not None:
        adapted = adapt(file, text, corpus.train_ids, wanted.rate, device)
    if wanted.yardsticks and corpus is not None:
        return assess(own, file, text, corpus.train_ids, adapted=adapted, threads=threads)
    return Assessment(own, adapted=adapted, unit=file.vocab.unit)


def inspect(parts: tuple[str, ...], scored: "ScoredText", *, num_shown: int | None) -> "Findings | None":
    """Look inside the model that scored a text; None if no parts are wanted. num_shown: as for look_inside."""
    if not parts:
        return None
    from charrnn.inspection.inside import look_inside

    findings = look_inside(progress.tracked(parts, "looking inside the model"), scored, num_shown=num_shown)
    if missing := [part for part in parts if getattr(findings, part) is None]:
        console.note(f"the text is too short, or too uniform, for --inside {', '.join(missing)}")
    return findings


def print_items(
    parts: "Iterator[Predictions]", text: "EvalText", file: "ModelFile", wanted: Wanted
) -> "Iterator[Predictions]":
    """Pass predictions on, and print each line or each character of them, if that is wanted."""
    from charrnn.evaluation.summary import LineSplitter

    splitter = LineSplitter(text, file.vocab)
    for part in parts:
        if wanted.per_char:
            for record in tables.char_records(part, file.vocab):
                console.result_json(record)
        elif wanted.per_line:
            print_lines(splitter.split(part))
        yield part
    if wanted.per_line:
        print_lines(splitter.rest())


def print_lines(lines: "Iterable[Line]") -> None:
    """Print lines' scores as JSON."""
    for line in lines:
        console.result_json(line.record())


def print_worst(summary: "Summary", count: int, unit: str, *, json: bool) -> None:
    """Print the least predictable lines. unit: what the model predicts, a character or a byte."""
    lines = summary.hardest[:count]
    if json:
        print_lines(lines)
    else:
        console.table([tables.line_row(line) for line in lines], header=tables.line_header(lines, unit))


def print_assessment(
    path: Path, scored: "ScoredText", assessment: Assessment, findings: "Findings | None", *, json: bool
) -> None:
    """Print a score, the comparison, what is inside, and on a terminal the text's start coloured by surprisal."""
    from charrnn.evaluation.summary import excerpt

    name, vocab, first = scored.text.name, scored.file.vocab, scored.summary.first
    if json:
        inside = findings and findings.record()
        console.result_json({"model": str(path), "text": name, **assessment.record(), "inside": inside})
        return
    console.facts(tables.score_rows(str(path), name, assessment.score, assessment.unit))
    if assessment.baselines or assessment.adapted or assessment.score.experts:
        console.table(tables.comparison_rows(assessment), header=tables.comparison_header(assessment))
    console.sentences(sentences(assessment))
    if console.uses_colour():
        start, nats = excerpt(scored.text, first, vocab, EXCERPT)
        shown = max(start.rfind("\n"), start.rfind(END)) + 1 or len(start)  # whole lines
        console.surprisal(start[:shown].rstrip("\n"), nats)
    if findings:
        print_inside(findings, vocab, first.ids[:EXCERPT])
