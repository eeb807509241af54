"""The file format: safetensors with one JSON description in its metadata, and a checksum over the whole file.

The safetensors library writes and parses the tensors. It checks their offsets, not their content, so it does
not notice a flipped bit. The checksum does: SHA-256 over the whole file, with the checksum's own 64
characters set to zeros. docs/formats.md specifies both kinds of file. Reading can't execute
anything: a file holds JSON and raw numbers only.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.errors import CharrnnError, ModelFileError
from charrnn.files import write_atomically
from charrnn.kernels.ngrams import Mixture
from charrnn.model.ngrams import make_mixture

FORMAT_VERSION = 1
_NO_DIGEST = "0" * 64
_KEY = "charrnn"
_NGRAM_PREFIX = "ngram."  # of the names of tensors that are not the network's
_FIGURES = ("nats_per_char", "num_chars", "step")  # numbers in a model file's scores
_SMALL_HEADER = 1 << 22  # bytes; a larger header may be at most a quarter of its file
_LARGE_HEADER = 1 << 26  # bytes, more than any vocabulary takes
_FEW_PARTS = 20_000  # of a JSON value; each becomes an object of some hundred bytes, so a small file may have no more
# How the checksum's key appears in the header: as JSON inside a JSON string. The same words in a
# path or a vocabulary would be escaped once more, so this occurs once.
_DIGEST_MARK = rb"\"file_sha256\": \""
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ModelFile:
    """All that sampling and scoring need (sizes, characters, weights), and the model's origin.

    tensors: float32 by parameter name, with the shapes of config.tensor_shapes(). scores, provenance:
    plain JSON objects (docs/formats.md). ngram: the arrays of the n-grams that are mixed into the
    network's predictions, as make_mixture expects them, or empty.
    """

    config: ModelConfig
    vocab: Vocab
    tensors: Tensors
    scores: dict[str, Any]
    provenance: dict[str, Any]
    ngram: Tensors = field(default_factory=dict)

    @cached_property
    def mixture(self) -> Mixture | None:
        """The n-grams as the kernels read them, checked once. Raises ValueError if they are inconsistent."""
        return make_mixture(self.ngram, vocab_size=self.config.vocab_size)


def save_model(path: Path, model: ModelFile) -> None:
    """Write a model file atomically."""
    meta = {
        "config": asdict(model.config),
        "vocab": model.vocab.chars,
        "scores": model.scores,
        "provenance": model.provenance,
    }
    write_tensors(path, {**model.tensors, **model.ngram}, kind="model", meta=meta)


def load_model(path: Path | str) -> ModelFile:
    """Read and verify a model file. Raises ModelFileError, which names the file and the fault."""
    path = Path(path)
    tensors, meta = read_tensors(path, kind="model")
    try:
        config = ModelConfig(**meta["config"])
        vocab = Vocab(meta["vocab"])
        ngram = {name: tensors.pop(name) for name in [*tensors] if name.startswith(_NGRAM_PREFIX)}
        model = ModelFile(config, vocab, tensors, dict(meta["scores"]), dict(meta["provenance"]), ngram)
    except (KeyError, TypeError, ValueError, AttributeError, CharrnnError) as error:
        raise ModelFileError(f"{path}: its description is not that of a model ({error})") from None
    if not _is_described(model):
        raise ModelFileError(f"{path}: its scores or provenance have the wrong types")
    if len(vocab) != config.vocab_size:
        raise ModelFileError(f"{path}: {len(vocab)} characters, but a vocabulary size of {config.vocab_size}")
    check_tensors(path, tensors, config)
    try:
        _ = model.mixture
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from None
    return model


def _is_described(model: ModelFile) -> bool:
    """Tell whether the scores and provenance that are present have the types that readers rely on."""
    text, split, training = (model.provenance.get(name, {}) for name in ("text", "split", "training"))
    scores, test = model.scores, model.scores.get("test", {})
    if not all(isinstance(part, dict) for part in (text, split, training, test)):
        return False
    paths = text.get("paths", [])
    return (
        isinstance(paths, list)
        and all(isinstance(value, str) for value in (*paths, text.get("sha256", ""), text.get("key", "")))
        and all(isinstance(split.get(name, 0), int) for name in ("num_train", "num_valid", "num_test"))
        and all(_is_number(part.get(name, 0)) for part in (scores, test) for name in _FIGURES)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1e18


def check_tensors(path: Path, tensors: Tensors, config: ModelConfig) -> None:
    """Check that the weights have the names, shapes and type that the configuration implies, and are finite.

    Raises ModelFileError.
    """
    expected = config.tensor_shapes()
    if tensors.keys() != expected.keys():
        wrong = sorted(tensors.keys() ^ expected.keys())
        raise ModelFileError(f"{path}: tensors missing or unknown: {', '.join(wrong[:5])}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.dtype != np.float32 or tensor.shape != shape:
            raise ModelFileError(f"{path}: {name} is {tensor.dtype} {tensor.shape}, not float32 {shape}")
        if not np.isfinite(tensor).all():
            raise ModelFileError(f"{path}: {name} has values that are not finite")


def write_tensors(path: Path, tensors: Tensors, *, kind: str, meta: dict[str, Any]) -> None:
    """Write tensors and a JSON description to one checksummed file, atomically."""
    arrays = {name: np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")) for name, tensor in tensors.items()}
    document = {"format": FORMAT_VERSION, "kind": kind, **meta, "file_sha256": _NO_DIGEST}
    data = memoryview(safetensors_numpy.save(arrays, {_KEY: _dump(document)}))
    start = _find_digest(data)
    write_atomically(path, data[:start], _digest(data, start).encode(), data[start + 64 :])


def read_tensors(path: Path, *, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file that write_tensors wrote: the tensors by name, and the description.

    The bytes are read once, so that what is hashed is what is parsed. Peak memory is about twice
    the file's size. Raises ModelFileError for any other file, before using its content.
    """
    data, header, document = _read_file(path)
    if _digest(memoryview(data), _find_digest(memoryview(data))) != document["file_sha256"]:
        raise _damaged(path, "its checksum does not match")
    if document.get("kind") != kind:
        raise ModelFileError(f"{path}: a {document.get('kind')} file, not a {kind} file")
    if not _is_canonical(data, header, document):
        raise ModelFileError(f"{path}: not as charrnn writes it, though its checksum matches")
    try:
        return safetensors_numpy.load(data), document
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: its tensors can't be read ({error})") from None


def _dump(document: dict[str, Any]) -> str:
    """Write a description in its one form: sorted keys, ASCII."""
    return json.dumps(document, sort_keys=True)


def _is_canonical(data: bytes, header: dict[str, Any], document: dict[str, Any]) -> bool:
    """Tell whether a header has the one form in which it is written: the same for all readers, equal for equal models.

    That form is compact JSON with nothing but the description and three facts about each tensor, in the order of
    their data, padded with spaces to a multiple of 8. The library checks these facts.
    """
    form: dict[str, Any] = {"__metadata__": {_KEY: _dump(document)}}
    for name, entry in header.items():
        if name != "__metadata__":
            form[name] = {key: entry.get(key) for key in ("dtype", "shape", "data_offsets")}
    text = json.dumps(form, separators=(",", ":")).encode()
    ends = [entry["data_offsets"][1] for entry in _entries(header)]
    padded = text + b" " * (-len(text) % 8)
    return ends == sorted(ends) and int.from_bytes(data[:8], "little") == len(padded) and data.startswith(padded, 8)


def _entries(header: dict[str, Any]) -> list[Any]:
    """List the entries of a header's tensors."""
    return [entry for name, entry in header.items() if name != "__metadata__"]


def _find_digest(data: memoryview) -> int:
    """Find where the checksum begins in a file's bytes. Without one the result is a place that no checksum fits."""
    header = bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    return header.find(_DIGEST_MARK) + len(_DIGEST_MARK)


def _digest(data: memoryview, start: int) -> str:
    """Compute a file's checksum in hexadecimal. start: where the checksum begins, which counts as zeros."""
    hashed = hashlib.sha256(data[:start])
    hashed.update(_NO_DIGEST.encode())
    hashed.update(data[start + 64 :])
    return hashed.hexdigest()


def _damaged(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{path}: damaged ({reason}); restore it from a copy or train again")


def _read_file(path: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """Read a file of our format that is as long as its header says; return bytes, header and description."""
    try:
        if not path.is_file():  # reading a folder, a FIFO or a device could fail, hang or never end
            reason = "not a regular file" if path.exists() else "no such file"
            raise ModelFileError(f"{path}: {reason}")
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            header_bytes = _read_header(file, file_size)
            header, document = _parse_header(header_bytes[8:], file_size)
            if document.get("format") != FORMAT_VERSION or type(document["format"]) is not int:
                raise ModelFileError(
                    f"{path}: file format {document.get('format')}, but this charrnn reads format {FORMAT_VERSION}; "
                    "use the charrnn that wrote it, or a newer one"
                )
            ends = [entry["data_offsets"][1] for entry in _entries(header)]
            if not all(type(end) is int for end in ends):
                raise ValueError("tensors without an end")
            if file_size != len(header_bytes) + max(ends, default=0):  # a sparse file can be larger than the disk
                raise _damaged(path, "its length is wrong")
            file.seek(0)
            data = file.read(file_size)
            if len(data) != file_size or not data.startswith(header_bytes):
                raise _damaged(path, "it changed while it was read")
            return data, header, document
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from None
    except MemoryError:
        raise ModelFileError(f"{path}: larger than this machine's memory") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise ModelFileError(f"{path}: not a charrnn file") from None


def _read_header(file: BinaryIO, file_size: int) -> bytes:
    """Read a file's header, with the 8 bytes of its length. Raises ValueError if it is too long."""
    start = file.read(8)
    size = int.from_bytes(start, "little")
    if not 0 < size <= min(file_size, max(_SMALL_HEADER, min(file_size // 4, _LARGE_HEADER))):
        raise ValueError("no header, or one that is too long for the file")
    return start + file.read(size)


def _parse_header(text: bytes, file_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse a header and the description in it. Raises ValueError and the like."""
    header = _parse_json(text, file_size)
    metadata = header["__metadata__"]
    if not isinstance(metadata, dict) or metadata.keys() != {_KEY}:
        raise ValueError("foreign metadata")
    document = _parse_json(metadata[_KEY].encode(), file_size)
    if not isinstance(document, dict) or not isinstance(document["file_sha256"], str):
        raise ValueError("no description")
    return header, document


def _parse_json(text: bytes, file_size: int) -> Any:
    """Parse a JSON value, unless it has so many parts that their objects would take much more memory than the file."""
    if not text.isascii() or sum(text.count(sign) for sign in (b",", b":", b"[", b"{")) > max(
        _FEW_PARTS, file_size // 512
    ):
        raise ValueError("too many parts, or characters that are not escaped")
    return json.loads(text, object_pairs_hook=_refuse_duplicates)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
