"""`charrnn eval` with several models: their scores on one text, side by side."""

from collections.abc import Mapping
from typing import Any

from charrnn.cli.texts import load_network, read_same_text
from charrnn.terminal import console, messages, tables


def compare(
    names: list[str],
    text: str | None,
    train_text: list[str] | None,
    settings: Mapping[str, Any],
    *,
    device: str,
    threads: int | None,
    json: bool,
) -> None:
    """Score a text by several models, and print their scores side by side, the best first."""
    from charrnn import precompile
    from charrnn.evaluation import comparison
    from charrnn.evaluation.scoring import predict
    from charrnn.hardware import count_threads, set_up_torch
    from charrnn.model.file import load_model
    from charrnn.training.folder import find_model

    paths = [find_model(name) for name in names]
    files = [load_model(path) for path in paths]
    comparison.check_comparable(names, files, on_held_out=text is None)
    texts = read_same_text(paths, files, text, train_text, settings)
    target = set_up_torch(device, count_threads(threads))
    with console.slow_notice(messages.COMPILING):
        precompile.for_scoring()
    with console.slow_notice("scoring the text"):
        nats = []
        for file, own in zip(files, texts, strict=True):
            parts = predict(load_network(file, own, target), own.ids, context=own.context, mixture=file.mixture)
            nats.append(comparison.align(parts, own, file.vocab))
        found = comparison.compare([str(path) for path in paths], nats, texts)
    unit = files[0].vocab.unit
    if json:
        for one in found:
            console.result_json({"model": one.model, "text": texts[0].name, "unit": unit, **one.record()})
    else:
        console.table(tables.compared_facts(texts[0].name, unit, found))
        console.table([tables.compared_row(one) for one in found], header=tables.compared_header(unit))
