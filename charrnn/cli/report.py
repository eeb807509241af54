"""The report page: its content from a score, and its file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn.errors import CharrnnError, UsageError
from charrnn.terminal import cards, console

if TYPE_CHECKING:
    from charrnn.evaluation.labels import LabelScores
    from charrnn.evaluation.scores import Assessment
    from charrnn.inspection.findings import Inside
    from charrnn.inspection.inside import ScoredText
    from charrnn.training.plan import RunPlan

NUM_TOP = 5  # likeliest characters shown for each character
MAX_SHOWN = 120_000  # characters of the text on a page
MAX_BY_LABEL = 2_000_000  # characters scored for its section about labels, with all labels: some seconds
NUM_HARDEST = 20  # lines on a page


def check_target(path: str, option: str = "--html", example: str = "report.html") -> None:
    """Check that the page that an option names can be written, before the work is done."""
    folder = os.path.dirname(path) or "."
    if path == "-" or console.is_stdout(path):
        raise UsageError(f"{option} {path}: stdout has other results; name a file, for example {option} {example}")
    if os.path.isdir(path) or not path:
        raise UsageError(f"{option} {path!r} is not a file name; name one, for example {option} {example}")
    if not os.path.isdir(folder) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise CharrnnError(f"{path}: can't be written; {option} needs an existing folder that you can write to")


def write_report(
    target: Path, path: Path, scored: "ScoredText", assessment: "Assessment", inside: "Inside", *, threads: int
) -> None:
    """Write the report page about a scored text.

    path: of the model file; a page that writes text, next to both, is linked to. inside: what was found inside the
    model.
    """
    from charrnn.evaluation.verdict import verdict
    from charrnn.model.file import name_model
    from charrnn.pages.report import Report, draw_samples, render
    from charrnn.runs.folder import PLAYER_NAME
    from charrnn.runs.log import read_log

    file, summary, player = scored.file, scored.summary, target.with_name(PLAYER_NAME)
    is_linked = player.is_file() and player == path.with_name(PLAYER_NAME)
    report = Report(
        model=name_model(path),
        text=scored.text.title,
        card=cards.card_rows(cards.card(name_model(path), file)),
        assessment=assessment,
        verdict=verdict(assessment),
        vocab=file.vocab,
        predictions=summary.first,
        hardest=summary.hardest[:NUM_HARDEST],
        samples=draw_samples(file, threads=threads),
        log=read_log(path.parent),
        player=PLAYER_NAME if is_linked else "",
        inside=inside,
        labels=score_labels(scored),
    )
    write_file(target, render(report))


def score_labels(scored: "ScoredText") -> "LabelScores | None":
    """Score documents spread evenly over a text with each label; None for a model without labels."""
    from charrnn.evaluation.labels import LabelledText, LabelScorer

    if not scored.file.labels:
        return None
    scorer = LabelScorer(scored.network, scored.file)
    return scorer.score(scorer.limit(LabelledText.from_text(scored.text, scored.file), MAX_BY_LABEL))


def write_file(target: Path, page: str) -> None:
    """Write a page, atomically if the target is a file; a link to one stays a link."""
    from charrnn.files import write_atomically

    try:
        if target.exists() and not target.is_file():  # a pipe, for example
            target.write_bytes(console.faithful(page))
        else:
            write_atomically(target.resolve(), console.faithful(page))
    except OSError as error:
        raise CharrnnError(f"{target}: {error.strerror or error}") from None


def write_run_report(plan: "RunPlan") -> Path:
    """Write the report page about a finished run next to its model; return its path."""
    from charrnn.evaluation.assessment import assess
    from charrnn.evaluation.scoring import predict
    from charrnn.evaluation.texts import held_out_text
    from charrnn.inspection.findings import QUICK_PARTS
    from charrnn.inspection.inside import ScoredText, look_inside
    from charrnn.runs.folder import REPORT_NAME
    from charrnn.training.saving import load_best_model

    file, network = load_best_model(plan)
    corpus, threads = plan.task.corpus, plan.environment.threads
    text = held_out_text(file, corpus)
    parts = predict(network, text.ids, context=text.context, num_top=NUM_TOP, mixture=file.mixture)
    scored = ScoredText.from_predictions(parts, network, file, text, num_first=MAX_SHOWN, num_hardest=NUM_HARDEST)
    assessment = assess(scored.summary.score, file, text, corpus.train_ids, threads=threads)
    target = plan.run.folder / REPORT_NAME
    write_report(target, plan.run.model_path, scored, assessment, look_inside(QUICK_PARTS, scored), threads=threads)
    return target
