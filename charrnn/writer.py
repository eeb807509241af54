"""A run's files are written by a thread, while the training goes on.

What is handed over replaces what still waits, so a slow disk delays nobody, and a failing one
is tried again with the newest. A model is written before the state that counts on it: a run
that goes on from a state always finds the weights that it takes for the best, or better ones.
"""

import threading
from dataclasses import dataclass
from typing import Any

from charrnn.checkpoint import ModelFile, Tensors, save_model
from charrnn.errors import CharrnnError
from charrnn.runs import Run

MAX_FAILURES = 3  # in a row
_ADVICE = "what was saved before is whole, and the same command goes on from there"


@dataclass(frozen=True)
class State:
    """What a state file holds: arrays that nobody changes any more, and plain values."""

    step: int
    tensors: Tensors
    meta: dict[str, Any]


class Writer:
    """Writes what is put, in order; a context manager that ends its thread after what is under way.

    idle: it writes nothing, because another process does.
    """

    def __init__(self, run: Run, *, idle: bool = False) -> None:
        self._run, self._idle = run, idle
        self._changed = threading.Condition()
        self._model: ModelFile | None = None
        self._state: State | None = None
        self._busy = self._closed = False
        self._due = False  # something waits, and has not failed since it was put
        self._error: str | None = None  # of the last try
        self._failures = 0  # states in a row that could not be saved
        self._told = False
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

    def put(self, what: ModelFile | State) -> None:
        """Have this written, instead of what of its kind still waits; a state that counts on a model comes after it."""
        if self._idle:
            return
        with self._changed:
            if isinstance(what, ModelFile):
                self._model, self._state = what, None
            else:
                self._state = what
            self._due = True
            self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is left to do; whether that is so now, and all was written or has failed."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._bug or not (self._due or self._busy), seconds)
            if self._bug:
                raise self._bug
            return bool(done)

    def problem(self) -> str | None:
        """What went wrong, once for all failures in a row.

        Raises CharrnnError where three states in a row could not be saved.
        """
        with self._changed:
            if self._bug:
                raise self._bug
            if self._failures >= MAX_FAILURES:
                raise CharrnnError(f"{self._error}, {MAX_FAILURES} times in a row; {_ADVICE}")
            if self._error is None or self._told:
                return None
            self._told = True
            return f"{self._error}; training goes on, and saving is tried again"

    def finish(self) -> None:
        """Try once more what has failed, and wait for the disk. Raises CharrnnError where something is not on it."""
        self.wait()
        with self._changed:
            self._due = self._error is not None
            self._changed.notify_all()
        self.wait()
        with self._changed:
            if self._error:
                raise CharrnnError(f"{self._error}; {_ADVICE}")

    def _work(self) -> None:
        """The thread: take what waits, write it, note how that went."""
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
                    self._clear(model=model)
                if state is not None:
                    path = self._run.state_path(state.step)
                    self._run.save_state(state.step, state.tensors, state.meta)
                    self._clear(state=state)
            except OSError as error:
                with self._changed:
                    self._error = f"{path}: {error.strerror or error}"
                    self._failures += state is not None
            except BaseException as error:  # nothing that a thread raises is seen by anybody
                with self._changed:
                    self._bug = error
                    self._changed.notify_all()
                return
            else:
                with self._changed:
                    self._error, self._failures, self._told = None, 0, False

    def _clear(self, *, model: ModelFile | None = None, state: State | None = None) -> None:
        """Forget what was written, unless it has been replaced meanwhile."""
        with self._changed:
            if self._model is model:
                self._model = None
            if self._state is state:
                self._state = None
