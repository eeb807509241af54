"""What the command line names as text, as streams of bytes that can be read twice.

A file is read from its place; stdin, a FIFO and other streams are copied to disk while they
are first read. What is gzip, bzip2, xz or Zstandard by its first bytes is unpacked on the way.
Nothing is ever held whole in memory.
"""

import bz2
import contextlib
import fnmatch
import gzip
import importlib
import io
import lzma
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from charrnn.config import CHECKPOINTS, SourceConfig
from charrnn.errors import CharrnnError, InputError, UsageError

STDIN = "-"
CHUNK = 1 << 20  # bytes
WIDE_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
HEAD = 8192  # bytes that are looked at
_MOST_RATIO = 250  # a text packed so well is rather a trap; 10 is usual
_TRUSTED = 64 << 20  # bytes that anything may unpack to
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # what follows its level, so that no text is taken for it
_ZSTD_SKIPPED = b"\x2a\x4d\x18"  # of a frame that says nothing, after a byte of 0x50 to 0x5f


class Limit:
    """How much may be read in all: what was asked for, or half of what is free where streams are copied to.

    A context manager that ends the copies. folder: where they are, without a name.
    """

    def __init__(self, config: SourceConfig, folder: Path) -> None:
        self.folder = folder
        self._copies = contextlib.ExitStack()
        self._asked = config.max_bytes is not None
        self._most = self._left = config.max_bytes or shutil.disk_usage(folder).free // 2

    def __enter__(self) -> "Limit":
        return self

    def __exit__(self, *_: object) -> None:
        self._copies.close()

    def new_copy(self) -> IO[bytes]:
        """An empty file to be written and read."""
        file = cast(IO[bytes], tempfile.TemporaryFile(dir=self.folder))  # noqa: SIM115 - closed with the others
        self._copies.callback(_close, file)
        return file

    def begin(self) -> None:
        """Count from nothing again."""
        self._left = self._most

    def count(self, name: str, num_bytes: int) -> None:
        """Take note of bytes that were read. Raises InputError where they are too many."""
        self._left -= num_bytes
        if self._left < 0:
            why = "" if self._asked else ", half of what is free on the disk"
            raise InputError(f"{name}: more than {self._most:,} bytes of text{why}; --max-bytes N accepts more")

    def check_ratio(self, name: str, packed: int, unpacked: int) -> None:
        """Raise InputError where a packed text grows as no text does, unless the user said how much may come."""
        if not self._asked and unpacked > max(_TRUSTED, _MOST_RATIO * packed):
            raise InputError(
                f"{name}: unpacks to more than {_MOST_RATIO} times its size, as no text does; "
                "if it is one, --max-bytes N accepts it"
            )


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # a full disk was told when it was written
        file.close()


class Source:
    """One text's bytes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._copy: IO[bytes] | None = None

    @property
    def path(self) -> str:
        """Where it is found again: a file's absolute path, and `-` for a stream, which isn't."""
        return STDIN if self.status is None else os.path.abspath(self.name)

    @property
    def status(self) -> os.stat_result | None:
        """What the system says about a regular file; None for a stream. Raises InputError where there is neither."""
        if self.name == STDIN:
            return None
        with _explained(self.name):
            found = os.stat(self.name)
        return found if stat.S_ISREG(found.st_mode) else None

    @property
    def identity(self) -> str:
        """The same for two names of one thing, links but hard ones seen through."""
        return self.name if self.path == STDIN else os.path.realpath(self.name)

    def chunks(self, limit: Limit) -> Iterator[bytes]:
        """The bytes, unpacked, in pieces of about CHUNK.

        Raises InputError for what can't be read, is damaged, or is more than the limit.
        """
        with _explained(self.name), self._open(limit) as file:
            head = _read_exactly(file, 16)
            kind = _packing(head)
            packed = _Rewound(head, file)
            unpacked = 0
            for chunk in _unpacked(kind, packed, self.name):
                unpacked += len(chunk)
                limit.count(self.name, len(chunk))
                if kind:
                    limit.check_ratio(self.name, packed.num_read, unpacked)
                yield chunk

    def head(self) -> bytes:
        """The first bytes of a file, unpacked."""
        with _explained(self.name), open(self.name, "rb") as file:
            packing, head = _read_exactly(file, 16), b""
            for chunk in _unpacked(_packing(packing), _Rewound(packing, file), self.name):
                head += chunk
                if len(head) >= HEAD:
                    break
            return head[:HEAD]

    @contextlib.contextmanager
    def _open(self, limit: Limit) -> Iterator[IO[bytes]]:
        """The bytes as they lie; of a stream a copy is made on the way."""
        if self._copy is not None:
            self._copy.seek(0)
            yield self._copy
        elif self.status is not None:
            with open(self.name, "rb", buffering=CHUNK) as file:
                yield file
        else:
            copy = limit.new_copy()
            with _stdin() if self.name == STDIN else open(self.name, "rb", buffering=CHUNK) as file:
                yield cast(IO[bytes], _Tee(file, copy, self.name))
            self._copy = copy


class _Tee(io.RawIOBase):
    """A stream that is copied as it is read."""

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


class _Rewound(io.RawIOBase):
    """A stream whose first bytes were read already, counted."""

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


def check(name: str) -> None:
    """Raise InputError where there is no such text."""
    if name != STDIN:
        with _explained(name):
            os.stat(name)


class Found(NamedTuple):
    """The texts in the order of the command line, and what should be said about them."""

    sources: list[Source]
    notes: list[str]


def find_sources(names: Sequence[str], config: SourceConfig) -> Found:
    """Turn files, folders and `-` (stdin) into sources; a folder's files are sorted by path.

    Raises InputError for a folder without texts, UsageError for stdin named twice.
    """
    sources: list[Source] = []
    notes: list[str] = []
    for name in names:
        if name != STDIN and os.path.isdir(name):
            found = _texts_in(name, config)
            sources += found.sources
            notes += found.notes
        else:
            sources.append(Source(name))
    if sum(source.name == STDIN for source in sources) > 1:
        raise UsageError("stdin (-) can be read only once")
    seen = set()
    for source in sources:
        status = source.status
        file = None if status is None else (status.st_dev, status.st_ino)
        if file in seen:
            notes.append(f"{source.name} is read twice, because it was named twice")
        elif file:
            seen.add(file)
    return Found(sources, notes)


def _texts_in(folder: str, config: SourceConfig) -> Found:
    """The text files of a folder, at any depth, but hidden and binary ones, and our own."""
    hidden = 0
    paths: list[Path] = []
    with _explained(folder):
        for place, folders, files in os.walk(folder, onerror=_raise):
            hidden += sum(name.startswith(".") for name in (*folders, *files))
            folders[:] = [name for name in folders if not name.startswith(".") and name != CHECKPOINTS]
            paths += [Path(place, name) for name in files if not name.startswith(".")]
    # a pattern with a slash is one of the path below the folder
    shown = {path: str(path.relative_to(folder)) if "/" in config.glob else path.name for path in paths}
    matching = [path for path in sorted(paths) if fnmatch.fnmatch(shown[path], config.glob) and path.is_file()]
    texts = [source for source in map(Source, map(str, matching)) if not is_binary(source.head())]
    if not texts:
        matched = "" if config.glob == SourceConfig.glob else f" that match {config.glob}"
        raise InputError(f"{folder}: the folder has no text files in it{matched}")
    counts = {"hidden": hidden, "binary": len(matching) - len(texts)}
    left_out = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return Found(texts, [f"{folder}: {left_out} left out, {len(texts)} read"] if left_out else [])


def _raise(error: OSError) -> None:
    raise error


def is_binary(head: bytes) -> bool:
    """Whether a text's beginning has a NUL byte, which no text in a byte encoding has."""
    return b"\0" in head[:HEAD] and not head.startswith(tuple(WIDE_MARKS))


def _stdin() -> contextlib.AbstractContextManager[IO[bytes]]:
    if sys.stdin is None:
        raise InputError("stdin (-) is closed; name a text file")
    return contextlib.nullcontext(sys.stdin.buffer)


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    """The next bytes, fewer only at the end; a pipe gives what it has at the moment."""
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _packing(head: bytes) -> str | None:
    """How a file is packed, by its first bytes."""
    for mark, kind in _PACKED.items():
        if head.startswith(mark) and (kind != "bzip2" or head[4:10] in _BZIP2_BLOCKS):
            return kind
    return "Zstandard" if head[:1] and head[0] >> 4 == 5 and head[1:4] == _ZSTD_SKIPPED else None


def _unpacked(kind: str | None, packed: "_Rewound", name: str) -> Iterator[bytes]:
    """What a stream unpacks to, in pieces: the packed texts in it one after the other, as the programs do it."""
    if kind is None or kind == "gzip":
        stream = packed if kind is None else gzip.GzipFile(fileobj=cast(Any, packed))
        yield from iter(lambda: cast(IO[bytes], stream).read(CHUNK), b"")
        return
    decompressor = {"bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}.get(kind)
    data = packed.read(CHUNK)
    while data:
        # not by the library's files, which take what they can't unpack after the first for nothing
        member = decompressor() if decompressor else _zstd(name).ZstdDecompressor()
        while not member.eof:
            if member.needs_input and not data and not (data := packed.read(CHUNK)):
                raise EOFError("its end is missing")
            if piece := member.decompress(data, CHUNK):
                yield piece
            data = b""
        data = member.unused_data or packed.read(CHUNK)
        while kind == "xz" and data and not (data := data.lstrip(b"\0")):  # padding between two
            data = packed.read(CHUNK)


def _zstd(name: str) -> Any:
    """The standard library's module, from Python 3.14 on, or the extra that brings it to earlier ones."""
    for module in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(module)
    raise InputError(f"{name}: packed by Zstandard; pip install 'charrnn[zst]', or unpack it: zstd -dc FILE")


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what the system and the unpacking libraries complain of into an InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; name a text file, a folder, or - for stdin") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(f"{name}: damaged or cut short ({str(error).rstrip('.')})") from None
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # a class that exists only where its module does
            raise
        raise InputError(f"{name}: damaged or cut short ({error})") from None
