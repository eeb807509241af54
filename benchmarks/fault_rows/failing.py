"""Every file operation of a save fails once, or from then on for a while, as on a full or a broken disk."""

import errno
import functools
import json
import os
import random
import socket
from dataclasses import dataclass
from typing import Any

from charrnn.errors import CharrnnError
from charrnn.training.folder import Log, Run
from charrnn.training.saving import Writer
from fault_rows import tracing
from fault_rows.kills import drawn
from fault_rows.outcome import Outcome
from fault_rows.scene import LATER, NEW, OLD, Scene, log_events, make_model, make_state
from fault_rows.watching import Operation, kinds_of, watched

MUST_HOLD = "what was saved before loads, the failure is told exactly once, a later save works"
ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS")
FAILING = f"{', '.join(ERRORS)}, short write at every file operation of a save"
FAILING_LOG = f"{', '.join(ERRORS)}, short write where the log is written"
FAILING_CALLS = f"{', '.join(ERRORS)} at every system call of a save, by strace"
SHORT, TORN = "a short write", "EIO after half a write"


@dataclass
class Fault:
    """A handler that fails the n-th operation (from 0), and with `lasting` all after it, until it is healed."""

    error: str
    nth: int
    lasting: bool = False
    count: int = 0
    struck: bool = False
    healed: bool = False

    def __call__(self, operation: Operation) -> Any:
        number, self.count = self.count, self.count + 1
        if self.healed or number < self.nth or (number > self.nth and not self.lasting):
            return operation.act()
        self.struck = True
        if self.error == SHORT:
            return operation.act(max(1, len(operation.data) // 2)) if operation.kind == "write" else operation.act()
        if operation.kind == "close":  # the handle is gone all the same
            operation.act()
        if self.error == TORN and number == self.nth:
            operation.act(len(operation.data) // 2)
        raise OSError(self.code, self.reason, str(operation.path))

    @property
    def code(self) -> int:
        """The number of the error."""
        return int(getattr(errno, self.error, errno.EIO))

    @property
    def reason(self) -> str:
        """What the system calls it."""
        return os.strerror(self.code)


def failing_row(scene: Scene, *, most: int, rng: random.Random) -> Outcome:
    """Failures put in at Python's level."""
    outcome = Outcome(FAILING, MUST_HOLD)
    kinds = kinds_of((run := scene.copy()).folder, lambda: _save_new(run))
    for error, nth, lasting in drawn(_places(kinds), most, rng):
        wrong = _fail_a_save(scene, Fault(error, nth, lasting))
        outcome.note(wrong and f"{error} {'from' if lasting else 'at'} operation {nth}, {kinds[nth]}: {wrong}")
    return outcome


def log_row(scene: Scene, *, most: int, rng: random.Random) -> Outcome:
    """The same for the log."""
    outcome = Outcome(FAILING_LOG, "the failure is told exactly once, each line is there once")
    kinds = kinds_of((run := scene.copy()).folder, lambda: log_events(run, 0, 1))
    for error, nth, lasting in drawn(_places(kinds), most, rng):
        wrong = _fail_the_log(scene, Fault(error, nth, lasting))
        outcome.note(wrong and f"{error} {'from' if lasting else 'at'} operation {nth}, {kinds[nth]}: {wrong}")
    return outcome


def traced_row(scene: Scene, *, most: int, rng: random.Random) -> Outcome:
    """Failures of system calls."""
    outcome = Outcome(FAILING_CALLS, MUST_HOLD, skipped=tracing.lack())
    if outcome.skipped:
        return outcome
    log, run = scene.root / "calls", scene.copy()
    process = tracing.Traced(functools.partial(_be_the_writer, run), log=log)
    process.receive()
    process.socket.shutdown(socket.SHUT_WR)
    process.end()
    counts = tracing.count_calls(log)
    places = [(name, n, error) for name in counts for n in range(1, counts[name] + 1) for error in ERRORS]
    for name, n, error in drawn(places, most, rng):
        wrong = _fail_a_call(scene, error, f"inject={name}:error={error}:when={n}")
        outcome.note(wrong and f"{error} of {name} number {n}: {wrong}")
    return outcome


def _places(kinds: list[str]) -> list[tuple[str, int, bool]]:
    """What fails, at which operation, and whether all after it does too."""
    places = [(error, nth, lasting) for error in ERRORS for nth in range(len(kinds)) for lasting in (False, True)]
    writes = [nth for nth, kind in enumerate(kinds) if kind == "write"]
    return places + [(error, nth, lasting) for error in (SHORT, TORN) for nth in writes for lasting in (False, True)]


def _writer(run: Run) -> Writer:
    """A writer that has a model and a state to write, in this order, as soon as it begins."""
    writer = Writer(run)
    writer.put(make_model(1))
    writer.put(make_state(NEW))
    return writer


def _save_new(run: Run) -> None:
    """What a writer does on a good disk."""
    with _writer(run) as writer:
        writer.finish()


def _fail_a_save(scene: Scene, fault: Fault) -> str | None:
    """What doesn't hold when a writer meets this fault, once or twice, and then the disk is good again."""
    run, told = scene.copy(), []
    with run.locked(), watched(run.folder, fault), _writer(run) as writer:
        for _ in range(2 if fault.lasting else 1):
            writer.wait(tracing.PATIENCE)
            told += [writer.problem(), writer.problem()]
            if wrong := scene.wrong(run):
                return f"meanwhile {wrong}"
            writer.put(make_state(NEW))
        fault.healed = True
        writer.put(make_state(LATER))
        try:
            writer.finish()
        except CharrnnError as error:
            return f"a later save failed: {error}"
    reason = None if fault.error == SHORT else fault.reason
    return _told_wrongly([words for words in told if words], reason) or _after_all(scene, run)


def _told_wrongly(told: list[str], reason: str | None) -> str | None:
    """What is wrong with what was told about a failure; reason None: there was none."""
    if len(told) != (reason is not None):
        return f"told {len(told)} times: {told}"
    return None if reason is None or reason in told[0] else f"told is not {reason}, but {told[0]}"


def _after_all(scene: Scene, run: Run) -> str | None:
    """What is wrong in a folder where all was saved in the end."""
    wrong = scene.wrong(run, least=LATER) or scene.litter(run)
    num_states = len(list(run.folder.glob("state-*")))
    return wrong or (f"{num_states} states are kept" if num_states > 2 else None)


def _fail_the_log(scene: Scene, fault: Fault) -> str | None:
    """What doesn't hold when a log meets this fault, for one or two events, and then the disk is good again."""
    run = scene.copy()
    before = run.log_path.read_text()
    events = [{"event": "progress", "step": step} for step in range(3)]
    log = Log(run)
    with watched(run.folder, fault):
        told = [log.append(event) for event in events[:2]]
        fault.healed = True
        log.append(events[2])
        log.finish()
    after = run.log_path.read_text()
    if after != before + "".join(json.dumps(event) + "\n" for event in events):
        return f"the log ends with {after[len(before) - 20 :]!r}"
    reason = os.strerror(errno.ENOSPC) if fault.error == SHORT else fault.reason
    return _told_wrongly([words for words in told if words], reason)


def _be_the_writer(run: Run, end: socket.socket) -> None:
    """Save in a traced process: say what went wrong, wait for a word, say how a later save went."""
    with _writer(run) as writer:
        writer.wait(tracing.PATIENCE)
        end.sendall(json.dumps([words for words in (writer.problem(), writer.problem()) if words]).encode())
        if not end.recv(16):
            return
        writer.put(make_state(LATER))
        try:
            writer.finish()
            end.sendall(b"saved")
        except CharrnnError as error:
            end.sendall(str(error).encode())


def _fail_a_call(scene: Scene, error: str, rule: str) -> str | None:
    """What doesn't hold when one system call of a writer fails."""
    run = scene.copy()
    process = tracing.Traced(functools.partial(_be_the_writer, run), rule=rule)
    answer = process.receive()
    try:
        told = json.loads(answer)
    except ValueError:
        process.end()
        return f"the writer ended: {answer}"
    # a call may fail that nothing depends on; then all is saved, and nothing told
    wrong = scene.wrong(run, least=OLD if told else NEW)
    process.send("go on")
    later = process.receive()
    process.end()
    if wrong or later != "saved":
        return f"meanwhile {wrong}" if wrong else f"a later save failed: {later}"
    return _told_wrongly(told, Fault(error, 0).reason if told else None) or _after_all(scene, run)
