"""A run's folder: its name, lock, states, log and model.

checkpoints/<run>/ holds model.safetensors, the newest two state-<step>.safetensors and
log.jsonl. Nothing here knows how training works.
"""

import os
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from numpy.typing import NDArray

from charrnn.config import Checked, setting
from charrnn.errors import CharrnnError, ModelFileError, RunLockedError, UsageError
from charrnn.files import MODEL_NAME, checkpoints, name_problem, open_own, sync, write_atomically
from charrnn.model.container import Tensors, read_tensors, write_tensors
from charrnn.model.file import check_names

LOG_NAME = "log.jsonl"
REPORT_NAME = "report.html"
PLAYER_NAME = "player.html"  # the exported page
SESSION_EVENTS = ("resumed", "warning")  # events that an uninterrupted run wouldn't have
_NUM_STATES = 2


@dataclass(frozen=True)
class SavedState:
    """A state file's content: the arrays and plain values that an exact resume needs.

    damaged: what is wrong with each newer file that was skipped.
    """

    path: Path
    tensors: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class SavedText(Checked):
    """What a state says about the run's text: SHA-256, vocabulary fingerprint, files and length."""

    sha256: str
    vocab: str
    paths: list[str]
    num_chars: int = setting(1, 10**15)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.paths)


@dataclass(frozen=True)
class Run:
    """The folder of one run."""

    name: str
    root: Path = field(default_factory=checkpoints)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", composed(self.name))
        if problem := name_problem(self.name):
            raise UsageError(f"a run's folder can't be named {self.name!r}: {problem}; choose another --run NAME")

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def model_path(self) -> Path:
        return self.folder / MODEL_NAME

    @property
    def log_path(self) -> Path:
        return self.folder / LOG_NAME

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder if needed and lock it; remove it if it is empty at the end.

        The system releases the lock of a dead process.
        Raises RunLockedError that names the process holding the lock.
        """
        lock, holder = FileLock(self.folder / ".lock", timeout=0), self.folder / ".lock-holder"
        try:
            self.check_links()
            if not self.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                sync(self.root.parent)
                sync(self.root)
            lock.acquire()
            with open_own(holder, "wb") as file:
                file.write(f"process {os.getpid()}".encode())
        except Timeout:
            raise RunLockedError(
                f"{self.folder} is in use by {_holder_name(holder)}; wait for it, or use another --run NAME"
            ) from None
        except OSError as error:
            raise CharrnnError(f"{self.folder}: {error.strerror}; a run needs a folder it can write to") from None
        try:
            for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed while writing
                leftover.unlink(missing_ok=True)
            yield
        finally:
            holder.unlink(missing_ok=True)
            if os.name != "posix":  # Windows removes no file that is open
                lock.release()
            with suppress(OSError):
                if os.listdir(self.folder) == [".lock"]:
                    os.unlink(self.folder / ".lock")
                    self.folder.rmdir()
                    self.root.rmdir()  # fails if there are other runs
            lock.release()

    def check_writable(self) -> None:
        """Raise CharrnnError if the folder can't be created or written to, or a file in it is a link.

        Raises UsageError if the name of a new run differs from another's only in case.
        """
        self.check_links()
        self._check_case()
        folder = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CharrnnError(f"{folder}: can't be written to; a run needs a folder it can write to")

    def check_links(self) -> None:
        """Raise CharrnnError if the folder, or anything in it, is a symbolic link, a FIFO or a device.

        Someone else may have made the folder, and through a link a run would overwrite files elsewhere.
        """
        if self.folder.is_symlink():
            raise CharrnnError(
                f"{self.folder} is a symbolic link, but a run's folder must be a real one; "
                f"delete the link (to use another disk, link all of {self.root})"
            )
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.folder) as entries:
            for entry in entries:
                if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                    kind = "is a symbolic link" if entry.is_symlink() else "is not a regular file"
                    raise CharrnnError(f"{entry.path} {kind}, and a run writes only to its own files; delete it")

    def _check_case(self) -> None:
        """Raise UsageError if this run is new and its folder would be another run's on macOS and Windows."""
        with suppress(FileNotFoundError, NotADirectoryError):
            names = sorted(map(composed, os.listdir(self.root)))
            twins = [name for name in names if name.casefold() == self.name.casefold()]
            if twins and self.name not in twins:
                raise UsageError(
                    f"--run {self.name!r} differs from the run {twins[0]!r} only in case, "
                    f"which macOS and Windows ignore; use {twins[0]!r} or another --run NAME"
                )

    def clear(self) -> None:
        """Delete the states, model and log of an earlier run."""
        for path in [*self._states().values(), self.model_path, self.log_path]:
            path.unlink(missing_ok=True)

    def state_path(self, step: int) -> Path:
        return self.folder / f"state-{step}.safetensors"

    def save_state(self, step: int, tensors: Tensors, meta: dict[str, Any]) -> None:
        """Write state-<step>.safetensors, then delete all but the newest two states up to that step."""
        if self.log_path.exists():  # the state counts the events in the log, so they must reach the disk first
            sync(self.log_path)
        write_tensors(self.state_path(step), tensors, kind="state", meta=meta)
        states = self._states()
        newest = [number for number in states if number <= step][:_NUM_STATES]
        for number in states.keys() - newest:  # older states, and damaged ones that the run fell back from
            states[number].unlink(missing_ok=True)

    def newest_state(self) -> SavedState | None:
        """Read and verify the newest intact state; None if the folder has no states.

        Raises ModelFileError if all states are damaged.
        """
        damaged: list[str] = []
        for path in self._states().values():
            try:
                return SavedState(path, *read_tensors(path, kind="state"), damaged=tuple(damaged))
            except ModelFileError as error:
                damaged.append(str(error))
        if damaged:
            raise ModelFileError(f"{damaged[0]}; {self.folder} has no other state, --fresh starts over")
        return None

    def last_step(self) -> int | None:
        """Return the step of the newest state, damaged or not, from its file name; None if there are no states."""
        return next(iter(self._states()), None)

    def _states(self) -> dict[int, Path]:
        """Return the state files by step, newest first."""
        numbered = {
            int(number): path
            for path in self.folder.glob("state-*.safetensors")
            if (number := path.stem.removeprefix("state-")).isdecimal()
        }
        return dict(sorted(numbered.items(), reverse=True))

    def rewind_log(self, num_events: int) -> None:
        """Drop the run's events after the first num_events, because they will happen again.

        Session events (resumed, warning) stay.
        """
        lines, remaining = self._log_lines(), []
        for line, is_session_event in lines:
            if not is_session_event:
                num_events -= 1
            if is_session_event or num_events >= 0:
                remaining.append(line)
        if len(remaining) < len(lines):
            write_atomically(self.log_path, *remaining)

    def num_logged(self) -> int:
        """Count the events in the log, session events aside."""
        return sum(not is_session_event for _, is_session_event in self._log_lines())

    def _log_lines(self) -> list[tuple[bytes, bool]]:
        """Return the log's lines, and whether each is a session event."""
        if not self.log_path.exists():
            return []
        lines = self.log_path.read_bytes().splitlines(keepends=True)
        return [(line, any(f'"event": "{name}"'.encode() in line for name in SESSION_EVENTS)) for line in lines]


def _holder_name(holder: Path) -> str:
    """Name the process that holds a run's lock.

    It may be about to write its number over that of a killed process, so a dead process's number is read again.
    """
    for _ in range(20):
        with suppress(OSError, ValueError):
            name, number = holder.read_text().split()
            if os.name != "posix" or _is_alive(int(number)):
                return f"{name} {number}"
        time.sleep(0.05)
    return "another process"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except ProcessLookupError:
        return False
    return True


def composed(name: str) -> str:
    """Return a run's name with composed characters (NFC): macOS decomposes é in file names, which looks the same."""
    return unicodedata.normalize("NFC", name)
