"""A run's folder: its name, lock, states, log and model.

checkpoints/<run>/ holds model.safetensors, the newest two state-<step>.safetensors and
log.jsonl. Nothing here knows how training works.
"""

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from numpy.typing import NDArray

from charrnn.config import CHECKPOINTS
from charrnn.data.sources import STDIN
from charrnn.errors import CharrnnError, ModelFileError, RunLockedError, UsageError
from charrnn.files import sync, write_atomically
from charrnn.model.file import Tensors, read_tensors, write_tensors

ROOT = Path(CHECKPOINTS)
MODEL_NAME = "model.safetensors"
LOG_NAME = "log.jsonl"
REPORT_NAME = "report.html"
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
class Run:
    """The folder of one run."""

    name: str
    root: Path = ROOT

    def __post_init__(self) -> None:
        too_long = len(os.fsencode(self.name)) > 255
        if too_long or self.name in ("", ".", "..") or any(c in self.name for c in "/\\\0"):
            raise UsageError(f"--run {self.name!r} is not a usable folder name")

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
        """Create the folder if needed and lock it; the system releases the lock of a dead process.

        Raises RunLockedError that names the process holding the lock.
        """
        lock, holder = FileLock(self.folder / ".lock", timeout=0), self.folder / ".lock-holder"
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                sync(self.root.parent)
                sync(self.root)
            lock.acquire()
            holder.write_text(f"process {os.getpid()}")
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
            lock.release()

    def check_writable(self) -> None:
        """Raise CharrnnError if the folder can't be created or written to."""
        folder = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CharrnnError(f"{folder}: can't be written to; a run needs a folder it can write to")

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
        """The step of the newest state, damaged or not, from its file name; None if there are no states."""
        return next(iter(self._states()), None)

    def _states(self) -> dict[int, Path]:
        """The state files by step, newest first."""
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
        """The log's lines, and whether each is a session event."""
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


class Log:
    """Appends events to a run's log.jsonl; lines that could not be written are retried with the next one."""

    def __init__(self, run: Run) -> None:
        self._path = run.log_path
        self._pending = b""
        self._failing = False
        self._size: int | None = None  # of the file before the pending lines, if a failed write may have left some

    def append(self, record: Mapping[str, Any]) -> str | None:
        """Append one JSON object. Returns a warning for the first failure in a row, else None."""
        self._pending += json.dumps(record).encode() + b"\n"
        try:
            self._write()
        except OSError as error:
            was_failing, self._failing = self._failing, True
            reason = f"{self._path}: {error.strerror or error}"
            return None if was_failing else f"{reason}; training continues, and writing will be retried"
        self._failing = False
        return None

    def finish(self) -> None:
        """Write the pending lines. Raises CharrnnError if that fails."""
        try:
            self._write()
        except OSError as error:
            raise CharrnnError(f"{self._path}: {error.strerror or error}; the log lacks its end") from None

    def _write(self) -> None:
        """Write all pending lines or none."""
        if not self._pending:
            return
        with self._path.open("ab+", buffering=0) as file:
            size = file.tell()
            if self._size is not None:  # an earlier write succeeded, but closing the file failed
                size = min(size, self._size)
                file.truncate(size)
            self._size = size
            file.seek(max(0, size - 1))
            ends_in_part = file.read(1) not in (b"", b"\n")  # a crash cut the last line
            data = b"\n" + self._pending if ends_in_part else self._pending
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise
        self._pending, self._size = b"", None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the events in a run's log; [] if there is no log. Lines that are not JSON objects are skipped."""
    events = []
    with suppress(OSError):
        for line in (folder / LOG_NAME).read_bytes().splitlines():
            with suppress(ValueError):
                events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict)]


def run_name(text: str) -> str:
    """Name a run after its first text: the file's stem, or stdin for any stream."""
    is_stream = os.path.exists(text) and not os.path.isfile(text) and not os.path.isdir(text)
    return "stdin" if text == STDIN or is_stream else Path(os.path.abspath(text)).stem


def list_models() -> list[Path]:
    """List the model files of all runs, oldest first."""
    return sorted(ROOT.glob(f"*/{MODEL_NAME}"), key=lambda path: path.stat().st_mtime_ns)


def list_without_model() -> list[str]:
    """List the names of runs that were stopped before they saved a model."""
    folders = {path.parent for path in ROOT.glob("*/state-*.safetensors")}
    return sorted(folder.name for folder in folders if not (folder / MODEL_NAME).exists())


def find_model(which: str | None) -> Path:
    """Find the model file that `-m` names: a file, a run's folder or a run; None: the newest model.

    Raises ModelFileError if there is none.
    """
    if which is None:
        models = list_models()
        if not models:
            raise ModelFileError(f"no model in ./{ROOT}; make one with: charrnn train TEXT, or name a file with -m")
        return models[-1]
    # runs first: a text of the same name, without a suffix, must not hide its run
    for path in (ROOT / which / MODEL_NAME, Path(which) / MODEL_NAME, Path(which)):
        if os.path.exists(path) and not os.path.isdir(path):  # unlike Path's, False for a name that is too long
            return path
    if which in list_without_model():
        raise ModelFileError(
            f"run {which!r} was stopped before it saved a model; the same charrnn train command resumes it"
        )
    raise ModelFileError(f"{which}: neither a model file nor a run in ./{ROOT}; charrnn info lists the runs")
