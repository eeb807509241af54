"""The file format: safetensors whose metadata is one JSON value with a checksum over the file.

safetensors checks offsets, not content, so a flipped bit loads without a word; the digest
is what notices. It is SHA-256 over the whole file with the digest's own 64 characters
zeroed. docs/formats.md specifies both kinds of file. Nothing here can execute anything:
JSON and raw numbers are all that is read.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors
from safetensors.numpy import save as serialise_tensors

from charrnn.config import ModelConfig
from charrnn.errors import CharrnnError, ModelFileError
from charrnn.vocab import Vocab

FORMAT_VERSION = 1
_NO_DIGEST = "0" * 64
_KEY = "charrnn"
# How the digest's key stands in the header: JSON inside a JSON string. The same words in a
# path or a vocabulary would be escaped once more, so this occurs once.
_DIGEST_MARK = rb"\"file_sha256\": \""

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ModelFile:
    """All that sampling and scoring need: sizes, characters, weights; and where they came from.

    tensors: float32 by parameter name, shapes as config.tensor_shapes() says.
    scores and provenance are plain JSON objects (docs/formats.md).
    """

    config: ModelConfig
    vocab: Vocab
    tensors: Tensors
    scores: dict[str, Any]
    provenance: dict[str, Any]


def save_model(path: Path, model: ModelFile) -> None:
    """Write a model file atomically."""
    meta = {
        "config": asdict(model.config),
        "vocab": model.vocab.chars,
        "scores": model.scores,
        "provenance": model.provenance,
    }
    write_tensors(path, model.tensors, kind="model", meta=meta)


def load_model(path: Path | str) -> ModelFile:
    """Read and verify a model file.

    Raises ModelFileError that names the file and what is wrong with it.
    """
    path = Path(path)
    tensors, meta = read_tensors(path, kind="model")
    try:
        config = ModelConfig(**meta["config"])
        vocab = Vocab(meta["vocab"])
        model = ModelFile(config, vocab, tensors, dict(meta["scores"]), dict(meta["provenance"]))
    except (KeyError, TypeError, ValueError, AttributeError, CharrnnError) as error:
        raise ModelFileError(f"{path}: its description is not a model's ({error})") from None
    if not _is_described(model):
        raise ModelFileError(f"{path}: its scores or provenance are not what charrnn writes")
    if len(vocab) != config.vocab_size:
        raise ModelFileError(f"{path}: {len(vocab)} characters, but a vocabulary size of {config.vocab_size}")
    check_tensors(path, tensors, config)
    return model


def _is_described(model: ModelFile) -> bool:
    """Whether scores and provenance, as far as they are there, have the types that readers rely on."""
    text, split, training = (model.provenance.get(name, {}) for name in ("text", "split", "training"))
    if not all(isinstance(part, dict) for part in (text, split, training)):
        return False
    paths = text.get("paths", [])
    return (
        isinstance(paths, list)
        and all(isinstance(value, str) for value in (*paths, text.get("sha256", ""), text.get("key", "")))
        and all(isinstance(split.get(name, 0), int) for name in ("num_train", "num_valid"))
        and all(isinstance(model.scores.get(name, 0), (int, float)) for name in ("nats_per_char", "num_chars", "step"))
    )


def check_tensors(path: Path, tensors: Tensors, config: ModelConfig) -> None:
    """Check that these are the weights the configuration implies: names, shapes, type, finite.

    Raises ModelFileError otherwise.
    """
    expected = config.tensor_shapes()
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())
        raise ModelFileError(f"{path}: tensors missing or unknown: {', '.join(odd[:5])}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.dtype != np.float32 or tensor.shape != shape:
            raise ModelFileError(f"{path}: {name} is {tensor.dtype} {tensor.shape}, not float32 {shape}")
        if not np.isfinite(tensor).all():
            raise ModelFileError(f"{path}: {name} has values that are not finite")


def write_tensors(path: Path, tensors: Tensors, *, kind: str, meta: dict[str, Any]) -> None:
    """Write tensors and a JSON description to one checksummed file, atomically."""
    document = {"format": FORMAT_VERSION, "kind": kind, "file_sha256": _NO_DIGEST, **meta}
    data = _serialise(tensors, document)
    digest = hashlib.sha256(data).hexdigest()
    start = data.index(_DIGEST_MARK) + len(_DIGEST_MARK)
    write_atomically(path, data[:start] + digest.encode() + data[start + 64 :])


def read_tensors(path: Path, *, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file that write_tensors wrote: the tensors by name and the description.

    The bytes are read once; what is hashed is what is parsed.
    Raises ModelFileError for anything else, before trusting a byte of it.
    """
    data = _read_regular_file(path)
    try:
        document = _description(data)
        digest = document["file_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelFileError(f"{path}: not a charrnn file") from None
    if document.get("format") != FORMAT_VERSION or type(document["format"]) is not int:
        raise ModelFileError(
            f"{path}: file format {document.get('format')}, but this charrnn reads format {FORMAT_VERSION}; "
            "use the charrnn that wrote it, or a newer one"
        )
    start = data.find(_DIGEST_MARK) + len(_DIGEST_MARK)
    hashed = hashlib.sha256(data[:start])
    hashed.update(_NO_DIGEST.encode())
    hashed.update(memoryview(data)[start + 64 :])
    if hashed.hexdigest() != digest:
        raise ModelFileError(f"{path}: damaged (its checksum does not match); restore it from a copy or train again")
    if document.get("kind") != kind:
        raise ModelFileError(f"{path}: a {document.get('kind')} file, not a {kind} file")
    try:
        tensors = parse_tensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: its tensors can't be read ({error})") from None
    if _serialise(tensors, document) != data:
        raise ModelFileError(f"{path}: not as charrnn writes it, though its checksum matches")
    return tensors, document


def _serialise(tensors: Tensors, document: dict[str, Any]) -> bytes:
    """The one way these tensors and this description are written."""
    contiguous = {
        name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()
    }  # save takes memory as it lies
    return serialise_tensors(contiguous, {_KEY: json.dumps(document, sort_keys=True)})


def _read_regular_file(path: Path) -> bytes:
    try:
        if not path.is_file():  # a folder, a FIFO or a device would hang or never end
            reason = "not a regular file" if path.exists() else "no such file"
            raise ModelFileError(f"{path}: {reason}")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from None


def _description(data: bytes) -> dict[str, Any]:
    """The JSON value in a safetensors header. Raises ValueError, KeyError, TypeError for nonsense."""
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= len(data) - 8:
        raise ValueError("no header")
    header = json.loads(data[8 : 8 + size], object_pairs_hook=_without_duplicates)
    metadata = header["__metadata__"]
    if not isinstance(metadata, dict) or metadata.keys() != {_KEY}:
        raise ValueError("foreign metadata")
    document = json.loads(metadata[_KEY], object_pairs_hook=_without_duplicates)
    if not isinstance(document, dict):
        raise ValueError("no description")
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: whoever reads it sees the old bytes or the new, never a part.

    Temporary file in the same folder, write, fsync, rename, fsync the folder.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if os.name == "posix":  # Windows can't open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    """The process's umask; mkstemp ignores it and makes files private."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
