"""Writing a run's models and states in a thread, while training continues.

A newer model or state replaces one that is still waiting, so a slow disk delays nothing, and after a failure the
newest is retried. A model is written before the state that refers to it, so a run that resumes from a state finds the
weights that the state calls the best, or better ones.
"""

import threading
from dataclasses import dataclass
from typing import Any

from charrnn.errors import CharrnnError
from charrnn.model.container import Tensors
from charrnn.model.file import ModelFile, save_model
from charrnn.runs.folder import Run

MAX_FAILURES = 3  # of saving a state, in a row
_ADVICE = "earlier files are intact, and the same command resumes from there"


@dataclass(frozen=True)
class StateSnapshot:
    """The content of a state file: copied arrays, which training no longer changes, and plain values."""

    step: int
    tensors: Tensors
    meta: dict[str, Any]


class Writer:
    """Writes models and states in a thread; a context manager that ends it when all is written.

    idle: write nothing, because another process does.
    """

    def __init__(self, run: Run, *, idle: bool = False) -> None:
        self._run, self._idle = run, idle
        self._changed = threading.Condition()
        self._model: ModelFile | None = None  # waiting, or failed
        self._state: StateSnapshot | None = None
        self._due = False  # something waits that has not failed since it was put
        self._busy = self._closed = False
        self._error: str | None = None  # of the last attempt
        self._failures = 0  # states in a row that could not be saved
        self._reported = False  # problem() has returned the error
        self._bug: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def put(self, item: ModelFile | StateSnapshot) -> None:
        """Queue a model or a state in place of a waiting one; a model also replaces a waiting state, now outdated."""
        if self._idle:
            return
        with self._changed:
            if isinstance(item, ModelFile):
                self._model, self._state = item, None
            else:
                self._state = item
            self._due = True
            self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until every item has been written or has failed; return whether that is so. seconds: at most."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._bug is not None or not (self._due or self._busy), seconds)
            if self._bug:
                raise self._bug
            return done

    def problem(self) -> str | None:
        """Return a warning about failures, once for all in a row; None if there is nothing new.

        Raises CharrnnError after three states in a row that could not be saved.
        """
        with self._changed:
            if self._bug:
                raise self._bug
            if self._failures >= MAX_FAILURES:
                raise CharrnnError(f"{self._error}, {MAX_FAILURES} times in a row; {_ADVICE}")
            if self._error is None or self._reported:
                return None
            self._reported = True
            return f"{self._error}; training continues, and saving will be retried"

    def finish(self) -> None:
        """Wait until all is on the disk; what has failed is retried once. Raises CharrnnError if that fails."""
        self.wait()
        with self._changed:
            self._due = self._error is not None
            self._changed.notify_all()
        self.wait()
        with self._changed:
            if self._error:
                raise CharrnnError(f"{self._error}; {_ADVICE}")

    def _work(self) -> None:
        """The thread: write the waiting items and note the outcome, until closed."""
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._due or self._closed)
                if not self._due:
                    return
                self._due, self._busy = False, True
                model, state = self._model, self._state
            path = self._run.model_path
            try:
                if model is not None:
                    save_model(path, model)
                    self._forget(model=model)
                if state is not None:
                    path = self._run.state_path(state.step)
                    self._run.save_state(state.step, state.tensors, state.meta)
                    self._forget(state=state)
            except OSError as error:
                with self._changed:
                    self._error = f"{path}: {error.strerror or error}"
                    self._failures += state is not None
            except BaseException as error:  # nobody sees what a thread raises; the next caller raises it
                with self._changed:
                    self._bug = error
                    self._changed.notify_all()
                return
            else:
                with self._changed:
                    self._error, self._failures, self._reported = None, 0, False

    def _forget(self, *, model: ModelFile | None = None, state: StateSnapshot | None = None) -> None:
        """Forget an item that was written, unless a newer one has replaced it."""
        with self._changed:
            if self._model is model:
                self._model = None
            if self._state is state:
                self._state = None
