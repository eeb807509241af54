"""A run's folder: its name, lock, states, log and model; and the signals that end it.

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
_KEPT_STATES = 2
SESSION_EVENTS = ("resumed", "warning")  # events that an uninterrupted run wouldn't have


@dataclass(frozen=True)
class SavedState:
    """A state file's content: what an exact resume needs, and the plain facts about it.

    damaged: what is wrong with the newer files that were passed over.
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
        """Hold the folder, made if need be, against other runs; the kernel frees a dead one's hold.

        Raises RunLockedError that says who has it.
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
                f"{self.folder} is in use by {_who(holder)}; wait for it, or use another --run NAME"
            ) from None
        except OSError as error:
            raise CharrnnError(f"{self.folder}: {error.strerror}; a run needs a folder it can write to") from None
        try:
            for left_behind in self.folder.glob(".*.tmp"):  # by a process that was killed while writing
                left_behind.unlink(missing_ok=True)
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def check_writable(self) -> None:
        """Raise CharrnnError where the folder can't be written to, or made."""
        folder = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CharrnnError(f"{folder}: can't be written to; a run needs a folder it can write to")

    def clear(self) -> None:
        """Forget everything about an earlier run of this name."""
        for path in [*self._states().values(), self.model_path, self.log_path]:
            path.unlink(missing_ok=True)

    def state_path(self, step: int) -> Path:
        return self.folder / f"state-{step}.safetensors"

    def save_state(self, step: int, tensors: Tensors, meta: dict[str, Any]) -> None:
        """Write state-<step>.safetensors and drop all but the newest two."""
        if self.log_path.exists():  # what the state counts on is on the disk before it
            sync(self.log_path)
        write_tensors(self.state_path(step), tensors, kind="state", meta=meta)
        states = self._states()
        kept = [number for number in states if number <= step][:_KEPT_STATES]
        for number in states.keys() - kept:  # the older ones, and damaged ones that the run fell back from
            states[number].unlink(missing_ok=True)

    def newest_state(self) -> SavedState | None:
        """The newest state that is whole; None where there is none at all.

        Raises ModelFileError where there are states and all of them are damaged.
        """
        damaged: list[str] = []
        for path in self._states().values():
            try:
                return SavedState(path, *read_tensors(path, kind="state"), damaged=tuple(damaged))
            except ModelFileError as error:
                damaged.append(str(error))
        if damaged:
            raise ModelFileError(f"{damaged[0]}; no good state is left in {self.folder}, --fresh starts over")
        return None

    def last_step(self) -> int | None:
        """The step of the newest state, good or not; None where there is none."""
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
        """Drop the events of the run after the first num_events: they are going to happen again.

        What belongs to a sitting (that it resumed, what it was warned of) stays.
        """
        lines, kept = self._log_lines(), []
        for line, of_the_run in lines:
            num_events -= of_the_run
            if num_events >= 0 or not of_the_run:
                kept.append(line)
        if len(kept) < len(lines):
            write_atomically(self.log_path, *kept)

    def num_logged(self) -> int:
        """How many events of the run the log has."""
        return sum(of_the_run for _, of_the_run in self._log_lines())

    def _log_lines(self) -> list[tuple[bytes, bool]]:
        """The log's lines, and whether each is an event of the run rather than of one sitting."""
        if not self.log_path.exists():
            return []
        lines = self.log_path.read_bytes().splitlines(keepends=True)
        return [(line, not any(f'"event": "{name}"'.encode() in line for name in SESSION_EVENTS)) for line in lines]


def _who(holder: Path) -> str:
    """Who holds a run's folder: it may just be about to say so, over the name of one that was killed."""
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
    except PermissionError:  # somebody else's
        return True
    except ProcessLookupError:
        return False
    return True


class Log:
    """Appends to a run's log.jsonl; what a failing disk doesn't take is tried again with what follows."""

    def __init__(self, run: Run) -> None:
        self._path = run.log_path
        self._waiting = b""
        self._failing = False
        self._size: int | None = None  # of the file before what waits, where some of that may be in it

    def append(self, record: Mapping[str, Any]) -> str | None:
        """Append one JSON object. Returns what to tell the user, when it begins to fail."""
        self._waiting += json.dumps(record).encode() + b"\n"
        try:
            self._write()
        except OSError as error:
            told, self._failing = self._failing, True
            reason = f"{self._path}: {error.strerror or error}"
            return None if told else f"{reason}; training goes on, and writing is tried again"
        self._failing = False
        return None

    def finish(self) -> None:
        """Write what still waits. Raises CharrnnError where that fails."""
        try:
            self._write()
        except OSError as error:
            raise CharrnnError(f"{self._path}: {error.strerror or error}; the log lacks its end") from None

    def _write(self) -> None:
        """Write what waits, all or nothing."""
        if not self._waiting:
            return
        with self._path.open("ab+", buffering=0) as file:
            size = file.tell()
            if self._size is not None:  # as where closing failed
                size = min(size, self._size)
                file.truncate(size)
            self._size = size
            file.seek(max(0, size - 1))
            torn = file.read(1) not in (b"", b"\n")  # a line that was cut by a crash
            data = b"\n" * torn + self._waiting
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise
        self._waiting, self._size = b"", None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The events that a run's folder tells of; none where it has no log. Lines that aren't any are passed over."""
    events = []
    with suppress(OSError):
        for line in (folder / LOG_NAME).read_bytes().splitlines():
            with suppress(ValueError):
                events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict)]


def run_name(text: str) -> str:
    """The name of a run that wasn't given one: the first text's stem, or stdin for any stream."""
    is_stream = os.path.exists(text) and not os.path.isfile(text) and not os.path.isdir(text)
    return "stdin" if text == STDIN or is_stream else Path(os.path.abspath(text)).stem


def list_models(*, root: Path = ROOT) -> list[Path]:
    """The model files of all runs, oldest first."""
    return sorted(root.glob(f"*/{MODEL_NAME}"), key=lambda path: path.stat().st_mtime_ns)


def list_without_model(*, root: Path = ROOT) -> list[str]:
    """The names of runs that were stopped before they had a model."""
    stopped = {path.parent for path in root.glob("*/state-*.safetensors")}
    return sorted(folder.name for folder in stopped if not (folder / MODEL_NAME).exists())


def find_model(which: str | None, *, root: Path = ROOT) -> Path:
    """The model file that `-m` means: a file, a run's folder or a run's name; None: the newest.

    Raises ModelFileError where there is none.
    """
    if which is None:
        models = list_models(root=root)
        if not models:
            raise ModelFileError(f"no model in ./{root}; make one with: charrnn train TEXT, or name a file with -m")
        return models[-1]
    # the run first: a text of the same name without a suffix must not hide it
    for path in (root / which / MODEL_NAME, Path(which) / MODEL_NAME, Path(which)):
        if os.path.exists(path) and not os.path.isdir(path):  # unlike Path's, False for a name too long
            return path
    if which in list_without_model(root=root):
        raise ModelFileError(f"run {which!r} was stopped before it had a model; the same charrnn train command goes on")
    raise ModelFileError(f"{which}: neither a model file nor a run in ./{root}; charrnn info lists the runs")
