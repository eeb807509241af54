"""What the commands tell about a model: what its score is worth, what is hard for it, the page about it."""

from pathlib import Path

from charrnn import assessment, baselines, checkpoint, console, evaluation, keeping, passages, runs, wording
from charrnn.checkpoint import ModelFile
from charrnn.metrics import Assessment, Evaluation
from charrnn.model import CharRNN
from charrnn.ngram import MOST_COUNTED
from charrnn.passages import Passage
from charrnn.plans import RunPlan

EXCERPT = 400  # characters of a text, coloured by what they cost


def print_assessment(
    path: Path, network: CharRNN, file: ModelFile, passage: Passage, found: Assessment, *, json: bool
) -> None:
    """Print a score, what it is worth, and on a terminal what the text's beginning cost."""
    if json:
        console.result_json({"model": str(path), "text": passage.name, **wording.assessment_record(found)})
        return
    console.table(wording.score_rows(str(path), passage.name, found.score))
    if found.yardsticks or found.adapted or found.score.experts:
        console.table(wording.comparison_rows(found), header=wording.COMPARISON_HEADER)
    console.sentences(wording.sentences(found))
    if console.in_colour():
        part = evaluation.predict(network, passage.ids[:EXCERPT], context=passage.context, mixture=file.mixture)
        text = file.vocab.decode(part.ids)
        shown = text.rfind("\n") + 1 or len(text)  # whole lines
        console.surprises(text[:shown].rstrip("\n"), part.nats)


def print_items(
    network: CharRNN,
    file: ModelFile,
    passage: Passage,
    *,
    per_line: bool,
    per_char: bool,
    worst: int | None,
    json: bool,
) -> None:
    """Print what the lines or the characters of a passage cost."""
    parts = evaluation.predictions(
        network,
        passage.ids,
        context=passage.context,
        num_top=assessment.NUM_TOP if per_char else 0,
        mixture=file.mixture,
    )
    if per_char:
        for part in parts:
            for record in wording.char_records(part, file.vocab):
                console.result_json(record)
    elif per_line:
        for line in evaluation.line_costs(parts, file.vocab):
            console.result_json(wording.line_record(line))
    elif worst is not None:
        lines = assessment.hardest_lines(network, file, passage, worst)
        if json:
            for line in lines:
                console.result_json(wording.line_record(line))
        else:
            console.table([wording.line_row(line) for line in lines], header=wording.LINE_HEADER)


def compare(plan: RunPlan) -> str:
    """What a finished run's score is worth."""
    file = checkpoint.load_model(plan.run.model_path)
    passage = passages.held_out(file, plan.corpus)
    nats, num_chars = file.scores["nats_per_char"], file.scores["num_chars"]
    others = baselines.yardsticks(
        *(plan.corpus.train_ids, passage.ids),
        context=passage.context,
        vocab=file.vocab,
        most_read=MOST_COUNTED,
    )
    return wording.comparison_lines(Assessment(Evaluation(nats * num_chars, num_chars, {}), others))


def write_report(plan: RunPlan) -> Path:
    """Write the page about a finished run beside its model; return its path."""
    file, network = keeping.kept_model(plan)
    passage, train = passages.held_out(file, plan.corpus), plan.corpus.train_ids
    found = assessment.assess(file, network, passage, train, compared=True, adapt_rate=None, threads=plan.threads)
    target = plan.run.folder / runs.REPORT_NAME
    write_page(target, plan.run.model_path, file, network, passage, found, plan.threads)
    return target


def write_page(
    target: Path,
    path: Path,
    file: ModelFile,
    network: CharRNN,
    passage: Passage,
    found: Assessment,
    threads: int,
) -> None:
    """Write the page about a model, which is at `path`."""
    log = runs.read_log(path.parent)
    page = console.faithful(assessment.page(str(path), file, network, passage, found, log=log, threads=threads))
    if target.exists() and not target.is_file():  # a pipe, say
        target.write_bytes(page)
    else:
        checkpoint.write_atomically(target, page)
