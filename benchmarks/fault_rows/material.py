"""A small real run, and files like its own that are made wrong in one respect, with checksums that are right."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charrnn.model.file import Tensors, read_tensors, write_tensors
from charrnn.training.folder import MODEL_NAME
from fault_rows.measured import command

RUN = "hostile"
TEXT = "text.txt"
ZEROS = "0" * 64
REMOVED = object()  # as a value: the key is left out
_MARK = rb"\"file_sha256\": \""
_BY_WRITING = ("format", "kind", "file_sha256")  # what write_tensors puts into a description
_WORDS = ("ba", "bane", "dor", "dorin", "e", "ilu", "kest", "lo", "mirra", "na", "ost", "sa", "tul", "ven")
_NETWORK = ("--cell", "lstm", "--num-layers", "2", "--hidden-size", "8", "--embedding-dim", "4")
_STEPS = ("--batch-size", "4", "--seq-len", "8", "--steps", "30")


@dataclass(frozen=True)
class Good:
    """A good file of a kind, model or state: its bytes, tensors and description."""

    kind: str
    data: bytes
    tensors: Tensors
    meta: Mapping[str, Any]

    @property
    def header(self) -> str:
        """The header's text, with zeros for the digest."""
        size = int.from_bytes(self.data[:8], "little")
        document = json.loads(json.loads(self.data[8 : 8 + size])["__metadata__"]["charrnn"])
        return self.data[8 : 8 + size].decode().replace(document["file_sha256"], ZEROS)

    @property
    def body(self) -> bytes:
        """The tensors' bytes."""
        return self.data[8 + int.from_bytes(self.data[:8], "little") :]

    def write(self, path: Path, *, tensors: Tensors | None = None, meta: Mapping[str, Any] | None = None) -> None:
        """Write such a file as charrnn does, with other tensors or another description."""
        write_tensors(
            path,
            self.tensors if tensors is None else tensors,
            kind=self.kind,
            meta=dict(self.meta if meta is None else meta),
        )

    def with_value(self, keys: tuple[str, ...], value: Any) -> dict[str, Any]:
        """The description with another value in one place."""
        meta: dict[str, Any] = json.loads(json.dumps(self.meta))
        inner = meta
        for key in keys[:-1]:
            inner = inner[key]
        if value is REMOVED:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value
        return meta


@dataclass(frozen=True)
class Material:
    """A folder with a text, its cache and a run that has ended; its model, and its state before the last."""

    folder: Path
    model: Good
    state: Good

    @classmethod
    def make(cls, folder: Path, *, seed: int) -> "Material":
        """Train for a moment."""
        rng = random.Random(seed)
        lines = (" ".join(rng.choices(_WORDS, k=5)) + ".\n" for _ in range(200))
        (folder / TEXT).write_text("".join(lines), encoding="utf-8")
        code, errors = command([*TRAIN, "--run", "good", "--test-fraction", "0.1", *_NETWORK, *_STEPS], folder)
        assert code == 0, errors
        run = folder / "checkpoints" / "good"
        before = min(run.glob("state-*.safetensors"), key=lambda path: int(path.stem.removeprefix("state-")))
        return cls(folder, _good(run / MODEL_NAME, "model"), _good(before, "state"))


TRAIN = ("train", TEXT, "--quiet", "--threads", "1", "--device", "cpu", "--precision", "float32")


def _good(path: Path, kind: str) -> Good:
    """A file that is as it was written."""
    tensors, meta = read_tensors(path, kind=kind)
    good = Good(kind, path.read_bytes(), tensors, {key: meta[key] for key in meta if key not in _BY_WRITING})
    assert sealed(good.header, good.body) == good.data, "docs/formats.md says something else about checksums"
    return good


def sealed(header: str | bytes, body: bytes = b"") -> bytes:
    """The bytes of a file with this header, and instead of 64 zeros in it the checksum of all."""
    header = header.encode() if isinstance(header, str) else header
    data = len(header).to_bytes(8, "little") + header + body
    start = data.find(_MARK) + len(_MARK)
    if data[start : start + 64] != ZEROS.encode():
        return data
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + 64 :]


def edited(good: Good, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file whose header, as an object, was changed in place; what is returned stands in its place, if anything."""
    header = json.loads(good.header)
    instead = edit(header)
    return sealed(json.dumps(header if instead is None else instead, separators=(",", ":")), good.body)


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value
