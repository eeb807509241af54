"""The models of runs: finding a model that a command names, and the text that it was trained on."""

import os
from collections.abc import Sequence
from pathlib import Path

from charrnn.config import CorpusConfig
from charrnn.data.cache import Cache
from charrnn.data.corpus import Corpus
from charrnn.errors import CharrnnError, InputError, ModelFileError, UsageError
from charrnn.evaluation.texts import cached_training_text, read_training_text
from charrnn.files import MODEL_NAME, checkpoints, list_models, name_checkpoints
from charrnn.model.file import ModelFile, check_names
from charrnn.runs.folder import Run, SavedText, composed
from charrnn.text.sources import STDIN


def run_name(text: str) -> str:
    """Name a run after its first text: the file's stem, or stdin for any stream."""
    is_stream = os.path.exists(text) and not os.path.isfile(text) and not os.path.isdir(text)
    return "stdin" if text == STDIN or is_stream else Path(os.path.abspath(text)).stem


def list_without_model() -> list[str]:
    """List the names of runs that were stopped before they saved a model."""
    folders = {path.parent for path in checkpoints().glob("*/state-*.safetensors")}
    return sorted(folder.name for folder in folders if not (folder / MODEL_NAME).exists())


def find_model(which: str | None) -> Path:
    """Find the model file that `-m` names: a file, a run's folder or a run; None: the newest model.

    Raises ModelFileError if there is none, UsageError for an empty name.
    """
    if which is None:
        models = list_models(checkpoints())
        if not models:
            raise ModelFileError(
                f"no model in {name_checkpoints()}; make one with: charrnn train TEXT, or name a file with -m"
            )
        return models[-1]
    if not which:
        raise UsageError("the model's name is empty; name a run or a model file")
    # runs first: a text of the same name, without a suffix, must not hide its run
    for path in (
        checkpoints() / composed(which) / MODEL_NAME,
        checkpoints() / which / MODEL_NAME,
        Path(which) / MODEL_NAME,
        Path(which),
    ):
        if os.path.exists(path) and not os.path.isdir(path):  # unlike Path's, False for a name that is too long
            return path
    if which in list_without_model():
        raise ModelFileError(
            f"run {which!r} was stopped before it saved a model; the same charrnn train command resumes it"
        )
    raise ModelFileError(
        f"{which}: neither a model file nor a run in {name_checkpoints()}; charrnn info lists the runs"
    )


def find_training_text(
    path: Path, file: ModelFile, names: Sequence[str] | None, cache: Cache, *, max_bytes: int | None = None
) -> Corpus:
    """Find the text that a model was trained on: where the user says, in the cache, or where its run says.

    path: of the model file. names: the text's files, if the user named them.
    Raises InputError if the text is missing, or the named one is another.
    """
    if names:
        return read_training_text(file, names, cache, max_bytes=max_bytes)
    corpus = cached_training_text(file, cache)
    if corpus is not None:
        return corpus
    paths = _recorded_texts(path, file.provenance["text"]["sha256"])
    try:
        for name in paths:
            if not os.path.isfile(name):
                raise InputError(f"{name}: not found")
        return read_training_text(file, paths, cache, max_bytes=max_bytes)
    except InputError as error:
        if not paths:  # the error says what to do
            raise
        raise InputError(f"{error} (the training text; if it has moved, use --train-text FILE)") from None


def _recorded_texts(model_path: Path, sha256: str) -> list[str]:
    """Return where the text of the run whose folder a model file is in is; [] if nothing says so.

    A held-out file (--valid) is the last one. The run's state says it, not the model, which may be someone else's.
    """
    folder = Path(os.path.abspath(model_path)).parent
    if folder.parent != Path(os.path.abspath(checkpoints())):
        return []
    try:
        saved = Run(folder.name).newest_state()
        if saved is None:
            return []
        text, valid = SavedText(**saved.meta["text"]), CorpusConfig(**saved.meta["corpus"]).valid
        check_names([valid or ""])
    except (CharrnnError, KeyError, TypeError, ValueError):
        return []
    paths = text.paths if valid is None else [*text.paths, valid]
    return [] if text.sha256 != sha256 or STDIN in paths else paths
