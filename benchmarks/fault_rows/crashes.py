"""Rows about what a disk may do to files: writes that are lost in a crash, and bytes that change.

The operations of real saves are recorded. A crash after the first n of them leaves of each file
what was flushed by then, and of what came after it the whole, nothing, a part, or zeros; and of
the folder's changes since it was last flushed some, or those up to a moment.
"""

import functools
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from fault_rows.disk import Fault, Operation
from fault_rows.internals import ModelFileError, Run, load_model, read_tensors, save_model
from fault_rows.outcome import Outcome, Row, expect, problem_of
from fault_rows.runs import RUN
from fault_rows.saves import LAST, LATER, NEW, OLD, OLDEST, Scene, log_events, make_model, num_events, save_state

_LOADS = "the last whole state or a newer one loads, with its model and its part of the log; none is another's"
_REFUSED = "refused by an error that names the file; a run falls back to the state before it, and says so"
_MODELS = {OLDEST: 0, OLD: 0, NEW: 1, LATER: 1, LAST: 2}  # the number of the model that a state counts on


def rows(scene: Scene) -> list[Row]:
    """The rows of the table, in its order."""
    lost, bit = "lost writes: a crash at every operation of some saves", "one random bit flipped in a model or a state"
    more = "truncated, extended, blocks zeroed, swapped or moved"
    ways = ["truncated", "extended", "zeroed", "swapped", "moved"]
    return [
        (lost, _LOADS, (20, 200, 1000), functools.partial(crash, scene)),
        (bit, _REFUSED, (20, 500, 3000), functools.partial(damage, scene, ["flipped"])),
        (more, _REFUSED, (20, 200, 1000), functools.partial(damage, scene, ways)),
    ]


class _File:
    """A file's bytes, of which the first so many are flushed."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.flushed = data, len(data)

    def after_crash(self, rng: random.Random) -> bytes:
        """What is flushed, and something of the rest."""
        whole, lost = self.data[: self.flushed], self.data[self.flushed :]
        way = rng.choice(("nothing", "all", "cut", "zeros", "blocks", "cut zeros"))
        if "cut" in way:
            lost = lost[: rng.randint(0, len(lost))]
        if "zeros" in way:
            lost = bytes(len(lost))
        if way == "blocks":
            blocks = [lost[start : start + 512] for start in range(0, len(lost), 512)]
            lost = b"".join(rng.choice((block, bytes(len(block)))) for block in blocks)
        return whole + lost * (way != "nothing")


class Disk:
    """A folder's files by name, as flushed and as seen before the crash; waiting: new names that aren't flushed."""

    def __init__(self, folder: Path) -> None:
        self.seen: dict[str, _File | None] = {path.name: _File(path.read_bytes()) for path in folder.iterdir()}
        self.flushed, self.waiting = dict(self.seen), list[dict[str, _File | None]]()

    def apply(self, operation: Operation) -> None:
        """Do one recorded operation."""
        kind, name = operation.kind, operation.path.name
        file = self.seen.get(name)
        if kind == "fsync" and name == RUN:
            self.flushed, self.waiting = dict(self.seen), []
        elif kind == "open" and file is None and name != RUN:
            self._rename({name: _File()})
        elif kind == "write" and file:
            file.data += operation.data
        elif kind == "replace" and operation.target:
            self._rename({name: None, operation.target.name: file})
        elif kind == "unlink":
            self._rename({name: None})
        elif kind == "fsync" and file:
            file.flushed = len(file.data)

    def _rename(self, change: dict[str, _File | None]) -> None:
        """Change names, at once for readers and some time later on the disk."""
        self.seen |= change
        self.waiting.append(change)

    def after_crash(self, rng: random.Random) -> dict[str, bytes]:
        """Contents by name after the power failed."""
        end, in_order = rng.randint(0, len(self.waiting)), rng.random() < 0.5
        left = [change for i, change in enumerate(self.waiting) if (i < end if in_order else rng.random() < 0.5)]
        names = functools.reduce(dict.__or__, left, self.flushed)
        return {name: file.after_crash(rng) for name, file in names.items() if file}


def start(scene: Scene) -> Run:
    """The folder that a session begins with: some events were logged after the state, and will be logged again."""
    run = scene.copy()
    log_events(run, num_events(OLD), num_events(OLD) + 3)
    return run


def session(run: Run) -> Iterator[int]:
    """A resumed run that saves three states, two of them with a better model: the step of each, when it is saved."""
    run.rewind_log(num_events(OLD))
    for before, step in itertools.pairwise((OLD, NEW, LATER, LAST)):
        log_events(run, num_events(before), num_events(step))
        if _MODELS[step] > _MODELS[before]:
            save_model(run.model_path, make_model(_MODELS[step]))
        save_state(run, step)
        yield step


def crash(scene: Scene, outcome: Outcome, count: int, rng: random.Random) -> None:
    """Crash after every operation in turn, with other losses each time."""
    run, fault = start(scene), Fault()
    operations = fault.operations
    with fault.at(run.folder):
        ends = {OLD: 0} | {step: len(operations) for step in session(run)}
    log = run.log_path.read_bytes().splitlines(keepends=True)
    moments = rng.sample(range(len(operations) + 1), len(operations) + 1)
    for number, done in enumerate(itertools.islice(itertools.cycle(moments), count)):
        disk = Disk(start(scene).folder)
        for operation in operations[:done]:
            disk.apply(operation)
        least = max(step for step, end in ends.items() if end <= done)
        name = f"crash {number}, after {done} operations"
        outcome.note(name, problem_of(check_crash, scene, disk.after_crash(rng), least, log))


def check_crash(scene: Scene, contents: dict[str, bytes], least: int, log: list[bytes]) -> None:
    """The newest state that had been saved is there, with its model and its log, and nothing else loads."""
    run = scene.copy()
    for path in run.folder.iterdir():
        path.unlink()
    for name, data in contents.items():
        (run.folder / name).write_bytes(data)
    step, model = scene.check(run, least=least, damaged=True)
    for path in run.folder.glob("*.safetensors"):
        saved = path.read_bytes() in (*scene.models, *scene.states.values())
        expect(saved or refusal(run, path), f"{path.name} loads, but nobody saved it")
    expect(model >= _MODELS[step], f"the state of step {step} counts on a later model")
    scene.check_tidy(run)
    run.rewind_log(num_events(step))
    right = run.log_path.read_bytes() == b"".join(log[: num_events(step)])
    expect(right, f"the log lacks what the state of step {step} counts on")


def refusal(run: Run, path: Path) -> str | None:
    """The error that a model or a state is refused with; None if it loads."""
    try:
        load_model(path) if path == run.model_path else read_tensors(path, kind="state")
    except ModelFileError as error:
        return str(error)
    return None


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
    if way == "truncated":
        return data[:start] + data[end:]
    if way == "extended":
        more = rng.choice((bytes(size), rng.randbytes(size), b"\n" * size, data))
        return data + more if start else more + data
    if way == "zeroed":
        return data[:start] + rng.choice((b"\0", b"\xff")) * size + data[end:]
    if way == "moved":
        return data[:start] + rng.choice((b"", 2 * block)) + data[end:]
    if rng.random() < 0.7:  # both change places
        data = data[:second] + block + data[second + size :]
    return data[:start] + other + data[end:]


def damage(scene: Scene, ways: list[str], outcome: Outcome, count: int, rng: random.Random) -> None:
    """Damage the model and the newest state in turn, in each way in turn."""
    run = scene.copy()
    for number in range(count):
        way, path = ways[number // 2 % len(ways)], run.state_path(OLD) if number % 2 else run.model_path
        good = bad = path.read_bytes()
        while bad == good:  # as zeros where there were zeros
            bad = damaged(way, good, rng)
        path.write_bytes(bad)
        outcome.note(f"{way}, number {number}, {path.name}", problem_of(check_damaged, run, path))
        path.write_bytes(good)


def check_damaged(run: Run, path: Path) -> None:
    """A damaged file is refused by name; the run falls back to the state before it."""
    error = refusal(run, path)
    expect(error and error.startswith(f"{path}: "), f"refused with: {error}")
    if path != run.model_path:
        saved = run.newest_state()
        right = saved and saved.path == run.state_path(OLDEST) and saved.damaged == (error,)
        expect(right, f"fell back to {saved and saved.path}, of {saved and saved.damaged}")
