"""The text that a command scores, the network that scores it, and the text that a model was trained on."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charrnn.errors import InputError, UsageError
from charrnn.files import checkpoints, list_models
from charrnn.terminal import console
from charrnn.text.characters import one_line

if TYPE_CHECKING:
    from charrnn.data.corpus import Corpus
    from charrnn.evaluation.texts import EvalText
    from charrnn.model.file import ModelFile
    from charrnn.model.windows import Reader

_ADVICE = "name a TEXT to score another one"


def check_no_run(text: str) -> None:
    """Raise UsageError for the name of a run in place of a text."""
    if not os.path.exists(text) and text in (path.parent.name for path in list_models(checkpoints())):
        raise UsageError(f"{one_line(text)} is a run, not a text; use -m {shlex.quote(text)}")


def read_texts(
    path: Path,
    file: "ModelFile",
    name: str | None,
    train_text: list[str] | None,
    settings: Mapping[str, Any],
    *,
    needs_corpus: bool,
    wants_corpus: bool,
    by_label: bool = False,
) -> "tuple[EvalText, Corpus | None]":
    """Read the text to score, and the text that the model was trained on.

    path: of the model file. name: of the text to score; None scores the held-out part of the training text.
    settings: how to read it. needs_corpus: raise if the training text is missing. wants_corpus: if it is missing,
    say so and return None. by_label: the documents of a text may lack the labels that the model knows.
    """
    from charrnn.data.cache import Cache
    from charrnn.evaluation.texts import held_out_text, separate_text
    from charrnn.runs.models import find_training_text

    max_bytes = settings.get("max_bytes")
    with console.slow_notice("reading the text"), Cache.for_user().writable() as cache:
        if cache.problem:
            console.note(cache.problem)
        corpus = None
        if needs_corpus or wants_corpus:
            try:
                corpus = find_training_text(path, file, train_text, cache, max_bytes=max_bytes)
            except InputError as error:
                if name is None:
                    raise InputError(f"{error}; {_ADVICE}") from None
                if needs_corpus:
                    raise
                console.note(f"no comparison with baselines: {error}")
        if name is not None:
            found = separate_text(file, name, settings, cache)
            if file.config.label_id is not None and not by_label and file.config.label_id not in found.ids:
                raise UsageError(
                    f"{name}: its documents have no labels, as the model's have; name their column with --label, "
                    "or score them with --by-label"
                )
            return found, corpus
        assert corpus is not None
        return held_out_text(file, corpus, documents=settings.get("documents", "")), corpus


def read_same_text(
    paths: list[Path],
    files: "list[ModelFile]",
    name: str | None,
    train_text: list[str] | None,
    settings: Mapping[str, Any],
) -> "list[EvalText]":
    """Read the text to score for each of several models; a name of None means their held-out text."""
    from charrnn.data.cache import Cache
    from charrnn.evaluation.texts import held_out_text, separate_texts
    from charrnn.runs.models import find_training_text

    max_bytes = settings.get("max_bytes")
    with console.slow_notice("reading the text"), Cache.for_user().writable() as cache:
        if cache.problem:
            console.note(cache.problem)
        if name is not None:
            return separate_texts(files, name, settings, cache)
        try:
            corpora = [
                find_training_text(path, file, train_text, cache, max_bytes=max_bytes)
                for path, file in zip(paths, files, strict=True)
            ]
        except InputError as error:
            raise InputError(f"{error}; {_ADVICE}") from None
    documents = settings.get("documents", "")
    return [held_out_text(file, corpus, documents=documents) for file, corpus in zip(files, corpora, strict=True)]


def load_network(file: "ModelFile", text: "EvalText", *, device: str, threads: int) -> "Reader":
    """Make a model's network, which resets its state where the text says so. device: from choose_reader_device."""
    config = replace(file.config, reset_id=text.reset_id)
    if device == "cpu":
        from charrnn.model.windows import KernelNetwork

        return KernelNetwork.from_arrays(config, file.tensors, threads)
    import torch

    from charrnn.model.network import CharRNN

    return CharRNN.from_arrays(config, file.tensors).to(torch.device(device)).reader(threads)
