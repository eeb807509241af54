"""A run's folder: its name, lock, states, log and model; and the signals that end it.

checkpoints/<run>/ holds model.safetensors, the newest two state-<step>.safetensors and
log.jsonl. Nothing here knows how training works.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from numpy.typing import NDArray

from charrnn.checkpoint import Tensors, read_tensors, write_atomically, write_tensors
from charrnn.config import CHECKPOINTS
from charrnn.errors import CharrnnError, ModelFileError, RunLockedError, UsageError
from charrnn.sources import STDIN

ROOT = Path(CHECKPOINTS)
MODEL_NAME = "model.safetensors"
_KEPT_STATES = 2
_OF_A_SITTING = ("resumed", "warning")  # events that an uninterrupted run wouldn't have


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
        return self.folder / "log.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, made if need be, against other runs; the kernel frees a dead one's hold.

        Raises RunLockedError that says who has it.
        """
        lock, holder = FileLock(self.folder / ".lock", timeout=0), self.folder / ".lock-holder"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            holder.write_text(f"process {os.getpid()}")
        except Timeout:
            who = holder.read_text() if holder.exists() else "another process"
            raise RunLockedError(f"{self.folder} is in use by {who}; wait for it, or use another --run NAME") from None
        except OSError as error:
            raise CharrnnError(f"{self.folder}: {error.strerror}; a run needs a folder it can write to") from None
        try:
            for left_behind in self.folder.glob(".*.tmp"):  # by a process that was killed while writing
                left_behind.unlink(missing_ok=True)
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def clear(self) -> None:
        """Forget everything about an earlier run of this name."""
        for path in [*self._states().values(), self.model_path, self.log_path]:
            path.unlink(missing_ok=True)

    def save_state(self, step: int, tensors: Tensors, meta: dict[str, Any]) -> None:
        """Write state-<step>.safetensors and drop all but the newest two."""
        num_events = sum(counts for _, counts in self._log_lines())
        path = self.folder / f"state-{step}.safetensors"
        write_tensors(path, tensors, kind="state", meta={**meta, "num_events": num_events})
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

    def _states(self) -> dict[int, Path]:
        """The state files by step, newest first."""
        numbered = {
            int(number): path
            for path in self.folder.glob("state-*.safetensors")
            if (number := path.stem.removeprefix("state-")).isdecimal()
        }
        return dict(sorted(numbered.items(), reverse=True))

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one JSON object to log.jsonl."""
        with self.log_path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line that was cut by a crash
                    file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")

    def _log_lines(self) -> list[tuple[bytes, bool]]:
        """The log's lines, and whether each is an event of the run rather than of one sitting."""
        if not self.log_path.exists():
            return []
        lines = self.log_path.read_bytes().splitlines(keepends=True)
        return [(line, not any(f'"event": "{name}"'.encode() in line for name in _OF_A_SITTING)) for line in lines]

    def rewind_log(self, num_events: int) -> None:
        """Drop the events of the run after the first num_events: they are going to happen again.

        What belongs to a sitting (that it resumed, what it was warned of) stays.
        """
        kept: list[bytes] = []
        for line, counts in self._log_lines():
            num_events -= counts
            if num_events >= 0 or not counts:
                kept.append(line)
        write_atomically(self.log_path, b"".join(kept))


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


@dataclass
class StopRequest:
    """Set by the first signal that asks the run to end."""

    signal_number: int | None = None


@contextmanager
def catching_signals(tell: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request; a second one ends the process.

    tell: called at once when the first arrives, so that somebody can be told.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    request = StopRequest()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal_number = number
        for caught in numbers:
            if before[caught] is not signal.SIG_IGN:
                signal.signal(caught, signal.SIG_DFL)
        tell()

    for number in numbers:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield request
    finally:
        for number in numbers:
            signal.signal(number, before[number])
