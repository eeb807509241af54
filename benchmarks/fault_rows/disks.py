"""A disk that loses what it wasn't told to keep: every moment of some saves, and what a crash may leave then.

The operations of real saves are recorded. A crash after the first n of them leaves of each file
what was flushed by then, and of what came after it the whole, nothing, a part, or zeros; and of
the folder's changes since it was last flushed some, or those up to a moment.
"""

import itertools
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from charrnn.errors import ModelFileError
from charrnn.model.file import load_model, read_tensors, save_model
from charrnn.training.folder import Run
from fault_rows.outcome import Outcome
from fault_rows.scene import NEW, OLD, OLDEST, RUN, Scene, log_events, make_model, make_state, num_events
from fault_rows.watching import Operation, watched

MUST_HOLD = "the last whole state or a newer one loads, with its model and its part of the log; none is another's"
LOST = "lost writes: a crash at every operation of some saves"
STEPS = (OLDEST, OLD, NEW, 40, 50)
_BLOCK = 512  # bytes that a disk writes at once


@dataclass
class Session:
    """What a run did: its operations, how many of them there were when each state was saved, its models and its log."""

    operations: list[Operation] = field(default_factory=list)
    saved: list[tuple[int, int]] = field(default_factory=list)  # operations done, step
    model_of: dict[int, int] = field(default_factory=dict)  # the number of the model that a state counts on
    log: list[bytes] = field(default_factory=list)  # its lines, when all was done

    def note(self, operation: Operation) -> Any:
        """The handler that records."""
        self.operations.append(operation)
        return operation.act()

    @classmethod
    def record(cls, scene: Scene) -> "Session":
        """A resumed run that saves three states, two of them with a better model."""
        session, run, model = cls(model_of={OLDEST: 0, OLD: 0}), scene.copy(), 0
        log_events(run, num_events(OLD), num_events(OLD) + 3)  # told after the state, and told again after resuming
        with watched(run.folder, session.note):
            run.rewind_log(num_events(OLD))
            for before, step in itertools.pairwise(STEPS[1:]):
                log_events(run, num_events(before), num_events(step))
                if step != 40:
                    model += 1
                    save_model(run.model_path, make_model(model))
                state = make_state(step)
                run.save_state(step, state.tensors, state.meta)
                session.saved.append((len(session.operations), step))
                session.model_of[step] = model
        session.log = run.log_path.read_bytes().splitlines(keepends=True)
        return session

    def least(self, num_done: int) -> int:
        """The step of the newest state that a run had saved when so many operations were done."""
        return max([OLD, *(step for done, step in self.saved if done <= num_done)])


@dataclass
class _File:
    """A file's bytes: as flushed, and as a reader sees them before the crash."""

    flushed: bytes
    written: bytes


class Disk:
    """Files by number, and two tables of names: as flushed, and as seen before the crash."""

    def __init__(self, folder: Path) -> None:
        contents = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.files = [_File(data, data) for data in contents.values()]
        self.flushed = {name: number for number, name in enumerate(contents)}
        self.names = dict(self.flushed)
        self.waiting: list[tuple[str, int, str]] = []  # changes of names: what, which file, from where
        self.folder = folder

    def apply(self, operation: Operation) -> None:
        """Do one operation of a session."""
        kind, name = operation.kind, operation.path.name
        if kind == "open" and operation.path.name not in self.names and name != RUN:
            self.files.append(_File(b"", b""))
            self._change((name, len(self.files) - 1, ""))
        elif kind == "write":
            self.files[self.names[name]].written += operation.data
        elif kind == "replace":
            assert operation.target is not None
            self._change((operation.target.name, self.names[name], name))
        elif kind == "unlink":
            self._change(("", self.names[name], name))
        elif kind == "fsync" and name == RUN:
            self.flushed, self.waiting = dict(self.names), []
        elif kind == "fsync":
            file = self.files[self.names[name]]
            file.flushed = file.written

    def _change(self, change: tuple[str, int, str]) -> None:
        """Change a name at once for readers, and for the disk some time."""
        self.waiting.append(change)
        _rename(self.names, change)

    def crash(self, rng: random.Random) -> dict[str, bytes]:
        """What is there after the power failed: content by name."""
        names = dict(self.flushed)
        if rng.random() < 0.5:
            changes = self.waiting[: rng.randint(0, len(self.waiting))]
        else:
            changes = [change for change in self.waiting if rng.random() < 0.5]
        for change in changes:
            _rename(names, change)
        return {name: _what_is_left(self.files[number], rng) for name, number in names.items()}


def _rename(names: dict[str, int], change: tuple[str, int, str]) -> None:
    """Carry a change of names out."""
    target, number, source = change
    names.pop(source, None)
    if target:
        names[target] = number


def _what_is_left(file: _File, rng: random.Random) -> bytes:
    """Of a file's bytes, after a crash."""
    kept, lost = file.flushed, file.written[len(file.flushed) :]
    if not lost:
        return kept
    way = rng.choice(("nothing", "all", "cut", "zeros", "blocks", "cut and zeros"))
    if way == "nothing":
        return kept
    if way.startswith("cut"):
        lost = lost[: rng.randint(0, len(lost))]
    if way.endswith("zeros"):
        lost = bytes(len(lost))
    if way == "blocks":
        blocks = [lost[start : start + _BLOCK] for start in range(0, len(lost), _BLOCK)]
        lost = b"".join(block if rng.random() < 0.5 else bytes(len(block)) for block in blocks)
    return kept + lost


def lost_row(root: Path, *, count: int, rng: random.Random) -> Outcome:
    """Crashes at every moment in turn, with other losses each time."""
    outcome = Outcome(LOST, MUST_HOLD)
    scene = Scene.build(root, steps=STEPS, num_models=3)
    session = Session.record(scene)
    start = scene.root / "start"
    shutil.copytree(scene.root / "base", start)
    log_events(Run(RUN, start), num_events(OLD), num_events(OLD) + 3)
    moments = list(range(len(session.operations) + 1))
    rng.shuffle(moments)
    for number in range(count):
        num_done = moments[number % len(moments)]
        disk = Disk(start / RUN)
        for operation in session.operations[:num_done]:
            disk.apply(operation)
        run = _put(scene, disk.crash(rng))
        wrong = _wrong(scene, session, run, num_done)
        outcome.note(wrong and f"crash {number}, after {num_done} operations: {wrong}")
    return outcome


def _put(scene: Scene, contents: dict[str, bytes]) -> Run:
    """A folder with these files."""
    run = Run(RUN, scene.root / "crashed")
    if run.root.exists():
        shutil.rmtree(run.root)
    run.folder.mkdir(parents=True)
    for name, data in contents.items():
        (run.folder / name).write_bytes(data)
    return run


def _wrong(scene: Scene, session: Session, run: Run, num_done: int) -> str | None:
    """What doesn't hold after the crash."""
    wrong = scene.wrong(run, least=session.least(num_done), damage=True) or _loads_wrongly(scene, run)
    if wrong:
        return wrong
    saved = run.newest_state()
    assert saved is not None
    step = saved.meta["step"]
    if scene.models.index(run.model_path.read_bytes()) < session.model_of[step]:
        return f"{saved.path.name} counts on a later model"
    wrong = scene.litter(run)
    run.rewind_log(num_events(step))
    is_whole = run.log_path.read_bytes() == b"".join(session.log[: num_events(step)])
    return wrong or (None if is_whole else f"the log lacks what {saved.path.name} counts")


def _loads_wrongly(scene: Scene, run: Run) -> str | None:
    """A file of whatever name that loads, though it isn't one that was saved."""
    for path in run.folder.glob("*.safetensors"):
        try:
            load_model(path) if path == run.model_path else read_tensors(path, kind="state")
        except ModelFileError:
            continue
        if path.read_bytes() not in (*scene.models, *scene.states.values()):
            return f"{path.name} loads, but nobody saved it"
    return None
