"""A process is killed at every file operation of a save, and at every system call."""

import functools
import gc
import os
import random
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from charrnn.training.folder import Run
from fault_rows import tracing
from fault_rows.outcome import Outcome
from fault_rows.scene import Scene, save_new
from fault_rows.watching import Operation, kinds_of, watched

MUST_HOLD = "the old or the new state loads, the model too, and what is left over the next run takes away"
KILLED = "SIGKILL at every file operation of a save"
KILLED_CALLS = "SIGKILL at every system call of a save, by strace"
WHEN = ("before", "half", "after")  # the operation is done; half: of what is written
Try = TypeVar("Try")


@dataclass
class Kill:
    """A handler that ends the process at the n-th operation (from 0)."""

    nth: int
    when: str
    count: int = 0

    def __call__(self, operation: Operation) -> Any:
        number, self.count = self.count, self.count + 1
        if number != self.nth:
            return operation.act()
        if self.when == "after":
            operation.act()
        elif self.when == "half" and operation.kind == "write":
            operation.act(len(operation.data) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


def killed_row(scene: Scene, *, most: int, rng: random.Random) -> Outcome:
    """SIGKILL before, in and after each operation. most: of them, drawn, where not all are wanted."""
    outcome = Outcome(KILLED, MUST_HOLD)
    run = scene.copy()
    kinds = kinds_of(run.folder, lambda: save_new(run))
    places = [(nth, when) for nth, kind in enumerate(kinds) for when in WHEN if when != "half" or kind == "write"]
    for nth, when in drawn(places, most, rng):
        run = scene.copy()
        status = in_a_fork(functools.partial(_save_watched, run, Kill(nth, when)))
        wrong = None if status == -signal.SIGKILL else f"was not killed, but ended with {status}"
        wrong = wrong or after_a_kill(scene, run)
        outcome.note(wrong and f"killed {when} operation {nth}, {kinds[nth]}: {wrong}")
    return outcome


def traced_row(scene: Scene, *, most: int, rng: random.Random) -> Outcome:
    """The same at each system call."""
    outcome = Outcome(KILLED_CALLS, MUST_HOLD, skipped=tracing.lack())
    if outcome.skipped:
        return outcome
    log, run = scene.root / "calls", scene.copy()
    tracing.Traced(functools.partial(_save_locked, run), log=log).end()
    places = [(name, n) for name, count in tracing.count_calls(log).items() for n in range(1, count + 1)]
    for name, n in drawn(places, most, rng):
        run = scene.copy()
        process = tracing.Traced(functools.partial(_save_locked, run), rule=f"inject={name}:signal=KILL:when={n}")
        status = process.end()
        wrong = None if status == -signal.SIGKILL else f"was not killed, but ended with {status}"
        wrong = wrong or after_a_kill(scene, run)
        outcome.note(wrong and f"killed at {name} number {n}: {wrong}")
    return outcome


def after_a_kill(scene: Scene, run: Run) -> str | None:
    """What doesn't hold in the folder, or for the run that goes on in it."""
    return scene.wrong(run) or scene.litter(run) or scene.save_later(run)


def drawn(places: Sequence[Try], most: int, rng: random.Random) -> Sequence[Try]:
    """All of them, or as many as are wanted, in order."""
    if len(places) <= most:
        return places
    return [places[index] for index in sorted(rng.sample(range(len(places)), most))]


def in_a_fork(work: Callable[[], Any]) -> int:
    """Do something in a process of its own; how that ended, -n by signal n."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            gc.disable()
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _save_watched(run: Run, handler: Callable[[Operation], Any]) -> None:
    """Save as a run does, with each operation handed over."""
    with run.locked(), watched(run.folder, handler):
        save_new(run)


def _save_locked(run: Run, _: socket.socket) -> None:
    """Save as a run does."""
    with run.locked():
        save_new(run)
