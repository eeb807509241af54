"""The report page: its content from a score, and its file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn.errors import CharrnnError, UsageError
from charrnn.terminal import cards, console

if TYPE_CHECKING:
    from charrnn.evaluation.scores import Assessment
    from charrnn.evaluation.summary import Summary
    from charrnn.evaluation.texts import EvalText
    from charrnn.inspection.findings import Inside
    from charrnn.model.file import ModelFile
    from charrnn.training.plan import RunPlan

NUM_TOP = 5  # likeliest characters shown for each character
MAX_SHOWN = 120_000  # characters of the text on a page
NUM_HARDEST = 20  # lines on a page


def check_target(path: str, option: str = "--html", example: str = "report.html") -> None:
    """Check that the page that an option names can be written, before the work is done."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not path:
        raise UsageError(f"{option} {path!r} is not a file name; name one, for example {option} {example}")
    if not os.path.isdir(folder) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise CharrnnError(f"{path}: can't be written; {option} needs an existing folder that you can write to")


def write_page(
    target: Path,
    path: Path,
    file: "ModelFile",
    text: "EvalText",
    found: "Summary",
    assessment: "Assessment",
    *,
    threads: int,
    inside: "Inside | None" = None,
) -> None:
    """Write the report page. path: of the model file; inside: what was found inside the model, if that is wanted."""
    from charrnn.evaluation.verdict import verdict
    from charrnn.inspection.findings import Inside
    from charrnn.model.file import name_model
    from charrnn.pages.report import Report, draw_samples, render
    from charrnn.training.folder import PLAYER_NAME
    from charrnn.training.log import read_log

    player = target.with_name(PLAYER_NAME)
    page = render(
        Report(
            model=name_model(path),
            text=text.title,
            card=cards.card_rows(cards.card(name_model(path), file)),
            assessment=assessment,
            verdict=verdict(assessment),
            vocab=file.vocab,
            predictions=found.first,
            hardest=found.hardest[:NUM_HARDEST],
            samples=draw_samples(file, threads=threads),
            log=read_log(path.parent),
            player=PLAYER_NAME if player.is_file() and player == path.with_name(PLAYER_NAME) else "",
            inside=inside or Inside(),
        )
    )
    write_file(target, page)


def write_file(target: Path, page: str) -> None:
    """Write a page, atomically if the target is a file."""
    from charrnn.files import write_atomically

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
