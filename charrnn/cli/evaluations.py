"""Parts of `charrnn eval`: several models side by side, scores by label, a model that adapts."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn.cli.texts import TextOptions, load_network, read_same_text, read_texts
from charrnn.errors import UsageError
from charrnn.terminal import console, messages, tables
from charrnn.text.characters import END, LABEL_END, UNKNOWN

if TYPE_CHECKING:
    from charrnn.data.vocab import Ids
    from charrnn.evaluation.labels import LabelScores
    from charrnn.evaluation.scores import Evaluation
    from charrnn.evaluation.texts import EvalText
    from charrnn.model.file import ModelFile


def compare_models(
    names: list[str],
    options: TextOptions,
    *,
    device: str,
    threads: int,
    json: bool,
) -> None:
    """Score a text by several models, and print their scores side by side, the best first."""
    from charrnn import precompile
    from charrnn.evaluation import comparison
    from charrnn.evaluation.scoring import predict
    from charrnn.model.file import load_model
    from charrnn.runs.models import find_model

    paths = [find_model(name) for name in names]
    files = [load_model(path) for path in paths]
    comparison.check_comparable(names, files, on_held_out=options.name is None)
    texts = read_same_text(paths, files, options)
    with console.slow_notice(messages.compiling("scoring")):
        precompile.for_scoring()
    with console.slow_notice("scoring the text"):
        nats = []
        for file, own in zip(files, texts, strict=True):
            network = load_network(file, own, device=device, threads=threads)
            parts = predict(network, own.ids, context=own.context, mixture=file.mixture)
            nats.append(comparison.align(parts, own, file.vocab))
        found = comparison.compare([str(path) for path in paths], nats, texts)
    unit = files[0].vocab.unit
    if json:
        for one in found:
            console.result_json({"model": one.model, "text": texts[0].name, "unit": unit, **one.record()})
    else:
        console.facts(tables.compared_facts(texts[0].name, unit, found))
        console.table([tables.compared_row(one) for one in found], header=tables.compared_header(unit))


def evaluate_labels(
    path: Path,
    options: TextOptions,
    *,
    device: str,
    threads: int,
    per_line: bool,
    json: bool,
) -> None:
    """Score a text of documents with each label of a model; print sums over each label, or each document's labels."""
    from charrnn import precompile
    from charrnn.evaluation.labels import MAX_SCORED, LabelledText, LabelScorer
    from charrnn.model.file import load_model

    file = load_model(path)
    if not file.labels:
        raise UsageError(f"{path}: --by-label needs a model with labels; train one with --label or --label-from")
    found, _ = read_texts(path, file, options, by_label=True)
    with console.slow_notice(messages.compiling("scoring")):
        precompile.for_scoring()
    documents = LabelledText.from_text(found, file)
    scorer = LabelScorer(load_network(file, found, device=device, threads=threads), file)
    if per_line:
        texts = file.vocab.decode_around(found.ids, found.unknown_chars).split(END)[:-1]
        records = (record for block in scorer.blocks(documents) for record in block.document_records())
        for number, (record, document) in enumerate(zip(records, texts, strict=True), start=1):
            shown = tables.document_text(document.rpartition(LABEL_END)[2])
            console.result_json({"document": number, **record, "text": shown})
        return
    documents = scorer.limit(documents, MAX_SCORED)
    if documents.num_left_out:
        console.note(f"scoring {len(documents):,} documents, spread evenly over the text")
    with console.slow_notice(f"scoring each document with each of {len(file.labels):,} labels"):
        scores = scorer.score(documents)
    if json:
        console.result_json({"model": str(path), "text": found.name, **scores.record()})
    else:
        print_labels(path, found.name, scores, file.vocab.unit)


def print_labels(path: Path, text: str, scores: "LabelScores", unit: str) -> None:
    """Print scores given the labels and without, and how well the model tells the labels."""
    console.facts(tables.label_facts(str(path), text, scores, unit))
    if scores.accuracy is None:
        return
    console.table(tables.label_rows(scores), header=tables.label_header(unit))
    if len(rows := tables.confusion_rows(scores)) <= scores.MAX_CONFUSED:
        console.table(rows, header=tables.confusion_header(scores))


def adapt(file: "ModelFile", text: "EvalText", train: "Ids", rate: float, device: str) -> "Evaluation":
    """Score a text by a copy of the model that learns from it. train: the training text; rate: of learning."""
    from charrnn.evaluation.adaptation import evaluate_adapting
    from charrnn.model.network import CharRNN

    return evaluate_adapting(
        CharRNN.from_arrays(replace(file.config, reset_id=text.reset_id), file.tensors).to(device),
        text.ids,
        context=text.context,
        train=train,
        rare_id=file.vocab.id_of(UNKNOWN),
        rate=rate,
        mixture=file.mixture,
    )
