"""What a run asks of the disk, operation by operation: to be counted, recorded, failed, or cut short by a kill.

The calls that charrnn writes files with are replaced by ones that hand each operation to a
handler, for the files of one folder only; reading is left alone.
"""

import functools
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Operation:
    """One thing that is asked of the disk.

    kind: open, write, truncate, fsync, close, replace or unlink. act: does it; that of a write
    may be given the number of bytes to stop at. data: what a write writes. target: where
    replace puts the file.
    """

    kind: str
    path: Path
    act: Callable[..., Any]
    data: bytes = b""
    target: Path | None = None


Handler = Callable[[Operation], Any]  # does the operation, or doesn't, and returns what it returned


class _File(io.FileIO):
    """A file whose changes are handed over one by one."""

    def __init__(self, path: Path, mode: str, handler: Handler) -> None:
        self.where, self._handler = path, handler
        super().__init__(path, mode)

    def write(self, data: Any, /) -> Any:
        """Write bytes, maybe fewer than given."""
        given, write = bytes(data), super().write
        return self._handler(Operation("write", self.where, lambda limit=None: write(given[:limit]), given))

    def truncate(self, size: int | None = None, /) -> Any:
        """Cut the file."""
        cut = functools.partial(super().truncate, size)
        return self._handler(Operation("truncate", self.where, cut))

    def close(self) -> None:
        """Close it, once."""
        if not self.closed:
            self._handler(Operation("close", self.where, super().close))


@contextmanager
def watched(folder: Path, handler: Handler) -> Iterator[None]:
    """Hand what is done to the files in this folder, and to itself, to the handler."""
    open_file, open_handle, sync, close = Path.open, os.open, os.fsync, os.close
    replace, unlink = os.replace, os.unlink
    handles: dict[int, Path] = {}

    def is_ours(path: Any) -> bool:
        return isinstance(path, (str, Path)) and (Path(path) == folder or Path(path).parent == folder)

    def watched_file(path: Path, mode: str = "r", buffering: int = -1, *more: Any, **others: Any) -> Any:
        if not is_ours(path) or not set(mode) & set("wax+"):
            return open_file(path, mode, buffering, *more, **others)
        file = handler(Operation("open", path, lambda: _File(path, mode, handler)))
        handles[file.fileno()] = path
        return file if buffering == 0 else io.BufferedWriter(file)

    def watched_open(path: Any, *more: Any, **others: Any) -> int:
        if not is_ours(path):
            return open_handle(path, *more, **others)
        handle: int = handler(Operation("open", Path(path), lambda: open_handle(path, *more, **others)))
        handles[handle] = Path(path)
        return handle

    def watched_sync(handle: int) -> None:
        handler(Operation("fsync", handles[handle], lambda: sync(handle))) if handle in handles else sync(handle)

    def watched_close(handle: int) -> None:
        path = handles.pop(handle, None)
        close(handle) if path is None else handler(Operation("close", path, lambda: close(handle)))

    def watched_replace(source: Any, target: Any) -> None:
        move = functools.partial(replace, source, target)
        handler(Operation("replace", Path(source), move, target=Path(target))) if is_ours(target) else move()

    def watched_unlink(path: Any, **others: Any) -> None:
        remove = functools.partial(unlink, path, **others)
        handler(Operation("unlink", Path(path), remove)) if is_ours(path) else remove()

    with (
        mock.patch.object(Path, "open", watched_file),
        mock.patch.multiple(
            os,
            open=watched_open,
            fsync=watched_sync,
            close=watched_close,
            replace=watched_replace,
            unlink=watched_unlink,
        ),
    ):
        yield


def kinds_of(folder: Path, work: Callable[[], Any]) -> list[str]:
    """The kinds of all operations in a folder that some work consists of, in order."""
    kinds: list[str] = []

    def note(operation: Operation) -> Any:
        kinds.append(operation.kind)
        return operation.act()

    with watched(folder, note):
        work()
    return kinds
