"""A checksummed file of tensors: safetensors with one JSON description in its metadata.

The safetensors library writes and parses the tensors. It checks their offsets, not their content, so it does
not notice a flipped bit. The checksum does: SHA-256 over the whole file, with the checksum's own 64
characters set to zeros. docs/formats.md specifies both kinds of file, models and states. Reading can't execute
anything: a file holds JSON and raw numbers only.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from charrnn.errors import ModelFileError
from charrnn.files import write_atomically

FORMAT_VERSION = 1
_NO_DIGEST = "0" * 64
_KEY = "charrnn"
_SMALL_HEADER = 1 << 22  # bytes; a larger header may be at most a quarter of its file
_LARGE_HEADER = 1 << 26  # bytes, more than any vocabulary takes
_FEW_PARTS = 20_000  # of a JSON value; each becomes an object of some hundred bytes, so a small file may have no more
_MAX_SHOWN = 200  # characters of a file that an error repeats
# How the checksum's key appears in the header: as JSON inside a JSON string. The same words in a
# path or a vocabulary would be escaped once more, so this occurs once.
_DIGEST_MARK = rb"\"file_sha256\": \""
Tensors = Mapping[str, NDArray[Any]]


def write_tensors(path: Path, tensors: Tensors, *, kind: str, meta: dict[str, Any]) -> None:
    """Write tensors and a JSON description to one checksummed file, atomically.

    Raises ModelFileError, before anything is written, if read_tensors would refuse the description.
    """
    arrays = {name: np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")) for name, tensor in tensors.items()}
    document = {"format": FORMAT_VERSION, "kind": kind, **meta, "file_sha256": _NO_DIGEST}
    try:
        packed = safetensors_numpy.save(arrays, {_KEY: _dump(document)})
        _parse_header(_read_header(io.BytesIO(packed), len(packed))[8:], len(packed))
    except ValueError as error:
        raise unwritable(path, error) from None
    data = memoryview(packed)
    start = _find_digest(data)
    write_atomically(path, data[:start], _digest(data, start).encode(), data[start + 64 :])


def read_tensors(path: Path, *, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file that write_tensors wrote: the tensors by name, and the description.

    The bytes are read once, so that what is hashed is what is parsed. Peak memory is about twice
    the file's size. Raises ModelFileError for any other file, before using its content.
    """
    data, header, document = _read_file(path, kind)
    if _digest(memoryview(data), _find_digest(memoryview(data))) != document["file_sha256"]:
        raise _damaged(path, "its checksum does not match")
    if document.get("kind") != kind:
        advice = "; name the model.safetensors in its folder" if kind == "model" else ""
        raise ModelFileError(f"{path}: a {shorten(document.get('kind'))} file, not a {kind} file{advice}")
    if not _is_canonical(data, header, document):
        raise foreign(path, kind, "not as charrnn writes it, though its checksum matches")
    try:
        return safetensors_numpy.load(data), document
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise foreign(path, kind, f"its tensors can't be read: {error}") from None


def foreign(path: Path, kind: str, reason: object) -> ModelFileError:
    """Return the error about a file whose checksum is right and whose content isn't that of its kind."""
    return ModelFileError(f"{path}: damaged or not a charrnn {kind} ({shorten(reason)})")


def unwritable(path: Path, reason: object) -> ModelFileError:
    """Return the error about a file that is not written, because it would be refused when it is read."""
    return ModelFileError(f"{path}: not written, because it could not be read again ({shorten(reason)})")


def shorten(value: object) -> str:
    """Cut what a file says to its beginning, for an error of one line."""
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _dump(document: dict[str, Any]) -> str:
    """Write a description in its one form: sorted keys, ASCII."""
    return json.dumps(document, sort_keys=True)


def _is_canonical(data: bytes, header: dict[str, Any], document: dict[str, Any]) -> bool:
    """Return whether a header has the form in which it is written: the same for all readers, equal for equal models.

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


def _read_file(path: Path, kind: str) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
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
                version = shorten(document.get("format"))
                raise ModelFileError(
                    f"{path}: file format {version}, but this charrnn reads format {FORMAT_VERSION}; "
                    "use the charrnn that wrote it, or a newer one"
                )
            ends = [entry["data_offsets"][1] for entry in _entries(header)]
            if not all(type(end) is int for end in ends):
                raise ValueError("its tensors have no end")
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
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        is_ours = type(error) is ValueError
        raise foreign(path, kind, error if is_ours else "its header is not charrnn's") from None


def _read_header(file: BinaryIO, file_size: int) -> bytes:
    """Read a file's header, with the 8 bytes of its length. Raises ValueError if it is too long."""
    start = file.read(8)
    size = int.from_bytes(start, "little")
    if not 0 < size <= min(file_size, max(_SMALL_HEADER, min(file_size // 4, _LARGE_HEADER))):
        raise ValueError("its header is too long for the file, or missing")
    return start + file.read(size)


def _parse_header(text: bytes, file_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse a header and the description in it. Raises ValueError and the like."""
    header = _parse_json(text, file_size)
    metadata = header["__metadata__"]
    if not isinstance(metadata, dict) or metadata.keys() != {_KEY}:
        raise ValueError("its metadata is not charrnn's")
    document = _parse_json(metadata[_KEY].encode(), file_size)
    if not isinstance(document, dict) or not isinstance(document["file_sha256"], str):
        raise ValueError("its description is missing")
    return header, document


def _parse_json(text: bytes, file_size: int) -> Any:
    """Parse a JSON value, unless it has so many parts that their objects would take much more memory than the file."""
    if not text.isascii() or sum(text.count(sign) for sign in (b",", b":", b"[", b"{")) > max(
        _FEW_PARTS, file_size // 512
    ):
        raise ValueError("its header has too many parts, or characters that are not escaped")
    return json.loads(
        text, object_pairs_hook=_refuse_duplicates, parse_float=_parse_finite, parse_constant=_parse_finite
    )


def _parse_finite(text: str) -> float:
    """Parse a number; JSON has neither NaN nor Infinity, though Python reads and writes them."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key of its header occurs twice")
    return dict(pairs)
