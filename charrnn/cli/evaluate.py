"""`charrnn eval`: score a text, compare the score with baselines, write the report page."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charrnn.cli import console, messages
from charrnn.cli.options import Device, Encoding, Errors, Json, ModelName, Threads, given, output_option, text_option
from charrnn.config import ADAPT_RATE
from charrnn.errors import CharrnnError, InputError, UsageError

if TYPE_CHECKING:
    from charrnn.data.corpus import Corpus
    from charrnn.evaluation.scores import Assessment, Line
    from charrnn.evaluation.summary import Summary
    from charrnn.evaluation.texts import EvalText
    from charrnn.kernels.head import Predictions
    from charrnn.model.file import ModelFile
    from charrnn.model.network import CharRNN
    from charrnn.training.plan import RunPlan

NUM_TOP = 5  # likeliest characters shown for each character
EXCERPT = 400  # characters of the text, coloured by surprisal
MAX_SHOWN = 120_000  # characters of the text on a page
NUM_HARDEST = 20  # lines on a page


@dataclass(frozen=True)
class Items:
    """What to print instead of the score: every line, every character, or the N least predictable lines."""

    per_line: bool
    per_char: bool
    worst: int | None

    def __post_init__(self) -> None:
        if [self.per_line, self.per_char, self.worst is not None].count(True) > 1:
            raise UsageError("--per-line, --per-char and --worst each print something else; give one of them")
        if self.worst is not None and self.worst < 1:
            raise UsageError(f"--worst must be at least 1, not {self.worst}")

    @property
    def are_wanted(self) -> bool:
        return self.per_line or self.per_char or self.worst is not None


def evaluate(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="[TEXT]", help="Text to score, or - for stdin.", show_default="the part held out in training"
        ),
    ] = None,
    model: ModelName = None,
    yardsticks: Annotated[
        bool, typer.Option(help="Compare with baselines (n-grams, xz) and measure copied text.")
    ] = True,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Also score a copy of the model that learns from the text as it reads.")
    ] = False,
    adapt_rate: Annotated[
        float | None, typer.Option(help="Learning rate of --adapt.", show_default=f"{ADAPT_RATE:g}")
    ] = None,
    per_line: Annotated[
        bool, output_option("--per-line", help="Print the score of each line instead, as JSON.")
    ] = False,
    per_char: Annotated[
        bool,
        output_option(
            "--per-char", help="Print the score and the likeliest alternatives of each character instead, as JSON."
        ),
    ] = False,
    worst: Annotated[
        int | None, output_option(help="Show the N least predictable lines instead; unknown characters make a line so.")
    ] = None,
    html: Annotated[str | None, output_option(metavar="FILE", help="Write a report page to this file.")] = None,
    json: Json = False,
    documents: Annotated[
        str | None,
        text_option(
            metavar="KIND",
            help="Score each document by itself: lines, with any model; another kind needs a model of documents.",
            show_default="as in training",
        ),
    ] = None,
    encoding: Encoding = None,
    errors: Errors = None,
    train_text: Annotated[
        list[str] | None,
        text_option(metavar="FILE", help="Where the training text is now; repeat it for each file, in the same order."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Say how well a model predicts a text, and whether that is good.

    \b
    Examples:
      charrnn eval
      charrnn eval chapter.txt --worst 5
      charrnn eval -m poems --adapt --html report.html
    """
    items = Items(per_line, per_char, worst)
    if adapt_rate is not None and not (adapt and 0 <= adapt_rate <= 1):
        raise UsageError("--adapt-rate needs --adapt, and a value between 0 and 1")
    if html is not None:
        check_target(html)
    wants_score = html is not None or not items.are_wanted
    if text is None and (encoding or errors):
        raise UsageError("--encoding and --errors need a TEXT; the held-out text is read as in training")
    if train_text and text is not None and not (wants_score and (yardsticks or adapt)):
        raise UsageError("--train-text has no effect here: nothing is compared with the training text; leave it out")
    from charrnn.hardware import count_threads, set_up_torch
    from charrnn.model.file import load_model
    from charrnn.training.folder import find_model

    path = find_model(model)
    file = load_model(path)
    eval_text, corpus = read_texts(
        file,
        text,
        train_text,
        given(documents=documents, encoding=encoding, errors=errors),
        needs_corpus=bool(text is None or train_text or adapt),
        wants_corpus=yardsticks and wants_score,
    )
    cores = count_threads(threads)
    target = set_up_torch(device, cores)
    compile_kernels(training=adapt)

    from charrnn.evaluation.assessment import assess
    from charrnn.evaluation.scores import Assessment
    from charrnn.model.network import CharRNN

    config = replace(file.config, reset_id=eval_text.reset_id)
    network = CharRNN.from_arrays(config, file.tensors).to(target)
    with console.slow_notice("scoring the text"):
        found = score(network, file, eval_text, items, for_page=html is not None)
        if worst is not None:
            print_worst(found, worst, json=json)
        if not wants_score:
            return
        assessment = Assessment(found.score)
        if corpus is not None:
            rate = ADAPT_RATE if adapt_rate is None else adapt_rate
            assessment = assess(
                found.score,
                file,
                network,
                eval_text,
                corpus.train_ids,
                with_baselines=yardsticks,
                adapt_rate=rate if adapt else None,
            )
    if not items.are_wanted:
        print_assessment(path, file, eval_text, found, assessment, json=json)
    if html is not None:
        write_page(Path(html), path, file, eval_text, found, assessment, threads=cores)
        console.note(f"wrote {html}")


def check_target(path: str) -> None:
    """Check that the report page can be written, before the work is done."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not path:
        raise UsageError(f"--html {path!r} is not a file name; name one, for example --html report.html")
    if not os.path.isdir(folder) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise CharrnnError(f"{path}: can't be written; --html needs an existing folder that you can write to")


def read_texts(
    file: "ModelFile",
    name: str | None,
    train_text: list[str] | None,
    settings: Mapping[str, Any],
    *,
    needs_corpus: bool,
    wants_corpus: bool,
) -> "tuple[EvalText, Corpus | None]":
    """Read the text to score, and the text that the model was trained on.

    name: of the text to score; None scores the held-out part of the training text. settings: how to read it.
    needs_corpus: raise if the training text is missing. wants_corpus: if it is missing, say so and return None.
    """
    from charrnn.data.cache import Cache
    from charrnn.evaluation.texts import find_training_text, held_out_text, separate_text

    with console.slow_notice("reading the text"), Cache.for_user().writable() as cache:
        if cache.problem:
            console.note(cache.problem)
        corpus = None
        if needs_corpus or wants_corpus:
            try:
                corpus = find_training_text(file, train_text, cache)
            except InputError as error:
                if needs_corpus:
                    raise
                console.note(f"no comparison with baselines: {error}")
        if name is not None:
            return separate_text(file, name, settings, cache), corpus
        assert corpus is not None
        return held_out_text(file, corpus, documents=settings.get("documents", "")), corpus


def compile_kernels(*, training: bool) -> None:
    """Compile what scoring needs, and what training needs if asked to."""
    from charrnn import precompile

    with console.slow_notice(messages.COMPILING):
        if training:
            precompile.for_training("float32")
        else:
            precompile.for_scoring()


def score(network: "CharRNN", file: "ModelFile", text: "EvalText", items: Items, *, for_page: bool) -> "Summary":
    """Score a text in one pass; print each line or character on the way, if that is wanted."""
    from charrnn.evaluation.scoring import predict
    from charrnn.evaluation.summary import summarise

    num_top = NUM_TOP if items.per_char or for_page else 0
    parts = predict(network, text.ids, context=text.context, num_top=num_top, mixture=file.mixture)
    return summarise(
        print_items(parts, text, file, items),
        text,
        file.vocab,
        num_first=MAX_SHOWN if for_page else EXCERPT,
        num_hardest=max(items.worst or 0, NUM_HARDEST if for_page else 0),
    )


def print_items(
    parts: "Iterator[Predictions]", text: "EvalText", file: "ModelFile", items: Items
) -> "Iterator[Predictions]":
    """Pass predictions on, and print each line or each character of them, if that is wanted."""
    from charrnn.evaluation.lines import LineSplitter

    splitter = LineSplitter(text, file.vocab)
    for part in parts:
        if items.per_char:
            for record in messages.char_records(part, file.vocab):
                console.result_json(record)
        elif items.per_line:
            print_lines(splitter.split(part))
        yield part
    if items.per_line:
        print_lines(splitter.rest())


def print_lines(lines: "Iterable[Line]") -> None:
    """Print lines' scores as JSON."""
    for line in lines:
        console.result_json(line.record())


def print_worst(found: "Summary", count: int, *, json: bool) -> None:
    """Print the least predictable lines."""
    lines = found.hardest[:count]
    if json:
        print_lines(lines)
    else:
        console.table([messages.line_row(line) for line in lines], header=messages.line_header(lines))


def print_assessment(
    path: Path, file: "ModelFile", text: "EvalText", found: "Summary", assessment: "Assessment", *, json: bool
) -> None:
    """Print a score, the comparison and, on a terminal, the start of the text coloured by surprisal."""
    if json:
        console.result_json({"model": str(path), "text": text.name, **assessment.record()})
        return
    from charrnn.evaluation.verdict import sentences

    console.table(messages.score_rows(str(path), text.name, found.score))
    if assessment.baselines or assessment.adapted or found.score.experts:
        console.table(messages.comparison_rows(assessment), header=messages.COMPARISON_HEADER)
    console.sentences(sentences(assessment))
    if console.uses_colour():
        excerpt = file.vocab.decode(found.first.ids[:EXCERPT])
        shown = excerpt.rfind("\n") + 1 or len(excerpt)  # whole lines
        console.surprisal(excerpt[:shown].rstrip("\n"), found.first.nats)


def write_page(
    target: Path,
    path: Path,
    file: "ModelFile",
    text: "EvalText",
    found: "Summary",
    assessment: "Assessment",
    *,
    threads: int,
) -> None:
    """Write the report page. path: of the model file."""
    from charrnn.evaluation.verdict import verdict
    from charrnn.files import write_atomically
    from charrnn.pages.report import Report, draw_samples, render
    from charrnn.training.log import read_log

    page = render(
        Report(
            model=str(path),
            text=text.title,
            card=messages.card_rows(messages.card(str(path), file)),
            assessment=assessment,
            verdict=verdict(assessment),
            vocab=file.vocab,
            predictions=found.first,
            hardest=found.hardest[:NUM_HARDEST],
            samples=draw_samples(file, threads=threads),
            log=read_log(path.parent),
        )
    )
    if target.exists() and not target.is_file():  # a pipe, for example
        target.write_bytes(console.faithful(page))
    else:
        write_atomically(target, console.faithful(page))


def write_run_report(plan: "RunPlan") -> Path:
    """Write the report page about a finished run next to its model; return its path."""
    from charrnn.evaluation.assessment import assess
    from charrnn.evaluation.scoring import predict
    from charrnn.evaluation.summary import summarise
    from charrnn.evaluation.texts import held_out_text
    from charrnn.training.folder import REPORT_NAME
    from charrnn.training.saving import load_best_model

    file, network = load_best_model(plan)
    corpus, threads = plan.task.corpus, plan.environment.threads
    text = held_out_text(file, corpus)
    parts = predict(network, text.ids, context=text.context, num_top=NUM_TOP, mixture=file.mixture)
    found = summarise(parts, text, file.vocab, num_first=MAX_SHOWN, num_hardest=NUM_HARDEST)
    assessment = assess(found.score, file, network, text, corpus.train_ids, with_baselines=True, adapt_rate=None)
    target = plan.run.folder / REPORT_NAME
    write_page(target, plan.run.model_path, file, text, found, assessment, threads=threads)
    return target
