"""The row about files that are made to harm their reader, with checksums that are right."""

import ctypes
import functools
import itertools
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_rows.forks import FORK, ended, in_fork
from fault_rows.impostors import HARM, Case, Good, cases
from fault_rows.internals import ModelFileError, load_model, read_tensors
from fault_rows.outcome import Outcome, Row, expect, problem_of
from fault_rows.runs import MODEL, make_text

_MUST_HOLD = "exit 4 in one line, within a second, in four times the file's size of memory; nothing is executed"
_SECONDS = 1.0  # of the processor
_MEMORY = 16 << 20  # bytes beyond four times the file's
_SPACE = 1 << 30  # bytes of addresses that a process may take beyond what it begins with
_M_MMAP_THRESHOLD = -3
_PATIENCE = 30.0  # seconds, after which a process hangs
_HARMLESS = (0, 2, 3, 4, 7)  # how commands may end with files that only say odd things
_TRAIN = "train text.txt --quiet --threads 1 --device cpu --precision float32"
_GOOD = "--test-fraction 0.1 --cell lstm --num-layers 2 --hidden-size 8 --embedding-dim 4 --batch-size 4 --seq-len 8"


def row(folder: Path) -> Row:
    """The row of the table."""
    counts = (15, 200, 2000)
    return "hostile files, with checksums that are right", _MUST_HOLD, counts, functools.partial(fill, folder)


def fill(folder: Path, outcome: Outcome, count: int, rng: random.Random) -> None:
    """Try so many hostile files, of each family in turn; every fourth one goes through the command line as well."""
    if sys.platform != "linux":
        outcome.skipped = "memory is measured by Linux's /proc"
        return
    folder.mkdir()
    (folder / "text.txt").write_text(make_text(4000))
    code, child = ended(f"{_TRAIN} --run good {_GOOD} --steps 30".split(), folder)
    expect(code == 0, child.errors())
    good = folder / "checkpoints" / "good"
    older = min(good.glob("state-*.safetensors"), key=lambda path: int(path.stem.removeprefix("state-")))
    families = cases(Good(good / MODEL, "model"), Good(older, "state"))
    for family in families:
        rng.shuffle(family)
    in_turn = (case for several in itertools.zip_longest(*families) for case in several if case)
    for number, case in enumerate(itertools.islice(in_turn, count)):
        problem = problem_of(check_case, folder, good / MODEL, case, number % 4 == 0)
        outcome.note(case.name, problem)
        shutil.rmtree(folder / "checkpoints" / "hostile", ignore_errors=True)


def check_case(folder: Path, good: Path, case: Case, as_command: bool) -> None:
    """The function that reads such a file refuses it, and so do the commands; or, if it may load, nothing breaks."""
    is_model = case.kind == "model"
    path = folder / "checkpoints" / "hostile" / (MODEL if is_model else "state-20.safetensors")
    path.parent.mkdir()
    expect(in_fork(functools.partial(case.put, path)) == 0, "could not be made")
    room = path.lstat().st_blocks * 512
    load = (lambda: load_model(path)) if is_model else (lambda: read_tensors(path, kind="state"))
    refusal, seconds, grown = measured(load, lambda: load_model(good))
    expect(not refusal or refusal.startswith(f"{path}: "), f"the error doesn't name the file: {refusal}")
    used = f"{seconds:.2f} s, {grown / 1e6:,.0f} MB for a file of {room / 1e6:,.0f} MB"
    expect(seconds <= _SECONDS and grown <= 4 * room + _MEMORY, used)
    expect(refusal or case.may_load or not is_model, "loads")
    commands = [f"{_TRAIN} --run hostile".split()]
    if is_model:
        commands = [["info", str(path)], ["info", str(path), "--json"], ["eval", "--model", str(path)]]
    if refusal:
        commands = commands[:as_command]
    for arguments in commands:
        code, child = ended(arguments, folder, before=limit_space)
        errors = child.errors()
        result = f"{arguments[0]} ended with {code} and {errors[-300:]!r}"
        expect("Traceback" not in errors and (code == 0 or errors.count("\n") == 1), result)
        expect(code in (_HARMLESS if case.may_load and not refusal else (4,)), result)
    expect(not path.with_name(HARM).exists(), "was executed")


def measured(load: Callable[[], Any], warm_up: Callable[[], Any]) -> tuple[str, float, int]:
    """Read a file in a process of its own: the message it was refused with, seconds of the processor, bytes of memory.

    warm_up: the same with a good file, so that all code is in memory.
    """

    def measure() -> None:
        warm_up()
        limit_space()
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 17)  # the default, before the parent freed large blocks
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before, begun, refusal = peak(), time.process_time(), ""
        try:
            load()
        except ModelFileError as error:
            refusal = str(error)[:1000]
        theirs.send((refusal, time.process_time() - begun, peak() - before))

    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=measure)
    process.start()
    theirs.close()
    try:
        expect(ours.poll(_PATIENCE), "hangs")
        answer: tuple[str, float, int] = ours.recv()
        return answer
    finally:
        process.kill()
        process.join()


def peak() -> int:
    """Bytes of memory that this process has taken at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def limit_space() -> None:
    """Have the system refuse what a hostile file could make this process ask for."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _SPACE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
