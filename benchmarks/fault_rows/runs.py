"""Runs in forked processes: something happens to one, and it must end as if nothing had.

Forks save the seconds that imports and kernels take. After the fault the same command is given again,
then all files of the run are compared with those of an undisturbed run of the same setting, byte by byte.
"""

import contextlib
import ctypes
import gc
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import charrnn
from charrnn.cli import main
from charrnn.config import CELLS
from charrnn.errors import ModelFileError
from charrnn.files import MODEL_NAME, kernel_cache
from charrnn.hardware import available_cores
from charrnn.model.container import read_tensors
from charrnn.model.file import load_model
from charrnn.numerics.processor import has_fast_bfloat16
from charrnn.runs.folder import LOG_NAME, REPORT_NAME, SESSION_EVENTS
from fault_rows.outcome import Outcome, expect

PATIENCE = 120.0  # seconds, after which a process hangs
PRECISIONS = ("float32", "bfloat16") if has_fast_bfloat16() else ("float32",)
FORK = multiprocessing.get_context("fork")
RUN = "run"  # the name of every run here
FILES = Path("checkpoints", RUN)
SAVE_EVERY = (0.0, 0.02, 0.1, 60.0)  # seconds; a run's result does not depend on it
_PR_SET_PDEATHSIG = 1
_SIZES = "--num-layers 2 --hidden-size 20 --embedding-dim 8 --batch-size 24 --seq-len 16 --learning-rate 0.01"
_DROPOUT = {True: "--dropout 0.2 --weight-drop 0.1", False: "--dropout 0"}
_OF_THE_CLOCK = ("chars_per_second", "seconds_left")
_WORDS = ("ba", "bane", "dor", "dorin", "e", "ilu", "kest", "lo", "mirra", "na", "ost", "sa", "tul.\n", "ven")


def prepare(scratch: Path) -> None:
    """Write the text; use every cell once in this process, so that forks find all imported and all kernels loaded."""
    (scratch / "text.txt").write_text(make_text(12_000), encoding="utf-8")
    os.environ["NUMBA_CACHE_DIR"] = str(kernel_cache())  # for all processes, whatever their cache of texts is
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
    settings = [Setting(cell, True, precision, 1) for cell, precision in itertools.product(CELLS, PRECISIONS)]
    commands = [Try(setting, scratch, 0, 0).command("--fresh", "--quiet", steps=2) for setting in settings]
    commands += [["eval", "--device", "cpu", "--threads", "1"], ["sample", "-n", "5", "--seed", "1", "--threads", "1"]]
    with open(os.devnull, "w") as out, contextlib.redirect_stdout(out), contextlib.chdir(scratch):
        for command in commands:
            expect(not main.build_app()(command, standalone_mode=False), f"{command} failed")
    expect(wait_until(lambda: threading.active_count() == 1), f"a fork would lack {threading.enumerate()}")
    gc.freeze()  # a collection in a fork would copy everything that it shares with this process


def start_afresh(**variables: str) -> None:
    """Start the interpreter afresh for a command, as the installed command does; for Child's `before`.

    Python doesn't look for modules in the current folder. variables: of its environment.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(charrnn.__file__).parents[1]), **variables}
    os.execve(sys.executable, [sys.executable, "-P", "-m", "charrnn", *sys.argv[1:]], environment)


def in_fork(work: Callable[[], Any]) -> int | None:
    """Do something in a process of its own; how that ended, -n by signal n, None if it hung."""
    process = FORK.Process(target=work)
    process.start()
    process.join(PATIENCE)
    process.kill()
    return process.exitcode


class Child(FORK.Process):
    """One command in a process of its own, in a folder, with its output in files there; it dies with its parent.

    tag: the files' name. before: what the process does first, in its folder; there it may break things.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path, *, tag: str = "last", before: Callable[[], Any] | None = None
    ) -> None:
        super().__init__()
        self.arguments, self.folder, self.before = arguments, folder, before
        self.out, self.err = folder / f"{tag}.out", folder / f"{tag}.err"
        self.start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.join()

    def run(self) -> None:
        """Be the command; it ends with SystemExit, which multiprocessing turns into the exit code."""
        _die_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for number, path in ((1, self.out), (2, self.err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644), number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(self.folder)
        os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")
        sys.argv = ["charrnn", *self.arguments]
        if self.before:
            self.before()
        main.main()

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """Wait for its end; return how it ended, -n by signal n, or None if it still runs."""
        wait_until(lambda: self.exitcode is not None, seconds)
        return self.exitcode

    def wait_for(self, holds: Callable[[], bool]) -> bool:
        """Wait until something holds; False if the process ended before it did."""
        return wait_until(lambda: holds() or self.exitcode is not None) and holds()

    def must_end(self, *codes: int) -> None:
        """Wait for its end, which must be one of these."""
        code = self.wait()
        expect(code in codes, f"{self.arguments[0]} ended with {code}: {self.last_line()}")

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended: its number may be another's by now."""
        if self.exitcode is None:
            os.kill(self.pid, number)

    def errors(self) -> str:
        return self.err.read_text(encoding="utf-8", errors="replace") if self.err.exists() else ""

    def last_line(self) -> str:
        return (self.errors().strip().splitlines() or ["(nothing)"])[-1]


def run_command(arguments: Sequence[str], folder: Path, codes: Sequence[int] = (0,), **options: Any) -> Child:
    """Run a command to its end, which must be one of these codes; return the process."""
    with Child(arguments, folder, **options) as child:
        child.must_end(*codes)
    return child


def wait_until(holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait until something holds, but not forever; return whether it does."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)
    return holds()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def make_text(length: int) -> str:
    """Words of a made-up language."""
    return " ".join(random.Random(0).choices(_WORDS, k=length))[:length]


def refusal(path: Path) -> str:
    """The error that a model or a state is refused with; nothing if it loads."""
    try:
        load_model(path) if path.name == MODEL_NAME else read_tensors(path, kind="state")
    except ModelFileError as error:
        return str(error)
    return ""


class Setting(NamedTuple):
    """What a run's result depends on, besides its text."""

    cell: str
    dropout: bool
    precision: str
    threads: int


class Files:
    """What runs in a folder have written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / FILES
        self.model, self.log = self.run / MODEL_NAME, self.run / LOG_NAME

    def states(self) -> list[Path]:
        """The states, newest first."""
        return sorted(self.run.glob("state-*.safetensors"), key=lambda path: -int(path.stem.removeprefix("state-")))

    def num_lines(self) -> int:
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """The log's events, all or of a kind, without what the clock says and what belongs to one session."""
        text = self.log.read_text("utf-8")
        expect(not re.search(r"\bNaN\b|Infinity", text), "log.jsonl: a value that is not finite")
        return [
            {name: value for name, value in event.items() if name not in _OF_THE_CLOCK}
            for event in map(json.loads, text.splitlines())
            if event["event"] not in SESSION_EVENTS and kind in ("", event["event"])
        ]

    def is_over(self) -> bool:
        return self.num_lines() > 0 and self.events()[-1]["event"] == "finished"

    def check_whole(self) -> None:
        """The model and the states that are there, at a moment when nobody writes, are whole and finite."""
        if self.model.exists():
            expect(math.isfinite(load_model(self.model).scores["nats_per_char"]), "the model has no score")
        for path in self.states():
            for name, tensor in read_tensors(path, kind="state")[0].items():
                expect(np.isfinite(tensor).all(), f"{path.name}: {name} is not finite")

    def check_ended(self) -> None:
        """A run that has ended by itself leaves whole files, two states, no temporary file, no name of its process."""
        self.check_whole()
        ours = {MODEL_NAME, LOG_NAME, ".lock", REPORT_NAME, *(path.name for path in self.states()[:2])}
        odd = {path.name for path in self.run.iterdir()} - ours
        expect(not odd, f"left behind: {odd}")

    def check_equal(self, whole: "Files") -> None:
        """A finished run has another's model, newest state and log, and nothing else is left."""
        for expected in (whole.model, whole.states()[0]):
            path = self.run / expected.name
            expect(path.exists(), f"{path.name} is missing")
            expect(path.read_bytes() == expected.read_bytes(), f"{path.name} differs")
        expect(self.states()[0].name == whole.states()[0].name, f"the newest state is {self.states()[0].name}")
        for number, (ours, theirs) in enumerate(itertools.zip_longest(self.events(), whole.events())):
            expect(ours == theirs, f"log.jsonl, event {number}: {str(ours)[:150]}, not {str(theirs)[:150]}")
        self.check_ended()


class Try(Files):
    """One run in a folder of its own; whole: the undisturbed run of the same setting.

    number: of the try in its row. counts: what the row reports of it.
    """

    def __init__(self, setting: Setting, scratch: Path, number: int, seed: int) -> None:
        super().__init__(scratch / f"try-{seed}")
        self.setting, self.number, self.text = setting, number, scratch / "text.txt"
        self.whole = Files(scratch / "-".join(map(str, setting)))
        self.rng, self.counts = random.Random(seed), Counter[str]()

    def command(self, *more: object, steps: int = 200, save_every: float = 0.02) -> list[str]:
        """The command line of the run; all runs read the same text, because files name its path."""
        cell, dropout, precision, threads = self.setting
        where = f"--run {RUN} --device cpu --cell {cell} --precision {precision} --threads {threads}"
        budget = f"--steps {steps} --save-every {save_every} --test-fraction 0.05"
        return ["train", str(self.text), *f"{where} {_SIZES} {_DROPOUT[dropout]} {budget}".split(), *map(str, more)]

    def train(self, *more: object, save_every: float = 0.02, **options: Any) -> Child:
        return Child(self.command(*more, save_every=save_every), self.folder, **options)

    def wait_for_line(self, child: Child, number: int) -> bool:
        return child.wait_for(lambda: self.num_lines() >= number)

    def finish(self, *more: object) -> None:
        """Give the same command again; it must succeed."""
        run_command(self.command(*more), self.folder, tag="end")

    def check_resumed(self) -> None:
        """What is there is whole; the same command goes on, to the undisturbed run's bytes."""
        self.check_whole()
        self.finish()
        self.check_equal(self.whole)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()


class Trials(NamedTuple):
    """Calls a trial for one setting after the other, some at a time. tries: how many a call counts for."""

    scratch: Path
    settings: list[Setting]
    trial: Callable[[Try], None]
    tries: int

    def __call__(self, outcome: Outcome, count: int, rng: random.Random) -> None:
        outcome.skipped = "" if self.settings else "this processor has no fast bfloat16"
        in_turn = enumerate(itertools.islice(itertools.cycle(self.settings), count))
        runs = [Try(setting, self.scratch, number, rng.getrandbits(63)) for number, setting in in_turn]
        counts = Counter[str]()
        with ProcessPoolExecutor(min(8, available_cores()), mp_context=FORK, initializer=_die_with_parent) as pool:
            for part, of_run in pool.map(self.attempt, runs):
                outcome.add(part)
                counts += of_run
        outcome.fault += f" ({', '.join(f'{number} {what}' for what, number in counts.items())})" if counts else ""

    def attempt(self, run: Try) -> tuple[Outcome, Counter[str]]:
        """Call the trial, after the undisturbed run of its setting, if that is the first one."""
        seconds, part = run.whole.folder / "seconds", Outcome()
        if not seconds.exists():
            run.whole.folder.mkdir()
            begun = time.monotonic()
            run_command(run.command(), run.whole.folder)
            run.whole.check_ended()
            seconds.write_text(str(time.monotonic() - begun))
        run.clear()
        with part.attempt(f"{run.setting}, number {run.number}", tries=self.tries):
            self.trial(run)
        return part, run.counts


def make_settings(seed: int) -> list[Setting]:
    """All settings in a random order in which every cell comes before one comes again."""
    rng, others = random.Random(seed), list(itertools.product((False, True), PRECISIONS, (1, 2, 3)))
    of_each = [[Setting(cell, *other) for other in rng.sample(others, len(others))] for cell in CELLS]
    return list(itertools.chain(*zip(*of_each, strict=True)))
