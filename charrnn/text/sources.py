"""Texts named on the command line, as streams of bytes that can be read twice.

A file is read in place; stdin, a FIFO or another stream is copied to disk while it is read the
first time. Data that is compressed with gzip, bzip2, xz or Zstandard, recognised by its first
bytes, is decompressed while it is read. Nothing is ever held in memory as a whole.
"""

import contextlib
import filecmp
import gzip
import io
import lzma
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from charrnn.config import SourceConfig
from charrnn.errors import CharrnnError, InputError, UsageError
from charrnn.text.kinds import HEAD, decompress, find_compression

STDIN = "-"
CHUNK = 1 << 20  # bytes
_MAGIC = 16  # bytes at the beginning, enough for find_compression
_MAX_RATIO = 250  # a text that compresses better is probably a decompression bomb; 10 is usual
_TRUSTED = 64 << 20  # bytes; anything may decompress to this many


class ReadLimit:
    """The number of bytes that may be read in all: config.max_bytes, or half of the free disk space.

    A context manager that closes the copies of streams. folder: where the copies are, without a
    name; its disk is the one whose free space counts. advice: what to do about a text that is too long.
    """

    def __init__(self, config: SourceConfig, folder: Path, *, advice: str = "--max-bytes N accepts more") -> None:
        self.folder, self._advice = folder, advice
        self._copies = contextlib.ExitStack()
        self._is_given = config.max_bytes is not None
        self._most = self._left = config.max_bytes or shutil.disk_usage(folder).free // 2

    def __enter__(self) -> "ReadLimit":
        return self

    def __exit__(self, *_: object) -> None:
        self._copies.close()

    def new_copy(self) -> IO[bytes]:
        """Open an empty file for writing and reading."""
        file = cast(IO[bytes], tempfile.TemporaryFile(dir=self.folder))  # noqa: SIM115 - closed with the others
        self._copies.callback(_close, file)
        return file

    def reset(self) -> None:
        """Start counting from zero again."""
        self._left = self._most

    def count(self, name: str, num_bytes: int) -> None:
        """Count bytes that were read. Raises InputError if they exceed the limit."""
        self._left -= num_bytes
        if self._left < 0:
            why = "" if self._is_given else f", half of the free disk space in {self.folder}"
            raise InputError(f"{name}: more than {self._most:,} bytes of text{why}; {self._advice}")

    def check_ratio(self, name: str, num_packed: int, num_unpacked: int) -> None:
        """Raise InputError if a file decompresses to far more than a text would, unless --max-bytes was given."""
        if not self._is_given and num_unpacked > max(_TRUSTED, _MAX_RATIO * num_packed):
            raise InputError(
                f"{name}: unpacks to more than {_MAX_RATIO} times its size, which no ordinary text does; {self._advice}"
            )


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # a full disk was already reported when the file was written
        file.close()


class Source:
    """The bytes of one text."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._copy: IO[bytes] | None = None

    @property
    def path(self) -> str:
        """A file's absolute path; `-` for a stream, which can't be found again."""
        return STDIN if self.status is None else os.path.abspath(self.name)

    @property
    def status(self) -> os.stat_result | None:
        """The status of a regular file; None for a stream. Raises InputError if neither exists."""
        if self.name == STDIN:
            return None
        with explaining_errors(self.name):
            found = os.stat(self.name)
        return found if stat.S_ISREG(found.st_mode) else None

    def has_content_of(self, other: "Source") -> bool:
        """Return whether two names stand for one stream or one file, or for files with the same bytes."""
        status, others = self.status, other.status
        if status is None or others is None:
            return self.name == other.name
        if os.path.samestat(status, others):
            return True
        with explaining_errors(self.name):
            return 0 < status.st_size == others.st_size and filecmp.cmp(self.name, other.name, shallow=False)

    @property
    def size(self) -> int | None:
        """A file's size in bytes; None for a stream."""
        return None if self.status is None else self.status.st_size

    def chunks(self, limit: ReadLimit) -> Iterator[bytes]:
        """Yield the bytes, decompressed, in pieces of about CHUNK.

        Raises InputError for a text that is unreadable, damaged or larger than the limit.
        """
        with explaining_errors(self.name), self._open(limit) as file:
            head = _read_magic(file)
            kind = find_compression(head)
            packed = _CountedStream(head, file)
            num_unpacked = 0
            for chunk in decompress(kind, packed, self.name, CHUNK):
                num_unpacked += len(chunk)
                limit.count(self.name, len(chunk))
                if kind:
                    limit.check_ratio(self.name, packed.num_read, num_unpacked)
                yield chunk

    def lines(self) -> Iterator[list[bytes]]:
        """Yield the lines in groups, each as many as can be read without waiting; a writer may wait for an answer.

        Raises InputError for a text that is unreadable.
        """
        held: list[bytes] = []  # the beginning of a line
        with explaining_errors(self.name), _open_stdin() if self.name == STDIN else open(self.name, "rb") as file:
            while chunk := cast(io.BufferedReader, file).read1(CHUNK):  # what a pipe has, without waiting for more
                first, *others = chunk.split(b"\n")
                held.append(first)
                if others:
                    yield [b"".join(held), *others[:-1]]
                    held = [others[-1]]
        if last := b"".join(held):
            yield [last]

    def head(self) -> bytes:
        """Read the first HEAD bytes of a file, decompressed."""
        with explaining_errors(self.name), open(self.name, "rb") as file:
            magic, head = _read_magic(file), b""
            for chunk in decompress(find_compression(magic), _CountedStream(magic, file), self.name, CHUNK):
                head += chunk
                if len(head) >= HEAD:
                    break
            return head[:HEAD]

    @contextlib.contextmanager
    def _open(self, limit: ReadLimit) -> Iterator[IO[bytes]]:
        """Open the file, or the stream, which is copied while it is read the first time."""
        if self._copy is not None:
            self._copy.seek(0)
            yield self._copy
        elif self.status is not None:
            with open(self.name, "rb", buffering=CHUNK) as file:
                yield file
        else:
            copy = limit.new_copy()
            with _open_stdin() if self.name == STDIN else open(self.name, "rb", buffering=CHUNK) as file:
                yield cast(IO[bytes], _CopyingStream(file, copy, self.name))
            self._copy = copy


class _CopyingStream(io.RawIOBase):
    """A stream that is copied to a file while it is read."""

    def __init__(self, stream: IO[bytes], copy: IO[bytes], name: str) -> None:
        self._stream, self._copy, self._name = stream, copy, name

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        try:
            self._copy.write(data)
            self._copy.flush()
        except OSError as error:
            raise CharrnnError(f"{self._name}: can't be copied to the cache folder ({error.strerror})") from None
        return data


class _CountedStream(io.RawIOBase):
    """A stream whose first bytes were already read; it yields them again and counts the bytes it yields."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head, self._stream, self.num_read = head, stream, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        if len(data) < size:
            data += self._stream.read(size - len(data))
        self.num_read += len(data)
        return data


def check_name(name: str) -> None:
    """Raise UsageError if a text's name is empty, as an unset variable of a shell is."""
    if not name:
        raise UsageError("a text's name is empty; name a file, a folder or - (stdin)")


def check_exists(name: str) -> None:
    """Raise InputError if there is no such text."""
    check_name(name)
    if name != STDIN:
        with explaining_errors(name):
            os.stat(name)


def _open_stdin() -> contextlib.AbstractContextManager[IO[bytes]]:
    if sys.stdin is None:
        raise InputError("stdin (-) is closed; name a text file")
    return contextlib.nullcontext(sys.stdin.buffer)


def _read_magic(file: IO[bytes]) -> bytes:
    """Read the bytes that tell how a file is compressed. One read from a pipe may return fewer than there will be."""
    data = b""
    while len(data) < _MAGIC and (more := file.read(_MAGIC - len(data))):
        data += more
    return data


@contextlib.contextmanager
def explaining_errors(name: str) -> Iterator[None]:
    """Turn errors of the system and of the decompression libraries into an InputError."""
    try:
        yield
    except FileNotFoundError:
        hint = "to read a URL, pipe it in: curl URL | charrnn … -" if "://" in name else "- is stdin"
        raise InputError(f"{name}: no such file or folder; {hint}") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(f"{name}: damaged or cut short ({str(error).rstrip('.')})") from None
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # the class exists only if the module does
            raise
        raise InputError(f"{name}: damaged or cut short ({error})") from None
