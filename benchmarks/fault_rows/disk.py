"""Operations on the disk: recorded, failed or ended by a kill, in Python and by strace.

`watched` replaces the functions that charrnn writes files with, for the files of one folder.
`traced` has strace count the system calls of one thread, so the n-th is always the same.
"""

import ctypes
import errno
import functools
import io
import os
import random
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from fault_rows.outcome import Broken, expect

FOR_A_WHILE = " for a while"
KILLS = ("kill before", "kill half", "kill after")
SHORT, TORN = "a short write", "EIO after half a write"
_CHANGING = "openat write ftruncate fsync close rename renameat renameat2 unlink unlinkat"
_CALLS = f"{_CHANGING} newfstatat fstat getdents64 lseek"  # of a save
_SET_PTRACER = 0x59616D61  # of prctl: who may attach, where only parents may


@dataclass(frozen=True)
class Operation:
    """One operation on the disk: open, write, truncate, fsync, close, replace or unlink.

    act: does it; for a write it takes the number of bytes to stop at. data: what is written.
    target: where replace puts the file.
    """

    kind: str
    path: Path
    act: Callable[..., Any]
    data: bytes = b""
    target: Path | None = None


Contents = dict[str, bytes]  # of files, by name
Handler = Callable[[Operation], Any]  # does the operation or something else


class _File(io.FileIO):
    """A file whose changes go through a handler."""

    def __init__(self, path: Path, mode: str, handler: Handler) -> None:
        self._path, self._handler = path, handler
        super().__init__(path, mode)

    def write(self, data: Any, /) -> Any:
        given, write = bytes(data), super().write
        return self._handler(Operation("write", self._path, lambda limit=None: write(given[:limit]), given))

    def truncate(self, size: int | None = None, /) -> Any:
        return self._handler(Operation("truncate", self._path, functools.partial(super().truncate, size)))

    def close(self) -> None:
        if not self.closed:
            self._handler(Operation("close", self._path, super().close))


@contextmanager
def watched(folder: Path, handler: Handler) -> Iterator[None]:
    """Pass every operation on the files in this folder except its lock, and on itself, to the handler."""
    open_file, handles = Path.open, dict[int, Path]()

    def is_watched(path: Path | None) -> bool:
        return path is not None and folder in (path, path.parent) and not path.name.startswith(".lock")

    def watched_file(path: Path, mode: str = "r", buffering: int = -1, **options: Any) -> Any:
        if not is_watched(path) or not set(mode) & set("wax+"):
            return open_file(path, mode, buffering, **options)
        file = call("open", _File, path, mode, handler)
        handles[file.fileno()] = path
        return file if buffering == 0 else io.BufferedWriter(file)

    def call(kind: str, function: Callable[..., Any], which: Any, *more: Any, **options: Any) -> Any:
        """Do something to a file, by its path or by its handle."""
        path = handles.get(which) if isinstance(which, int) else Path(os.fsdecode(which))
        act = functools.partial(function, which, *more, **options)
        if not is_watched(path):
            return act()
        if kind == "close":
            del handles[which]
        result = handler(Operation(kind, path, act, target=Path(more[0]) if kind == "replace" else None))
        if isinstance(result, int):  # a handle
            handles[result] = path
        return result

    kinds = ("open", "replace", "unlink", "fsync", "close")
    calls = {kind: functools.partial(call, kind, getattr(os, kind)) for kind in kinds}
    with (
        mock.patch.object(Path, "open", watched_file),
        mock.patch("charrnn.runs.log.open_own", lambda path, mode: watched_file(path, mode, 0)),
        mock.patch.multiple(os, **calls),
    ):
        yield


@dataclass
class Fault:
    """A failure or a kill at the n-th operation of some work (from 0, -1 for none), until it is healed.

    how: one of KILLS, SHORT, TORN or the name of an error; or in strace's words, as "error=EIO", at the n-th
    system call of a kind (from 1). operations: those so far. places: their kinds and numbers.
    """

    how: str = ""
    nth: int = -1
    kind: str = ""
    operations: list[Operation] = field(default_factory=list)
    places: list[tuple[str, int]] = field(default_factory=list)
    healed: bool = False

    @property
    def error(self) -> OSError:
        """What the system says when the operation fails."""
        number = getattr(errno, self.how.removesuffix(FOR_A_WHILE).removeprefix("error="), errno.EIO)
        return OSError(number, os.strerror(number))

    def __call__(self, operation: Operation) -> Any:
        """Do an operation, fail it or die."""
        number, how = len(self.operations), self.how.removesuffix(FOR_A_WHILE)
        self.operations.append(operation)
        self.places.append((operation.kind, number))
        lasts = how != self.how and number > self.nth
        if self.healed or self.nth < 0 or not (number == self.nth or lasts):
            return operation.act()
        half = len(operation.data) // 2
        if how == SHORT:
            return operation.act(max(1, half)) if operation.kind == "write" else operation.act()
        if operation.kind == "write" and (how == "kill half" or (how == TORN and not lasts)):
            operation.act(half)
        elif how == "kill after" or (operation.kind == "close" and not how.startswith("kill")):
            operation.act()  # after an error of close, too, the handle is gone
        if how.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise self.error

    @contextmanager
    def at(self, folder: Path, *, thread: int | None = None) -> Iterator[None]:
        """Let it happen in a folder of this process, or by strace to one of its threads."""
        if "=" not in self.how:
            with watched(folder, self):
                yield
            return
        log = folder.parent / "calls"
        fault = ["-e", f"inject={self.kind}:{self.how}:when={self.nth}"] if self.kind else []
        with traced("-o", str(log), *fault, thread=thread):
            yield
        counts = Counter(re.findall(r"^(\w+)\(", log.read_text(encoding="utf-8", errors="replace"), re.M))
        self.places = [(name, n) for name, count in counts.items() for n in range(1, count + 1)]


@contextmanager
def traced(*options: str, thread: int | None = None) -> Iterator[None]:
    """Have strace follow one thread of this process, this one or that of a number."""
    ctypes.CDLL(None).prctl(_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # anybody may attach
    calls = "trace=" + ",".join(f"?{name}" for name in _CALLS.split())
    command = ["strace", "-p", str(thread or threading.get_native_id()), "-e", calls, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        try:
            line = strace.stderr.readline()
            expect("attached" in line, f"strace can't attach: {line.strip()}")
            yield
        finally:
            strace.terminate()  # it detaches
            strace.wait()


def lack_of_strace() -> str:
    """Why nothing can be traced here; nothing where it can."""
    try:
        with traced("-o", os.devnull):
            return ""
    except (OSError, Broken) as error:
        return str(error)


class _Bytes:
    """A file's bytes, of which the first so many are flushed."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.flushed = data, len(data)

    def after_crash(self, rng: random.Random) -> bytes:
        """What is flushed, and of the rest the whole, nothing, a part, or zeros."""
        rest = self.data[self.flushed :]
        cut = rest[: rng.randint(0, len(rest))]
        blocks = [rest[start : start + 512] for start in range(0, len(rest), 512)]
        holes = b"".join(rng.choice((block, bytes(len(block)))) for block in blocks)
        return self.data[: self.flushed] + rng.choice((b"", rest, cut, bytes(len(rest)), holes, bytes(len(cut))))


def after_crash(begin: Contents, operations: list[Operation], folder: str, rng: random.Random) -> dict[str, bytes]:
    """A folder's files by name after these operations and a crash; begin: before them.

    Of the changes of names since the folder was last flushed some are left, or those up to a moment.
    """
    seen: dict[str, _Bytes | None] = {name: _Bytes(data) for name, data in begin.items()}
    flushed, waiting = dict(seen), list[dict[str, _Bytes | None]]()
    for operation in operations:
        kind, name = operation.kind, operation.path.name
        file, change = seen.get(name), dict[str, _Bytes | None]()
        if kind == "fsync" and name == folder:
            flushed, waiting = dict(seen), []
        elif kind == "fsync" and file:
            file.flushed = len(file.data)
        elif kind == "write" and file:
            file.data += operation.data
        elif kind == "open" and file is None and name != folder:
            change = {name: _Bytes()}
        elif kind in ("replace", "unlink"):
            change = {name: None} | ({operation.target.name: file} if operation.target else {})
        seen |= change
        waiting += [change] if change else []
    end, in_order = rng.randint(0, len(waiting)), rng.random() < 0.5
    left = [change for i, change in enumerate(waiting) if (i < end if in_order else rng.random() < 0.5)]
    names = functools.reduce(dict.__or__, left, flushed)
    return {name: file.after_crash(rng) for name, file in names.items() if file}
