"""Rows about saves: each operation of a save is killed, or fails once or for a while, as on a full or broken disk."""

import contextlib
import errno
import functools
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fault_rows.disk import FOR_A_WHILE, KILLS, SHORT, TORN, Fault, lack_of_strace, system_calls, traced
from fault_rows.forks import PATIENCE, in_fork
from fault_rows.internals import Log, ModelConfig, ModelFile, Run, StateSnapshot, Vocab, Writer, load_model, save_model
from fault_rows.outcome import Outcome, Row, expect, problem_of
from fault_rows.runs import MODEL, RUN

OLDEST, OLD, NEW, LATER, LAST = 10, 20, 30, 40, 50  # steps of the states: the first two are there from the start
ALL = 10**6
ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS")
Around = Callable[..., contextlib.AbstractContextManager[Any]]  # a context for some work
_OF_A_WRITE = (KILLS[1], SHORT, TORN)
_CHARS = "\n .abcdefghijklmnopqrstuvwxyz"
_KILLED = "the old or the new state loads, the model too, and what is left over the next run takes away"
_FAILED = "what was saved before loads, the failure is reported exactly once, a later save works"
_LOGGED = "the failure is reported exactly once, each line is there once"


def make_model(number: int) -> ModelFile:
    """A small model, another for each number."""
    rng = np.random.default_rng(number)
    config = ModelConfig(cell="gru", vocab_size=len(_CHARS), embedding_dim=8, hidden_size=24, num_layers=1)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in config.tensor_shapes().items()}
    return ModelFile(config, Vocab(_CHARS), tensors, {"nats_per_char": 2.0 - 0.1 * number, "num_chars": 500}, {})


def make_state(step: int) -> StateSnapshot:
    """A small state, another for each step."""
    rng = np.random.default_rng(step)
    tensors = {f"weights.{name}": rng.normal(size=(40, 50)).astype(np.float32) for name in "abc"}
    return StateSnapshot(step, tensors, {"step": step, "num_events": num_events(step), "finished": False})


def num_events(step: int) -> int:
    """How many events of the log a state counts on."""
    return step // 5


def save_state(run: Run, step: int) -> None:
    """Save a state as a run does."""
    state = make_state(step)
    run.save_state(step, state.tensors, state.meta)


def log_events(run: Run, first: int, last: int) -> None:
    """Append events to the log as a run does, from number first on."""
    log = Log(run)
    for number in range(first, last):
        problem = log.append({"event": "progress", "step": number, "nats_per_char": 1 / (number + 1)})
        expect(problem is None, f"the log: {problem}")


class Scene:
    """A folder with a model, two states and a log; and the bytes of every model and state that is ever saved."""

    def __init__(self, root: Path) -> None:
        self.root, proofs, base = root, Run("proofs", root), Run(RUN, root / "base")
        self.states, self.models = dict[int, bytes](), list[bytes]()
        proofs.folder.mkdir(parents=True)
        base.folder.mkdir(parents=True)
        for step in (OLDEST, OLD, NEW, LATER, LAST):
            save_state(proofs, step)
            self.states[step] = proofs.state_path(step).read_bytes()
        for number in range(3):
            save_model(proofs.model_path, make_model(number))
            self.models.append(proofs.model_path.read_bytes())
        for step in (OLDEST, OLD):
            base.state_path(step).write_bytes(self.states[step])
        base.model_path.write_bytes(self.models[0])
        log_events(base, 0, num_events(OLD))

    def copy(self) -> Run:
        """A new copy of the folder, in place of the last one."""
        shutil.rmtree(self.root / "try", ignore_errors=True)
        shutil.copytree(self.root / "base", self.root / "try")
        return Run(RUN, self.root / "try")

    def check(self, run: Run, *, least: int = OLD, damaged: bool = False) -> tuple[int, int]:
        """A whole state and a whole model load, as they were saved; return the state's step and the model's number.

        least: the step of a state that had been saved before. damaged: states may be damaged, if
        they are passed over.
        """
        saved = run.newest_state()
        load_model(run.model_path)
        expect(saved, "no state is left")
        step, name = saved.meta["step"], saved.path.name
        expect(step >= least, f"{name} is the newest, though the state of step {least} was saved")
        expect(damaged or not saved.damaged, f"there are damaged states: {saved.damaged}")
        right = saved.path == run.state_path(step) and saved.path.read_bytes() == self.states[step]
        expect(right, f"{name} is not what was saved")
        model = run.model_path.read_bytes()
        expect(model in self.models, "the model is not one that was saved")
        expect(step < NEW or model != self.models[0], "the new state is there, but its model isn't")
        return step, self.models.index(model)

    def check_tidy(self, run: Run) -> None:
        """Nothing is left over, except temporary files, which the next run takes away."""
        ours = {MODEL, "log.jsonl", ".lock", ".lock-holder", *(run.state_path(step).name for step in self.states)}
        odd = {path.name for path in run.folder.iterdir()} - ours
        expect(all(name.startswith(".") and name.endswith(".tmp") for name in odd), f"left over: {odd}")
        with run.locked():
            odd = {path.name for path in run.folder.iterdir()} - ours
        expect(not odd, f"not taken away by the next run: {odd}")

    def check_later(self, run: Run) -> None:
        """The last save is there, and one state before it."""
        self.check(run, least=LATER)
        self.check_tidy(run)
        num_states = len(list(run.folder.glob("state-*")))
        expect(num_states == 2, f"{num_states} states are left")


def rows(scene: Scene) -> list[Row]:
    """The rows of the table, in its order."""
    errors = ", ".join(ERRORS)
    fails = [how + more for how in (*ERRORS, SHORT, TORN) for more in ("", FOR_A_WHILE)]
    fails_by_strace = [f"error={error}" for error in ERRORS]
    table = [
        ("SIGKILL at every file operation of a save", _KILLED, save_new, KILLS, kill),
        ("SIGKILL at every system call of a save, by strace", _KILLED, save_new, ["signal=KILL"], kill),
        (f"{errors}, short write at every file operation of a save", _FAILED, write_new, fails, fail_write),
        (f"{errors}, short write where the log is written", _LOGGED, log_one, fails, fail_log),
        (f"{errors} at every system call of a save, by strace", _FAILED, write_new, fails_by_strace, fail_write),
    ]
    return [(fault, holds, (6, ALL, ALL), functools.partial(fill, scene, *how)) for fault, holds, *how in table]


def fill(
    scene: Scene, work: Any, hows: list[str], trial: Any, outcome: Outcome, count: int, rng: random.Random
) -> None:
    """Call a trial for every fault at every operation of some work, or for so many of them."""
    run, fault, log = scene.copy(), Fault(), scene.root / "calls"
    if "=" not in hows[0]:
        work(run, functools.partial(fault.at, run.folder))
        steps = [(operation.kind, n) for n, operation in enumerate(fault.operations)]
    elif problem := lack_of_strace():
        outcome.skipped = problem
        return
    else:
        work(run, functools.partial(traced, "-o", str(log)))
        steps = system_calls(log)
    faults = [
        Fault(how, n, kind) for kind, n in steps for how in hows if kind == "write" or not how.startswith(_OF_A_WRITE)
    ]
    for fault in faults if len(faults) <= count else rng.sample(faults, count):
        name = f"{fault.how} {fault.kind} {fault.nth}"
        outcome.note(name, problem_of(trial, scene, scene.copy(), fault))


def save_new(run: Run, around: Around) -> None:
    """What a run does at a new best model: the log, the model, the state; the oldest state goes."""
    with around(), run.locked():
        log_events(run, num_events(OLD), num_events(NEW))
        save_model(run.model_path, make_model(1))
        save_state(run, NEW)


def write_new(run: Run, around: Around, then: Callable[[Writer], None] = lambda writer: None) -> None:
    """Save by a writer. then: called when it has written, or failed to."""
    with run.locked(), Writer(run) as writer:
        thread = next(thread.native_id for thread in threading.enumerate() if thread.name == "writer")
        with around(thread=thread):
            with writer._changed:  # so that it sees both at once
                writer.put(make_model(1))
                writer.put(make_state(NEW))
            writer.wait(PATIENCE)
            then(writer)


def log_one(run: Run, around: Around) -> None:
    """Append an event."""
    with around():
        log_events(run, 0, 1)


def kill(scene: Scene, run: Run, fault: Fault) -> None:
    """A save is killed: what was saved before is whole, and the next run can save."""
    status = in_fork(lambda: save_new(run, functools.partial(fault.at, run.folder)))
    expect(status == -signal.SIGKILL, f"was not killed, but ended with {status}")
    scene.check(run)
    scene.check_tidy(run)
    with run.locked():
        save_model(run.model_path, make_model(1))
        save_state(run, LATER)
    scene.check_later(run)


def fail_write(scene: Scene, run: Run, fault: Fault) -> None:
    """A writer meets a failure once or twice: what was saved before is whole; then the disk is good again."""
    messages: list[str] = []

    def then(writer: Writer) -> None:
        for _ in range(2 if fault.how.endswith(FOR_A_WHILE) else 1):
            messages.extend(words for words in (writer.problem(), writer.problem()) if words)
            scene.check(run, least=OLD if messages else NEW)
            writer.put(make_state(NEW))
            writer.wait(PATIENCE)
        fault.healed = True
        writer.put(make_state(LATER))
        writer.finish()

    write_new(run, functools.partial(fault.at, run.folder), then)
    harmless = fault.how.startswith(SHORT) or ("=" in fault.how and not messages)  # nothing may depend on a system call
    check_messages(messages, None if harmless else fault.reason)
    scene.check_later(run)


def fail_log(scene: Scene, run: Run, fault: Fault) -> None:
    """The log meets a failure for one or two events; then the disk is good again."""
    before, log = run.log_path.read_text(), Log(run)
    events = [{"event": "progress", "step": step} for step in range(3)]
    with fault.at(run.folder):
        messages = [words for words in map(log.append, events[:2]) if words]
        fault.healed = True
        log.append(events[2])
        log.finish()
    after = run.log_path.read_text()
    expect(after == before + "".join(json.dumps(event) + "\n" for event in events), f"the log ends {after[-300:]!r}")
    check_messages(messages, os.strerror(errno.ENOSPC) if fault.how.startswith(SHORT) else fault.reason)


def check_messages(messages: list[str], reason: str | None) -> None:
    """There is one message, which names the reason; or none, if reason is None."""
    expect(len(messages) == (reason is not None), f"{len(messages)} messages: {messages}")
    expect(reason is None or reason in messages[0], f"{reason} is not in {messages}")
