"""The user's cache folder: texts stored as ids, found again by their content.

An entry is one file: a line of JSON that describes it, the ids, and a hash of both. Its name
is its key, a hash of the text's bytes and of the settings it was read with, so an edited text
gets a new entry. An entry appears complete, by renaming, and never changes; a process that has
it open can read it even after it was dropped. A second kind of file, named by a hash of the
texts' paths, sizes and times, holds the key, so that unchanged files need not be read again.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from charrnn.data.vocab import Ids
from charrnn.errors import CharrnnError
from charrnn.files import write_atomically
from charrnn.hardware import available_cores

FORMAT_VERSION = 1
MAX_CACHE_BYTES = 20 * 10**9  # of all entries together; the newest is never dropped
_ALIGNMENT = 64  # bytes; the ids begin at a multiple of it
_DIGEST_SIZE = 64  # bytes, at the end
_BLOCK = 1 << 24  # bytes; blocks are hashed separately, so that threads can share the work
_ABANDONED = 3600.0  # seconds after the last write; then the writer of a temporary file is assumed dead
_ENTRY, _KEY, _TEMPORARY = ".ids", ".key", ".tmp"


class Entry(NamedTuple):
    """A cached text: the facts, a JSON object, and the ids, mapped from the file."""

    facts: dict[str, Any]
    ids: Ids


class DamagedEntry(Exception):
    """An entry exists but is not as it was written."""


@dataclass(frozen=True)
class Cache:
    """A folder of entries. problem: what is wrong with it, in words, or nothing."""

    folder: Path
    problem: str = ""

    @classmethod
    def for_user(cls) -> "Cache":
        """Return the cache in $XDG_CACHE_HOME/charrnn, by default ~/.cache/charrnn."""
        base = os.environ.get("XDG_CACHE_HOME", "")
        return cls(Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "charrnn")

    @contextlib.contextmanager
    def writable(self) -> Iterator["Cache"]:
        """Yield this cache, creating its folder if necessary; if that fails, yield one in a temporary folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            problem = f"{self.folder}: {error.strerror}, so this text will be read again next time"
            with tempfile.TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as folder:
                yield Cache(Path(folder), problem)
        else:
            yield self

    def find(self, key: str) -> Entry | None:
        """Return the entry with this key, or None. Raises DamagedEntry."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                entry = _map(file, key)
        except OSError:
            return None
        except (ValueError, KeyError, TypeError):
            raise DamagedEntry(f"{path}: the cached copy of the text is damaged") from None
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used entries are dropped first
        return entry

    def add(self, key: str, facts: dict[str, Any], pieces: Iterable[Ids]) -> Entry:
        """Write an entry; its ids come in pieces of one dtype. Raises CharrnnError if the disk is full.

        The file is not synced to the disk: if a crash leaves part of it, `find` notices the damage.
        """
        with self.explaining_errors(), _temporary(self.folder) as file:
            _write(file, {"format": FORMAT_VERSION, "key": key, **facts}, pieces)
            os.replace(file.name, self._path(key))
            entry = _map(file, key)
        self._tidy(newest=self._path(key))
        return entry

    @contextlib.contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Turn system errors from writing a text here into a CharrnnError that says what to do."""
        try:
            yield
        except OSError as error:
            raise CharrnnError(
                f"{self.folder}: {error.strerror} while writing a text to the cache; "
                "free some space, or choose another folder with XDG_CACHE_HOME"
            ) from None

    def find_key(self, signature: str) -> str | None:
        """Return the key that a text with this signature had when it was last read, or None."""
        return _key_in(self.folder / (signature + _KEY))

    def store_key(self, signature: str, key: str) -> None:
        """Store the key of a text with this signature. A failure is ignored: the text is then read again."""
        with contextlib.suppress(OSError):
            write_atomically(self.folder / (signature + _KEY), key.encode())

    def entries(self) -> list[Path]:
        """Return the files of all entries, most recently used first."""
        return sorted(self.folder.glob("*" + _ENTRY), key=_time_of, reverse=True)

    def num_bytes(self) -> int:
        """Return the size of all entries on the disk, in bytes."""
        return sum(_size_of(path) for path in self.entries())

    def _path(self, key: str) -> Path:
        return self.folder / (key + _ENTRY)

    def _tidy(self, *, newest: Path) -> None:
        """Drop entries beyond the size limit, keys of dropped entries, and files that killed processes left."""
        num_left, dropped = MAX_CACHE_BYTES, []
        for path in self.entries():
            num_left -= _size_of(path)
            if num_left < 0 and path != newest:
                dropped.append(path)
        remaining = {path.stem for path in self.entries() if path not in dropped}
        dropped += [path for path in self.folder.glob("*" + _KEY) if _key_in(path) not in remaining]
        now = time.time()
        dropped += [path for path in self.folder.glob("*" + _TEMPORARY) if now - _time_of(path) > _ABANDONED]
        for path in dropped:
            with contextlib.suppress(OSError):
                path.unlink()


def _key_in(path: Path) -> str | None:
    try:
        key = path.read_text()
    except (OSError, ValueError):
        return None
    return key if re.fullmatch("[0-9a-f]{64}", key) else None


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process dropped it just now
        return 0.0


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Any]:
    """Open a named file; remove it at the end unless it was renamed."""
    file = tempfile.NamedTemporaryFile(dir=folder, suffix=_TEMPORARY, delete=False)  # noqa: SIM115
    try:
        yield file
    finally:
        Path(file.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # closing tries again to write what the full disk refused
            file.close()


def _write(file: IO[bytes], facts: dict[str, Any], pieces: Iterable[Ids]) -> None:
    header = json.dumps(facts).encode()
    file.write(header + b" " * (-(len(header) + 1) % _ALIGNMENT) + b"\n")
    for piece in pieces:
        file.write(piece.data)
    file.flush()
    file.write(_digest(np.memmap(file, np.uint8, "r")))
    file.flush()


def _map(file: IO[bytes], key: str) -> Entry:
    """Check an entry and map it. Raises ValueError, KeyError or TypeError if anything is wrong with it."""
    content = np.asarray(np.memmap(file, np.uint8, "r"))
    if content[-_DIGEST_SIZE:].tobytes() != _digest(content[:-_DIGEST_SIZE]):
        raise ValueError("wrong hash")
    file.seek(0)
    header = file.readline()
    facts = json.loads(header)
    dtype = np.dtype(facts["dtype"]).newbyteorder("<")
    ids = content[len(header) : -_DIGEST_SIZE].view(dtype)
    if (facts["format"], facts["key"], dtype.kind, len(ids)) != (FORMAT_VERSION, key, "u", facts["num_chars"]):
        raise ValueError("wrong key, format or length")
    return Entry(facts, ids)


def _digest(content: Ids) -> bytes:
    """Return the SHA-256, in hexadecimal, of the concatenated SHA-256 hashes of all blocks."""
    blocks = [content[start : start + _BLOCK] for start in range(0, len(content), _BLOCK)]
    with ThreadPoolExecutor(available_cores()) as pool:
        hashes = pool.map(lambda block: hashlib.sha256(block).digest(), blocks)
        return hashlib.sha256(b"".join(hashes)).hexdigest().encode()
