"""The user's cache folder: texts as ids, found again by what was in them.

An entry is one file: a line of JSON that describes it, the ids, and a hash of both. It is named
by its key, a hash of the text's bytes and of how they were read, so an edited text is another
entry. It appears whole, by being renamed, and never changes; who has it open keeps it even when
it is dropped. A second kind of file, named by a hash of the files' places, sizes and times,
holds the key, so that unchanged files need not be read again to know it.
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
MOST_BYTES = 20 * 10**9  # of all entries; the newest always stays
_ALIGNED = 64  # bytes: where ids begin
_DIGEST = 64  # bytes of it, at the end
_BLOCK = 1 << 24  # bytes that are hashed by themselves, so that threads can share the work
_ABANDONED = 3600.0  # seconds without a write after which whoever made a temporary file is gone
_ENTRY, _KEY, _TEMPORARY = ".ids", ".key", ".tmp"


class Entry(NamedTuple):
    """What is known about a text: a JSON object, and the ids, mapped from the file."""

    facts: dict[str, Any]
    ids: Ids


class DamagedEntry(Exception):
    """An entry is there that isn't as it was written."""


@dataclass(frozen=True)
class Cache:
    """A folder of entries. lack: what is wrong with it, in words."""

    folder: Path
    lack: str = ""

    @classmethod
    def of_user(cls) -> "Cache":
        """The one in $XDG_CACHE_HOME/charrnn, by default ~/.cache/charrnn."""
        base = os.environ.get("XDG_CACHE_HOME", "")
        return cls(Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "charrnn")

    @contextlib.contextmanager
    def writable(self) -> Iterator["Cache"]:
        """This cache, made if need be; or one in a temporary folder, for as long as it is used, where that fails."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            lack = f"{self.folder}: {error.strerror}, so this text will be read anew next time"
            with tempfile.TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as folder:
                yield Cache(Path(folder), lack)
        else:
            yield self

    def find(self, key: str) -> Entry | None:
        """Look an entry up. Raises DamagedEntry."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                entry = _map(file, key)
        except OSError:
            return None
        except (ValueError, KeyError, TypeError):
            raise DamagedEntry(f"{path}: the cached copy of the text is damaged") from None
        with contextlib.suppress(OSError):
            os.utime(path)  # what was not used for longest is dropped first
        return entry

    def add(self, key: str, facts: dict[str, Any], pieces: Iterable[Ids]) -> Entry:
        """Write an entry: its ids come in pieces of one dtype. Raises CharrnnError where the disk is full.

        It isn't synced to the disk: what a crash leaves of it is noticed when it is read.
        """
        with self.written_to(), _temporary(self.folder) as file:
            _write(file, {"format": FORMAT_VERSION, "key": key, **facts}, pieces)
            os.replace(file.name, self._path(key))
            entry = _map(file, key)
        self._tidy(newest=self._path(key))
        return entry

    @contextlib.contextmanager
    def written_to(self) -> Iterator[None]:
        """Turn what the system complains of while a text is written here into a CharrnnError."""
        try:
            yield
        except OSError as error:
            raise CharrnnError(
                f"{self.folder}: {error.strerror} while a text was written there as numbers; "
                "free some space, or name another folder by XDG_CACHE_HOME"
            ) from None

    def key_of(self, signature: str) -> str | None:
        """The key that a text of this signature had when it was last read."""
        return _key_in(self.folder / (signature + _KEY))

    def remember(self, signature: str, key: str) -> None:
        """Note the key of a text of this signature; that it can't be noted costs time, nothing else."""
        with contextlib.suppress(OSError):
            write_atomically(self.folder / (signature + _KEY), key.encode())

    def entries(self) -> list[Path]:
        """The files of all entries, those used last first."""
        return sorted(self.folder.glob("*" + _ENTRY), key=_time_of, reverse=True)

    def num_bytes(self) -> int:
        """What all entries take on the disk."""
        return sum(_size_of(path) for path in self.entries())

    def _path(self, key: str) -> Path:
        return self.folder / (key + _ENTRY)

    def _tidy(self, *, newest: Path) -> None:
        """Drop entries that are too many, signatures that lead to none, and what killed processes left behind."""
        left, dropped = MOST_BYTES, []
        for path in self.entries():
            left -= _size_of(path)
            if left < 0 and path != newest:
                dropped.append(path)
        kept = {path.stem for path in self.entries() if path not in dropped}
        dropped += [path for path in self.folder.glob("*" + _KEY) if _key_in(path) not in kept]
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
    except FileNotFoundError:  # another process has just dropped it
        return 0.0


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Any]:
    """A file with a name, which is removed if the file has not been renamed meanwhile."""
    file = tempfile.NamedTemporaryFile(dir=folder, suffix=_TEMPORARY, delete=False)  # noqa: SIM115
    try:
        yield file
    finally:
        Path(file.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it would try again to write what there was no room for
            file.close()


def _write(file: IO[bytes], facts: dict[str, Any], pieces: Iterable[Ids]) -> None:
    header = json.dumps(facts).encode()
    file.write(header + b" " * (-(len(header) + 1) % _ALIGNED) + b"\n")
    for piece in pieces:
        file.write(piece.data)
    file.flush()
    file.write(_digest(np.memmap(file, np.uint8, "r")))
    file.flush()


def _map(file: IO[bytes], key: str) -> Entry:
    """Check an entry and map it. Raises ValueError, KeyError or TypeError where anything is wrong with it."""
    content = np.asarray(np.memmap(file, np.uint8, "r"))
    if content[-_DIGEST:].tobytes() != _digest(content[:-_DIGEST]):
        raise ValueError("not what was written")
    file.seek(0)
    header = file.readline()
    facts = json.loads(header)
    dtype = np.dtype(facts["dtype"]).newbyteorder("<")
    ids = content[len(header) : -_DIGEST].view(dtype)
    if (facts["format"], facts["key"], dtype.kind, len(ids)) != (FORMAT_VERSION, key, "u", facts["num_chars"]):
        raise ValueError("another key, format or length")
    return Entry(facts, ids)


def _digest(content: Ids) -> bytes:
    """SHA-256, in hexadecimal digits, over those of the blocks of some bytes."""
    blocks = [content[start : start + _BLOCK] for start in range(0, len(content), _BLOCK)]
    with ThreadPoolExecutor(available_cores()) as pool:
        each = pool.map(lambda block: hashlib.sha256(block).digest(), blocks)
        return hashlib.sha256(b"".join(each)).hexdigest().encode()
