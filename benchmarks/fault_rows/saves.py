"""Rows about saves: each operation is killed or fails, its writes are lost in a crash, files are damaged later."""

import errno
import functools
import itertools
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

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.files import MODEL_NAME
from charrnn.model.file import ModelFile, load_model, save_model
from charrnn.runs.folder import LOG_NAME, Run
from charrnn.runs.log import Log
from charrnn.runs.writer import StateSnapshot, Writer
from fault_rows.disk import FOR_A_WHILE, KILLS, SHORT, TORN, Fault, after_crash, lack_of_strace
from fault_rows.outcome import Outcome, choose, expect
from fault_rows.runs import PATIENCE, RUN, in_fork, refusal

MODELS = {2: 0, 4: 0, 6: 1, 8: 1, 10: 2}  # steps of states, and the number of the model that each counts on
OLDEST, OLD, NEW, LATER, LAST = MODELS  # the first two are there from the start; each step logs an event
ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS")
FAILURES = tuple(how + more for how in (*ERRORS, SHORT, TORN) for more in ("", FOR_A_WHILE))
_CHARS = "\n .abcdefghijklmnopqrstuvwxyz"


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
    return StateSnapshot(step, tensors, {"step": step, "num_events": step, "finished": False})


def log_events(run: Run, first: int, last: int) -> None:
    """Append the events of some steps to the log as a run does."""
    log = Log(run)
    for step in range(first, last):
        problem = log.append({"event": "progress", "step": step, "nats_per_char": 1 / (step + 1)})
        expect(problem is None, f"the log: {problem}")


def save(run: Run, before: int, step: int) -> None:
    """What a run does at a step, after the state before it: the log, the model, the state; the oldest state goes."""
    log_events(run, before, step)
    if MODELS[step] > MODELS.get(before, -1):
        save_model(run.model_path, make_model(MODELS[step]))
    state = make_state(step)
    run.save_state(step, state.tensors, state.meta)


class Scene:
    """A folder with a model, two states and a log; and the bytes of every model and state that is ever saved."""

    def __init__(self, root: Path) -> None:
        self.root, self.states, self.models = root, dict[int, bytes](), dict[bytes, int]()
        run = Run(RUN, root / "all")
        run.folder.mkdir(parents=True)
        for before, step in itertools.pairwise((0, *MODELS)):
            save(run, before, step)
            self.states[step] = run.state_path(step).read_bytes()
            self.models[run.model_path.read_bytes()] = MODELS[step]
            if step == OLD:
                shutil.copytree(root / "all", root / "base")

    def copy(self) -> Run:
        """A new copy of the folder, in place of the last one."""
        shutil.rmtree(self.root / "try", ignore_errors=True)
        shutil.copytree(self.root / "base", self.root / "try")
        return Run(RUN, self.root / "try")

    def check(self, run: Run, *, least: int = OLD, damaged: bool = False) -> int:
        """A whole state and the model that it counts on load, as they were saved; return the state's step.

        least: the step of a state that had been saved before. damaged: states may be damaged, if
        they are passed over.
        """
        saved = run.newest_state()
        load_model(run.model_path)
        expect(saved, "no state is left")
        step: int = saved.meta["step"]
        expect(step >= least, f"{saved.path.name} is the newest, though the state of step {least} was saved")
        expect(damaged or not saved.damaged, f"there are damaged states: {saved.damaged}")
        right = saved.path == run.state_path(step) and saved.path.read_bytes() == self.states[step]
        expect(right, f"{saved.path.name} is not what was saved")
        model = self.models.get(run.model_path.read_bytes(), -1)
        expect(model >= MODELS[step], f"the model is not one that was saved, or older than the state of step {step}")
        return step

    def check_tidy(self, run: Run) -> None:
        """Nothing is left over, except temporary files, which the next run takes away."""
        ours = {MODEL_NAME, LOG_NAME, ".lock", ".lock-holder", *(run.state_path(step).name for step in MODELS)}
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


def at_every(scene: Scene, work: Any, hows: Any, trial: Any, outcome: Outcome, count: int, rng: random.Random) -> None:
    """Call a trial for every fault at every operation of some work, or for so many of them."""
    outcome.skipped = lack_of_strace() if "=" in hows[0] else ""
    if outcome.skipped:
        return
    undisturbed = Fault(hows[0])
    work(scene.copy(), undisturbed)
    some = (KILLS[1], SHORT, TORN)  # of a write only
    faults = [
        Fault(how, nth, kind)
        for kind, nth in undisturbed.places
        for how in hows
        if kind == "write" or not how.startswith(some)
    ]
    for fault in choose(faults, count, rng):
        with outcome.attempt(f"{fault.how} {fault.kind} {fault.nth}"):
            trial(scene, scene.copy(), fault)


def save_new(run: Run, fault: Fault) -> None:
    """Save as a run does at a new best model."""
    with fault.at(run.folder), run.locked():
        save(run, OLD, NEW)


def write_new(run: Run, fault: Fault, then: Callable[[Writer], None] = lambda writer: None) -> None:
    """Save by a writer. then: called when it has written, or failed to."""
    with run.locked(), Writer(run) as writer:
        thread = next(thread.native_id for thread in threading.enumerate() if thread.name == "writer")
        with fault.at(run.folder, thread=thread):
            with writer._changed:  # so that it sees both at once
                writer.put(make_model(MODELS[NEW]))
                writer.put(make_state(NEW))
            writer.wait(PATIENCE)
            then(writer)


def log_one(run: Run, fault: Fault) -> None:
    """Append an event."""
    with fault.at(run.folder):
        log_events(run, 0, 1)


def kill(scene: Scene, run: Run, fault: Fault) -> None:
    """A save is killed: what was saved before is whole, and the next run can save."""
    status = in_fork(functools.partial(save_new, run, fault))
    expect(status == -signal.SIGKILL, f"was not killed, but ended with {status}")
    scene.check(run)
    scene.check_tidy(run)
    with run.locked():
        save(run, OLD, LATER)
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

    write_new(run, fault, then)
    harmless = fault.how.startswith(SHORT) or ("=" in fault.how and not messages)  # nothing may depend on a system call
    check_messages(messages, "" if harmless else fault.error.strerror)
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
    check_messages(messages, os.strerror(errno.ENOSPC) if fault.how.startswith(SHORT) else fault.error.strerror)


def check_messages(messages: list[str], reason: str) -> None:
    """There is one message, which names the reason; or none, if there is no reason."""
    expect(len(messages) == bool(reason), f"{len(messages)} messages: {messages}")
    expect(not reason or reason in messages[0], f"{reason} is not in {messages}")


def crash(scene: Scene, outcome: Outcome, count: int, rng: random.Random) -> None:
    """Crash after every operation of a resumed run that saves three states, with other losses each time."""
    run, fault, ends = scene.copy(), Fault(), {OLD: 0}
    log_events(run, OLD, OLD + 3)  # they will be logged again
    begin = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with fault.at(run.folder):
        run.rewind_log(OLD)
        for before, step in itertools.pairwise((OLD, NEW, LATER, LAST)):
            save(run, before, step)
            ends[step] = len(fault.operations)
    log = run.log_path.read_bytes().splitlines(keepends=True)
    moments = rng.sample(range(len(fault.operations) + 1), len(fault.operations) + 1)
    for number, done in enumerate(itertools.islice(itertools.cycle(moments), count)):
        left = after_crash(begin, fault.operations[:done], RUN, rng)
        with outcome.attempt(f"crash {number}, after {done} operations"):
            shutil.rmtree(run.folder)
            run.folder.mkdir()
            for name, data in left.items():
                (run.folder / name).write_bytes(data)
            step = scene.check(run, least=max(step for step, end in ends.items() if end <= done), damaged=True)
            for path in run.folder.glob("*.safetensors"):
                saved = path.read_bytes() in (*scene.models, *scene.states.values())
                expect(saved or refusal(path), f"{path.name} loads, but nobody saved it")
            scene.check_tidy(run)
            run.rewind_log(step)
            right = run.log_path.read_bytes() == b"".join(log[:step])
            expect(right, f"the log lacks what the state of step {step} counts on")


def damaged(way: str, data: bytes, rng: random.Random) -> bytes:
    """Bytes of which a block is lost, repeated or changed: at the beginning, in the middle or at the end."""
    if way == "flipped":  # half of the time in the header, which is the smaller part
        bit = rng.randrange(8 * rng.choice((8 + int.from_bytes(data[:8], "little"), len(data))))
        return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
    size = min(len(data), rng.choice((1, 8, 16, 64, 512, 4096, rng.randrange(1, len(data)), len(data))))
    start, second = (rng.randrange(len(data) - size + 1) for _ in range(2))
    if way in ("truncated", "extended"):
        start = rng.choice((0, len(data) - size))
    block, other, end = data[start : start + size], data[second : second + size], start + size
    if way == "extended":
        more = rng.choice((bytes(size), rng.randbytes(size), b"\n" * size, data))
        return data + more if start else more + data
    if way == "swapped" and rng.random() < 0.7:  # both change places
        data = data[:second] + block + data[second + size :]
    zeroed, moved = rng.choice((b"\0", b"\xff")) * size, rng.choice((b"", 2 * block))
    return data[:start] + {"truncated": b"", "zeroed": zeroed, "moved": moved, "swapped": other}[way] + data[end:]


def damage(scene: Scene, ways: list[str], outcome: Outcome, count: int, rng: random.Random) -> None:
    """Damage the model and the newest state in turn, in each way in turn: they are refused by name.

    The run falls back to the state before it.
    """
    run = scene.copy()
    for number in range(count):
        way, path = ways[number // 2 % len(ways)], run.state_path(OLD) if number % 2 else run.model_path
        good = bad = path.read_bytes()
        while bad == good:  # as zeros where there were zeros
            bad = damaged(way, good, rng)
        path.write_bytes(bad)
        with outcome.attempt(f"{way}, number {number}, {path.name}"):
            error = refusal(path)
            expect(error.startswith(f"{path}: "), f"refused with: {error}")
            if path != run.model_path:
                saved = run.newest_state()
                right = saved and saved.path == run.state_path(OLDEST) and saved.damaged == (error,)
                expect(right, f"fell back to {saved and saved.path}, of {saved and saved.damaged}")
        path.write_bytes(good)
