"""The file format: safetensors whose metadata is one JSON value with a checksum over the file.

safetensors checks offsets, not content, so a flipped bit loads without a word; the digest
is what notices. It is SHA-256 over the whole file with the digest's own 64 characters
zeroed. docs/formats.md specifies both kinds of file. Nothing here can execute anything:
JSON and raw numbers are all that is read.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.errors import CharrnnError, ModelFileError
from charrnn.files import write_atomically
from charrnn.kernels.ngrams import Mixture
from charrnn.model.ngrams import mixture_of

FORMAT_VERSION = 1
_NO_DIGEST = "0" * 64
_KEY = "charrnn"
_NGRAM = "ngram."  # how the names of tensors begin that are not the network's
_KINDS = (("F", (2, 4, 8)), ("I", (1, 2, 4, 8)), ("U", (1, 2, 4, 8)))  # of numbers, and their bytes
_TYPES = {f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind, sizes in _KINDS for size in sizes}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_MEASURED = ("nats_per_char", "num_chars", "step")  # of a model file's scores
_SMALL_HEADER = 1 << 22  # bytes; a larger one must be at most a quarter of its file
_LARGE_HEADER = 1 << 26  # bytes, and more than any vocabulary takes
_FEW_PARTS = 20_000  # of a JSON value, each an object of some hundred bytes; more must be few beside the file
# How the digest's key stands in the header: JSON inside a JSON string. The same words in a
# path or a vocabulary would be escaped once more, so this occurs once.
_DIGEST_MARK = rb"\"file_sha256\": \""
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ModelFile:
    """All that sampling and scoring need: sizes, characters, weights; and where they came from.

    tensors: float32 by parameter name, shapes as config.tensor_shapes() says.
    scores and provenance are plain JSON objects (docs/formats.md). ngram: arrays of n-grams that
    are mixed into the network's predictions, as ngram.mixture_of has them; empty where none are.
    """

    config: ModelConfig
    vocab: Vocab
    tensors: Tensors
    scores: dict[str, Any]
    provenance: dict[str, Any]
    ngram: Tensors = field(default_factory=dict)

    @cached_property
    def mixture(self) -> Mixture | None:
        """The n-grams as the kernels read them, checked once. Raises ValueError where they contradict themselves."""
        return mixture_of(self.ngram, vocab_size=self.config.vocab_size)


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
    """Read and verify a model file.

    Raises ModelFileError that names the file and what is wrong with it.
    """
    path = Path(path)
    tensors, meta = read_tensors(path, kind="model")
    try:
        config = ModelConfig(**meta["config"])
        vocab = Vocab(meta["vocab"])
        ngram = {name: tensors.pop(name) for name in [*tensors] if name.startswith(_NGRAM)}
        model = ModelFile(config, vocab, tensors, dict(meta["scores"]), dict(meta["provenance"]), ngram)
    except (KeyError, TypeError, ValueError, AttributeError, CharrnnError) as error:
        raise ModelFileError(f"{path}: its description is not a model's ({error})") from None
    if not _is_described(model):
        raise ModelFileError(f"{path}: its scores or provenance are not what charrnn writes")
    if len(vocab) != config.vocab_size:
        raise ModelFileError(f"{path}: {len(vocab)} characters, but a vocabulary size of {config.vocab_size}")
    check_tensors(path, tensors, config)
    try:
        _ = model.mixture
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from None
    return model


def _is_described(model: ModelFile) -> bool:
    """Whether scores and provenance, as far as they are there, have the types that readers rely on."""
    text, split, training = (model.provenance.get(name, {}) for name in ("text", "split", "training"))
    scores, test = model.scores, model.scores.get("test", {})
    if not all(isinstance(part, dict) for part in (text, split, training, test)):
        return False
    paths = text.get("paths", [])
    return (
        isinstance(paths, list)
        and all(isinstance(value, str) for value in (*paths, text.get("sha256", ""), text.get("key", "")))
        and all(isinstance(split.get(name, 0), int) for name in ("num_train", "num_valid", "num_test"))
        and all(_is_number(part.get(name, 0)) for part in (scores, test) for name in _MEASURED)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1e18


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
    tensors = {name: np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")) for name, tensor in tensors.items()}
    header = _header(tensors, {"format": FORMAT_VERSION, "kind": kind, **meta, "file_sha256": _NO_DIGEST})
    arrays = [tensors[name].reshape(-1).view(np.uint8).data for name in _in_order(tensors)]
    start = header.index(_DIGEST_MARK) + len(_DIGEST_MARK)
    digest = _digest(header, *arrays).encode()
    write_atomically(path, header[:start], digest, header[start + 64 :], *arrays)


def read_tensors(path: Path, *, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file that write_tensors wrote: the tensors by name, and the description.

    The bytes are read once; what is hashed is what is parsed, and the tensors are views of them.
    Raises ModelFileError for anything else, before trusting a byte of it.
    """
    header, data, entries, document = _read_file(path)
    if document.get("format") != FORMAT_VERSION or type(document["format"]) is not int:
        raise ModelFileError(
            f"{path}: file format {document.get('format')}, but this charrnn reads format {FORMAT_VERSION}; "
            "use the charrnn that wrote it, or a newer one"
        )
    digest = document["file_sha256"]
    start = header.find(_DIGEST_MARK) + len(_DIGEST_MARK)
    if _digest(header[:start], _NO_DIGEST.encode(), memoryview(header)[start + 64 :], data) != digest:
        raise ModelFileError(f"{path}: damaged (its checksum does not match); restore it from a copy or train again")
    if document.get("kind") != kind:
        raise ModelFileError(f"{path}: a {document.get('kind')} file, not a {kind} file")
    try:
        tensors = {name: _tensor(data, entry) for name, entry in entries.items()}
        canonical = _header(tensors, document) == header
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{path}: its tensors can't be read ({error})") from None
    if not canonical or sum(tensor.nbytes for tensor in tensors.values()) != len(data):
        raise ModelFileError(f"{path}: not as charrnn writes it, though its checksum matches")
    return tensors, document


def _header(tensors: Tensors, document: dict[str, Any]) -> bytes:
    """The one way in which these tensors and this description are announced, as safetensors has it."""
    entries: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(document, sort_keys=True)}}
    end = 0
    for name in _in_order(tensors):
        begin, end = end, end + tensors[name].nbytes
        kind = _NAMES[tensors[name].dtype]
        entries[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"))  # ASCII; it may be long, so few copies are made of it
    del entries
    padding = " " * (-len(text) % 8)
    return b"".join(((len(text) + len(padding)).to_bytes(8, "little"), text.encode(), padding.encode()))


def _in_order(tensors: Tensors) -> list[str]:
    """The names as safetensors has them: wide numbers first, so that all lie aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))


def _tensor(data: bytearray, entry: dict[str, Any]) -> NDArray[Any]:
    """The tensor that an entry of a header tells of. Raises ValueError and its like where it isn't there."""
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= len(data):
        raise ValueError(f"one reaches from {begin} to {end}")
    return np.frombuffer(memoryview(data)[begin:end], _TYPES[entry["dtype"]]).reshape(entry["shape"])


def _digest(*pieces: bytes | bytearray | memoryview) -> str:
    """SHA-256 of a file in pieces, in hexadecimal."""
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    return hashed.hexdigest()


def _read_file(path: Path) -> tuple[bytes, bytearray, dict[str, Any], dict[str, Any]]:
    """A file's header, as much after it as it announces, its entries and the JSON value among them."""
    try:
        if not path.is_file():  # a folder, a FIFO or a device would hang or never end
            reason = "not a regular file" if path.exists() else "no such file"
            raise ModelFileError(f"{path}: {reason}")
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            header = file.read(8)
            size = int.from_bytes(header, "little")
            if not 0 < size <= min(file_size, max(_SMALL_HEADER, min(file_size // 4, _LARGE_HEADER))):
                raise ValueError("no header, or one larger than what it describes")
            header += file.read(size)
            entries, document = _parse_header(header[8:], file_size)
            ends = [entry["data_offsets"][1] for entry in entries.values()]
            if not all(isinstance(end, int) and end >= 0 for end in ends):
                raise ValueError("tensors that end nowhere")
            num_bytes = min(max(ends, default=0) + 1, file_size)  # a byte more than announced is damage
            data = bytearray(num_bytes)  # may be written to, as arrays are expected to be
            del data[file.readinto(data) :]
            return header, data, entries, document
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from None
    except MemoryError:
        raise ModelFileError(f"{path}: larger than this machine's memory") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise ModelFileError(f"{path}: not a charrnn file") from None


def _parse_header(text: bytes, file_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of a header's tensors, and the JSON value beside them. Raises ValueError and its like."""
    entries = _parse_json(text, file_size)
    metadata = entries.pop("__metadata__")
    if not isinstance(metadata, dict) or metadata.keys() != {_KEY}:
        raise ValueError("foreign metadata")
    document = _parse_json(metadata[_KEY].encode(), file_size)
    if not isinstance(document, dict) or not isinstance(document["file_sha256"], str):
        raise ValueError("no description")
    return entries, document


def _parse_json(text: bytes, file_size: int) -> Any:
    """A JSON value of a file, unless it has so many parts that their objects would outgrow the file."""
    if not text.isascii() or sum(text.count(sign) for sign in (b",", b":", b"[", b"{")) > max(
        _FEW_PARTS, file_size // 512
    ):
        raise ValueError("too many parts, or characters that would have been escaped")
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
