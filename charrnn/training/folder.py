"""A run's folder: its name, lock, states, log and model.

checkpoints/<run>/ holds model.safetensors, the newest two state-<step>.safetensors and
log.jsonl. Nothing here knows how training works.
"""

import os
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from numpy.typing import NDArray

from charrnn.config import Checked, CorpusConfig, setting
from charrnn.data.cache import Cache
from charrnn.data.corpus import Corpus
from charrnn.errors import CharrnnError, InputError, ModelFileError, RunLockedError, UsageError
from charrnn.evaluation.texts import cached_training_text, read_training_text
from charrnn.files import (
    MODEL_NAME,
    checkpoints,
    list_models,
    name_checkpoints,
    name_problem,
    open_own,
    sync,
    write_atomically,
)
from charrnn.model.container import Tensors, read_tensors, write_tensors
from charrnn.model.file import ModelFile, check_names
from charrnn.text.sources import STDIN

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
        object.__setattr__(self, "name", _composed(self.name))
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
            names = sorted(map(_composed, os.listdir(self.root)))
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


def _composed(name: str) -> str:
    """Return a run's name with composed characters (NFC): macOS decomposes é in file names, which looks the same."""
    return unicodedata.normalize("NFC", name)


def run_name(text: str) -> str:
    """Name a run after its first text: the file's stem, or stdin for any stream."""
    is_stream = os.path.exists(text) and not os.path.isfile(text) and not os.path.isdir(text)
    return "stdin" if text == STDIN or is_stream else Path(os.path.abspath(text)).stem


def list_without_model() -> list[str]:
    """List the names of runs that were stopped before they saved a model."""
    folders = {path.parent for path in checkpoints().glob("*/state-*.safetensors")}
    return sorted(folder.name for folder in folders if not (folder / MODEL_NAME).exists())


def find_model(which: str | None) -> Path:
    """Find the model file that `-m` names: a file, a run's folder or a run; None: the newest model.

    Raises ModelFileError if there is none.
    """
    if which is None:
        models = list_models(checkpoints())
        if not models:
            raise ModelFileError(
                f"no model in {name_checkpoints()}; make one with: charrnn train TEXT, or name a file with -m"
            )
        return models[-1]
    # runs first: a text of the same name, without a suffix, must not hide its run
    for path in (
        checkpoints() / _composed(which) / MODEL_NAME,
        checkpoints() / which / MODEL_NAME,
        Path(which) / MODEL_NAME,
        Path(which),
    ):
        if os.path.exists(path) and not os.path.isdir(path):  # unlike Path's, False for a name that is too long
            return path
    if which in list_without_model():
        raise ModelFileError(
            f"run {which!r} was stopped before it saved a model; the same charrnn train command resumes it"
        )
    raise ModelFileError(
        f"{which}: neither a model file nor a run in {name_checkpoints()}; charrnn info lists the runs"
    )


def find_training_text(
    path: Path, file: ModelFile, names: Sequence[str] | None, cache: Cache, *, max_bytes: int | None = None
) -> Corpus:
    """Find the text that a model was trained on: where the user says, in the cache, or where its run says.

    path: of the model file. names: the text's files, if the user named them.
    Raises InputError if the text is missing, or the named one is another.
    """
    if names:
        return read_training_text(file, names, cache, max_bytes=max_bytes)
    corpus = cached_training_text(file, cache)
    if corpus is not None:
        return corpus
    paths = _recorded_texts(path, file.provenance["text"]["sha256"])
    try:
        for name in paths:
            if not os.path.isfile(name):
                raise InputError(f"{name}: not found")
        return read_training_text(file, paths, cache, max_bytes=max_bytes)
    except InputError as error:
        if not paths:  # the error says what to do
            raise
        raise InputError(f"{error} (the training text; if it has moved, use --train-text FILE)") from None


def _recorded_texts(model_path: Path, sha256: str) -> list[str]:
    """Return where the text of the run whose folder a model file is in is; [] if nothing says so.

    A held-out file (--valid) is the last one. The run's state says it, not the model, which may be someone else's.
    """
    folder = Path(os.path.abspath(model_path)).parent
    if folder.parent != Path(os.path.abspath(checkpoints())):
        return []
    try:
        saved = Run(folder.name).newest_state()
        if saved is None:
            return []
        text, valid = SavedText(**saved.meta["text"]), CorpusConfig(**saved.meta["corpus"]).valid
        check_names([valid or ""])
    except (CharrnnError, KeyError, TypeError, ValueError):
        return []
    paths = text.paths if valid is None else [*text.paths, valid]
    return [] if text.sha256 != sha256 or STDIN in paths else paths
