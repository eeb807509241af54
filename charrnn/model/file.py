"""The model file: all that sampling and scoring need, and where the model comes from.

A model file is made to be shared. It names texts, but not the folders that they are in.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import CorpusConfig, ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.errors import CharrnnError
from charrnn.files import CHECKPOINTS, checkpoints
from charrnn.kernels.ngrams import Mixture
from charrnn.model.container import Tensors, foreign, read_tensors, unwritable, write_tensors
from charrnn.model.ngrams import make_mixture
from charrnn.text.characters import END, MEANINGLESS
from charrnn.text.records import MAX_LABEL_SIZE, MAX_LABELS

MAX_NAMES = 10_000  # of texts
MAX_WEIGHT = 1e15  # no sum of products of float32 values up to this overflows
_NGRAM_PREFIX = "ngram."  # of the names of tensors that are not the network's
_KNOWN = "documents.known"  # the name of the tensor of hashes
_FIGURES = ("nats_per_char", "num_chars", "step", "network", "ngram")  # numbers in a model file's scores
_PARTS = ("num_train", "num_valid", "num_test")
_MAX_NAME = 1 << 15  # characters
_SHA256 = re.compile("([0-9a-f]{64})?")


@dataclass(frozen=True)
class ModelFile:
    """All that sampling and scoring need (sizes, characters, weights), and the model's origin.

    tensors: float32 by parameter name, with the shapes of config.tensor_shapes(). scores, provenance:
    plain JSON objects (docs/formats.md). ngram: the arrays of the n-grams that are mixed into the
    network's predictions, as make_mixture expects them, or empty. known_documents: the hashes of the documents that the
    model was trained on or that were held out (data/documents.short_hashes), sorted and distinct, or None.
    """

    config: ModelConfig
    vocab: Vocab
    tensors: Tensors
    scores: dict[str, Any]
    provenance: dict[str, Any]
    ngram: Tensors = field(default_factory=dict)
    known_documents: NDArray[np.uint32] | None = None

    @property
    def labels(self) -> dict[str, int]:
        """How many documents of the training text have each label; empty for a model without labels."""
        found: dict[str, int] = self.provenance.get("text", {}).get("labels", {})
        return found

    @property
    def corpus_config(self) -> CorpusConfig:
        """How the training text was read and split."""
        return _corpus_config(self.provenance.get("split", {}))

    @cached_property
    def mixture(self) -> Mixture | None:
        """The n-grams as the kernels read them, checked once. Raises ValueError if they are inconsistent."""
        return make_mixture(self.ngram, vocab_size=self.config.vocab_size)

    @property
    def ngram_order(self) -> int:
        """The length of the longest n-grams; 0 for a network alone."""
        return len(self.ngram.get("ngram.weights", ()))


def save_model(path: Path, model: ModelFile) -> None:
    """Write a model file atomically, with names instead of paths.

    Raises ModelFileError, before anything is written, if load_model would refuse the file.
    """
    try:
        _check_facts(model.scores, model.provenance)
        _check_model(model)
    except (ValueError, CharrnnError) as error:
        raise unwritable(path, error) from None
    meta = {
        "config": asdict(model.config),
        "vocab": model.vocab.chars,
        "scores": model.scores,
        "provenance": base_names(model.provenance),
    }
    known = {} if model.known_documents is None else {_KNOWN: model.known_documents}
    write_tensors(path, {**model.tensors, **model.ngram, **known}, kind="model", meta=meta)


def load_model(path: Path | str) -> ModelFile:
    """Read and verify a model file. Raises ModelFileError, which names the file and the fault."""
    path = Path(path)
    tensors, meta = read_tensors(path, kind="model")
    ngram = {name: tensors.pop(name) for name in [*tensors] if name.startswith(_NGRAM_PREFIX)}
    known = tensors.pop(_KNOWN, None)
    try:
        config, vocab = ModelConfig(**meta["config"]), Vocab(meta["vocab"])
        scores, provenance = meta["scores"], meta["provenance"]
        _check_facts(scores, provenance)
        model = ModelFile(config, vocab, tensors, scores, base_names(provenance), ngram, known)
        _check_model(model)
    except (KeyError, TypeError, ValueError, CharrnnError) as error:
        raise foreign(path, "model", f"it lacks {error}" if isinstance(error, KeyError) else error) from None
    return model


def base_names(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Replace each path by a name without folders."""
    shared = {name: dict(provenance[name]) for name in ("text", "split", "training") if name in provenance}
    if "paths" in shared.get("text", {}):
        shared["text"]["paths"] = [os.path.basename(path) for path in shared["text"]["paths"]]
    if shared.get("split", {}).get("valid"):
        shared["split"]["valid"] = os.path.basename(shared["split"]["valid"])
    if shared.get("training", {}).get("init_from"):
        shared["training"]["init_from"] = name_model(shared["training"]["init_from"])
    return {**provenance, **shared}


def name_model(path: str | Path) -> str:
    """Return the name of the run whose folder a model file is in, or else the file's name, without other folders."""
    folder = Path(path).parent
    is_run = folder.parent.name == CHECKPOINTS or folder.parent == checkpoints()
    return folder.name if is_run else os.path.basename(path)


def _check_facts(scores: Any, provenance: Any) -> None:
    """Check that the scores and provenance that are present are as readers expect.

    Raises ValueError, or UsageError for a setting.
    """
    if not (isinstance(scores, dict) and isinstance(provenance, dict)):
        raise ValueError("its scores or provenance are not an object")
    text, split, training = (provenance.get(name, {}) for name in ("text", "split", "training"))
    test = scores.get("test", {})
    if not all(isinstance(part, dict) for part in (text, split, training, test)):
        raise ValueError("a part of its scores or provenance is not an object")
    if not all(_is_number(part.get(name, 0)) for part in (scores, test) for name in _FIGURES):
        raise ValueError("its scores are not numbers")
    if not all(type(split.get(name, 0)) is int and _is_number(split.get(name, 0)) for name in _PARTS):
        raise ValueError("the split of its text is not given in numbers")
    if not all(_SHA256.fullmatch(str(text.get(name, ""))) for name in ("sha256", "key")):
        raise ValueError("a hash of its text is invalid")
    check_names(text.get("paths", []))
    check_labels(text.get("labels", {}))
    check_names([name for name in (split.get("valid"), training.get("init_from")) if name is not None])
    _corpus_config(split).documents.encode("utf-8", "surrogateescape")


def _corpus_config(split: Mapping[str, Any]) -> CorpusConfig:
    return CorpusConfig(**{field.name: split[field.name] for field in fields(CorpusConfig) if field.name in split})


def check_names(names: Any) -> None:
    """Check a list of file names or paths. Raises ValueError."""
    if not (isinstance(names, list) and len(names) <= MAX_NAMES and all(isinstance(name, str) for name in names)):
        raise ValueError(f"the names of its texts are not a list of at most {MAX_NAMES:,} names")
    if any(len(name) > _MAX_NAME or "\0" in name for name in names):
        raise ValueError("a text's name is too long or has a NUL")
    for name in names:
        name.encode("utf-8", "surrogateescape")


def check_labels(labels: Any) -> None:
    """Check the numbers of documents with each label. Raises ValueError."""
    if not (isinstance(labels, dict) and len(labels) <= MAX_LABELS):
        raise ValueError(f"its labels are not at most {MAX_LABELS:,} names with numbers")
    for label, count in labels.items():
        if not 0 < len(label) <= MAX_LABEL_SIZE or type(count) is not int or not 0 < count <= 10**15:
            raise ValueError("a label is empty or too long, or its number of documents is not a number")
        label.encode()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1e18


def _check_model(model: ModelFile) -> None:
    """Check a model's vocabulary and tensors against its configuration. Raises ValueError."""
    chars, config = model.vocab.chars, model.config
    if len(chars) != config.vocab_size:
        raise ValueError(f"{len(chars)} characters, but a vocabulary size of {config.vocab_size}")
    if MEANINGLESS.search(chars) or (model.vocab.has_bytes and re.search("[\x80-\ud7ff\ue000-\U0010ffff]", chars)):
        raise ValueError("its vocabulary has surrogates that mean nothing, or both bytes and characters")
    if any(one >= config.vocab_size for one in config.boundary_ids):
        raise ValueError("the end of a document or of a label is not in its vocabulary")
    if (config.label_id is None) != (not model.labels) or (model.labels and config.reset_id is None):
        raise ValueError("it has labels without their symbol, or the symbol without labels")
    if not set(model.vocab.to_chars("".join(model.labels))) <= set(chars):
        raise ValueError("its labels have characters that are not in its vocabulary")
    _check_tensors(model.tensors, config)
    if model.known_documents is not None:
        _check_known(model.known_documents, model.vocab)
    _ = model.mixture


def _check_known(known: NDArray[Any], vocab: Vocab) -> None:
    """Check the hashes of the known documents. Raises ValueError."""
    if END not in vocab.chars or known.dtype.newbyteorder("=") != np.uint32 or known.ndim != 1:
        raise ValueError(f"{_KNOWN} is no list of 32-bit hashes of documents")
    if (known[1:] <= known[:-1]).any():
        raise ValueError(f"{_KNOWN} is not sorted")


def _check_tensors(tensors: Tensors, config: ModelConfig) -> None:
    """Check that weights have the names, shapes and type that the configuration implies, and finite values.

    Raises ValueError.
    """
    expected = config.tensor_shapes()
    if tensors.keys() != expected.keys():
        wrong = sorted(tensors.keys() ^ expected.keys())
        raise ValueError(f"tensors missing or unknown: {', '.join(wrong[:5])}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.dtype.newbyteorder("=") != np.float32 or tensor.shape != shape:
            raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, not float32 {shape}")
        if not is_finite(tensor):
            raise ValueError(f"{name} has values that are not finite, or beyond {MAX_WEIGHT:g}")


def is_finite(tensor: NDArray[Any]) -> bool:
    """Return whether all values are numbers, and small enough to compute with in float32."""
    with np.errstate(invalid="ignore"):  # some versions of numpy warn about NaN
        return bool(tensor.min(initial=0) >= -MAX_WEIGHT and tensor.max(initial=0) <= MAX_WEIGHT)
