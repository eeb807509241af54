"""The user's cache folder: texts stored as ids, found again by their content.

An entry is one file: a line of JSON that describes it, the ids, and a hash of both. Its name
is its key, a hash of the text's bytes and of the settings it was read with, so an edited text
gets a new entry. An entry appears complete, by renaming, and never changes; a process that has
it open can read it even after it was dropped. A second kind of file, named by a hash of the
texts' paths, sizes and times, holds the key, so that unchanged files need not be read again.

Both appear under a temporary name first. A process locks the temporary file that it writes; the
system drops the lock when the process dies, so the next writer knows which files to remove.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from charrnn.config import MIN_CHARS
from charrnn.data.vocab import Ids, Vocab
from charrnn.errors import CharrnnError
from charrnn.files import make_private, user_cache
from charrnn.hardware import available_cores
from charrnn.text.characters import MEANINGLESS

FORMAT_VERSION = 3
MAX_CACHE_BYTES = 20 * 10**9  # of all entries together; the newest is never dropped
_ALIGNMENT = 64  # bytes; the ids begin at a multiple of it
_DIGEST_SIZE = 64  # bytes, at the end
_DTYPES = ("uint8", "uint16", "uint32")  # of ids
_BLOCK = 1 << 24  # bytes; blocks are hashed separately, so that threads can share the work
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
        """Return the cache in $CHARRNN_CACHE, by default $XDG_CACHE_HOME/charrnn or ~/.cache/charrnn."""
        return cls(user_cache())

    @contextlib.contextmanager
    def writable(self) -> Iterator["Cache"]:
        """Yield this cache, creating its folder if necessary.

        Yield one in a temporary folder if that fails, or if other users could plant entries here.
        """
        problem = make_private(self.folder) or _write_problem(self.folder)
        if not problem:
            yield self
            return
        with tempfile.TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as folder:
            yield Cache(Path(folder), f"{self.folder}: {problem}; this text is not cached")

    def find(self, key: str) -> Entry | None:
        """Return the entry with this key; None if there is none in this version's format. Raises DamagedEntry."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                entry = _map(file, key)
        except OSError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self.damaged(key) from None
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used entries are dropped first
        return entry

    def damaged(self, key: str) -> DamagedEntry:
        """Return the error for an entry that is not as it was written."""
        return DamagedEntry(f"{self._path(key)}: the cached copy of the text is damaged")

    def add(self, key: str, facts: dict[str, Any], pieces: Iterable[Ids]) -> Entry:
        """Write an entry; its ids come in pieces of one dtype. Raises CharrnnError if the disk is full.

        The file is not synced to the disk: if a crash leaves part of it, `find` notices the damage.
        """
        self._remove_abandoned()
        path = self._path(key)
        with self.explaining_errors():
            with _temporary(self.folder) as file:
                _write(file, {"format": FORMAT_VERSION, "key": key, **facts}, pieces)
                _publish(file, path)
            with open(path, "rb") as file:
                entry = _map(file, key)
        self._tidy(newest=path)
        return entry

    @contextlib.contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Turn system errors from writing a text here into a CharrnnError that says what to do."""
        try:
            yield
        except OSError as error:
            raise CharrnnError(
                f"{self.folder}: {error.strerror} while writing a text to the cache; "
                "free some space, or choose another folder with CHARRNN_CACHE"
            ) from None

    def find_key(self, signature: str) -> str | None:
        """Return the key that a text with this signature had when it was last read, or None."""
        return _key_in(self.folder / (signature + _KEY))

    def store_key(self, signature: str, key: str) -> None:
        """Store the key of a text with this signature. A failure is ignored: the text is then read again."""
        with contextlib.suppress(OSError), _temporary(self.folder) as file:
            file.write(key.encode())
            file.flush()
            _publish(file, self.folder / (signature + _KEY))

    def entries(self) -> list[Path]:
        """Return the files of all entries, most recently used first."""
        return sorted(self.folder.glob("*" + _ENTRY), key=_time_of, reverse=True)

    def num_bytes(self) -> int:
        """Return the size of all files in the folder, in bytes, with those that are being written or were abandoned."""
        return sum(_size_of(path) for path in self.folder.glob("*") if path.is_file())

    def _path(self, key: str) -> Path:
        return self.folder / (key + _ENTRY)

    def _tidy(self, *, newest: Path) -> None:
        """Drop entries beyond the size limit, and the keys of dropped entries."""
        num_left, dropped = MAX_CACHE_BYTES, []
        for path in self.entries():
            num_left -= _size_of(path)
            if num_left < 0 and path != newest:
                dropped.append(path)
        remaining = {path.stem for path in self.entries() if path not in dropped}
        dropped += [path for path in self.folder.glob("*" + _KEY) if _key_in(path) not in remaining]
        for path in dropped:
            with contextlib.suppress(OSError):
                path.unlink()

    def _remove_abandoned(self) -> None:
        """Remove the temporary files of processes that were killed: nobody holds their lock."""
        for path in self.folder.glob("*" + _TEMPORARY):
            with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
                if os.name == "posix":  # Windows removes no file that is open
                    _lock(opened.enter_context(open(path, "rb")), wait=False)
                path.unlink()


def is_consistent(entry: Entry, known: str) -> bool:
    """Return whether an entry's facts are of the right kind and fit the ids; a planted entry can have a right hash."""
    facts, ids = entry
    try:
        vocab, counts, num_joined = Vocab(facts["vocab"]), facts["counts"], facts["num_joined"]
        counted = ("num_chars", "num_bytes", "num_texts", "num_added", "num_marks", "num_skipped")
        numbers = [facts[name] for name in counted]
        numbers += [num_joined, *counts, *facts["labels"].values()]
        texts = [facts["first_skipped"], *facts["labels"]]
        is_hash = re.fullmatch("[0-9a-f]{64}", facts["sha256"]) is not None
    except (KeyError, ValueError, TypeError, AttributeError):
        return False
    return (
        is_hash
        and all(isinstance(text, str) for text in texts)
        and not MEANINGLESS.search(vocab.chars)
        and set(known) <= set(vocab.chars)
        and all(type(number) is int and number >= 0 for number in numbers)
        and (len(counts), sum(counts)) == (len(vocab), len(ids))
        and MIN_CHARS <= num_joined <= len(ids)
        and facts["dtype"] == np.dtype(vocab.dtype).name
        and int(ids.max()) < len(vocab)
    )


def _write_problem(folder: Path) -> str:
    """Say why a folder can't be written to, or nothing."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error.strerror)


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
    """Open a named file, locked until it is closed; remove it at the end unless it was renamed."""
    while True:
        file = tempfile.NamedTemporaryFile(dir=folder, suffix=_TEMPORARY, delete=False)  # noqa: SIM115
        if os.name == "posix":
            with contextlib.suppress(OSError):  # some network file systems have no locks
                _lock(file, wait=True)
        if os.path.exists(file.name):
            break
        file.close()  # another process removed it before it was locked
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # closing tries again to write what the full disk refused
            file.close()
        Path(file.name).unlink(missing_ok=True)


def _publish(file: Any, path: Path) -> None:
    """Give a complete temporary file its name.

    Windows renames no file that is open, and replaces none that a process has open, which has the same content.
    """
    if os.name != "posix":
        file.close()
    try:
        os.replace(file.name, path)
    except PermissionError:
        if os.name == "posix" or not path.exists():
            raise


def _lock(file: IO[bytes], *, wait: bool) -> None:
    """Lock an open file until it is closed. Raises OSError if another process has locked it and wait is off."""
    import fcntl  # POSIX only

    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write(file: IO[bytes], facts: dict[str, Any], pieces: Iterable[Ids]) -> None:
    header = json.dumps(facts).encode()
    file.write(header + b" " * (-(len(header) + 1) % _ALIGNMENT) + b"\n")
    for piece in pieces:
        file.write(piece.data)
    file.flush()
    file.write(_digest(np.memmap(file, np.uint8, "r")))
    file.flush()


def _map(file: IO[bytes], key: str) -> Entry:
    """Check an entry and map it.

    Raises FileNotFoundError if another version wrote it, ValueError, KeyError, TypeError or RecursionError if it is
    damaged.
    """
    content = np.asarray(np.memmap(file, np.uint8, "r"))
    if content[-_DIGEST_SIZE:].tobytes() != _digest(content[:-_DIGEST_SIZE]):
        raise ValueError("wrong hash")
    file.seek(0)
    header = file.readline()
    facts = json.loads(header)
    if facts["format"] != FORMAT_VERSION:
        raise FileNotFoundError(f"format {facts['format']} is another version's")
    if facts["dtype"] not in _DTYPES:
        raise ValueError("no type of ids")
    ids = content[len(header) : -_DIGEST_SIZE].view(np.dtype(facts["dtype"]).newbyteorder("<"))
    if (facts["key"], facts["num_chars"]) != (key, len(ids)):
        raise ValueError("wrong key or length")
    return Entry(facts, ids)


def _digest(content: Ids) -> bytes:
    """Return the SHA-256, in hexadecimal, of the concatenated SHA-256 hashes of all blocks."""
    blocks = [content[start : start + _BLOCK] for start in range(0, len(content), _BLOCK)]
    with ThreadPoolExecutor(available_cores()) as pool:
        hashes = pool.map(lambda block: hashlib.sha256(block).digest(), blocks)
        return hashlib.sha256(b"".join(hashes)).hexdigest().encode()
