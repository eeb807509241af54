"""The text that a command scores, the network that scores it, and the text that a model was trained on."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class TextOptions:
    """The text to score, as the options say.

    name: None means the held-out part of the training text. train_text: the files of the training text, if named.
    settings: how to read the text, those that were given.
    """

    name: str | None
    train_text: list[str] | None
    settings: Mapping[str, Any]


def check_no_run(text: str) -> None:
    """Raise UsageError for the name of a run in place of a text."""
    if not os.path.exists(text) and text in (path.parent.name for path in list_models(checkpoints())):
        raise UsageError(f"{one_line(text)} is a run, not a text; use -m {shlex.quote(text)}")


def read_texts(
    path: Path,
    file: "ModelFile",
    options: TextOptions,
    *,
    needs_corpus: bool = False,
    wants_corpus: bool = False,
    by_label: bool = False,
) -> "tuple[EvalText, Corpus | None]":
    """Read the text to score, and the text that the model was trained on, if that is needed or named.

    path: of the model file. wants_corpus: if the training text is missing, say so and return None. by_label: the
    documents of a text may lack the labels that the model knows.
    """
    from charrnn.data.cache import Cache
    from charrnn.evaluation.texts import held_out_text, separate_text
    from charrnn.runs.models import find_training_text

    name, settings, corpus = options.name, options.settings, None
    needs_corpus = needs_corpus or name is None or bool(options.train_text)
    with console.slow_notice("reading the text"), Cache.for_user().writable() as cache:
        if cache.problem:
            console.note(cache.problem)
        try:
            if needs_corpus or wants_corpus:
                corpus = find_training_text(path, file, options.train_text, cache, max_bytes=settings.get("max_bytes"))
        except InputError as error:
            if name is None:
                raise InputError(f"{error}; {_ADVICE}") from None
            if needs_corpus:
                raise
            console.note(f"no comparison with baselines: {error}")
        if name is None:
            assert corpus is not None
            return held_out_text(file, corpus, documents=settings.get("documents", "")), corpus
        found = separate_text(file, name, settings, cache)
    if file.config.label_id is not None and not by_label and file.config.label_id not in found.ids:
        raise UsageError(
            f"{name}: its documents have no labels, as the model's have; name their column with --label, "
            "or score them with --by-label"
        )
    return found, corpus


def read_same_text(paths: list[Path], files: "list[ModelFile]", options: TextOptions) -> "list[EvalText]":
    """Read the text to score for each of several models, by default their held-out text."""
    from charrnn.data.cache import Cache
    from charrnn.evaluation.texts import held_out_text, separate_texts
    from charrnn.runs.models import find_training_text

    settings = options.settings
    with console.slow_notice("reading the text"), Cache.for_user().writable() as cache:
        if cache.problem:
            console.note(cache.problem)
        if options.name is not None:
            return separate_texts(files, options.name, settings, cache)
        try:
            corpora = [
                find_training_text(path, file, options.train_text, cache, max_bytes=settings.get("max_bytes"))
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
