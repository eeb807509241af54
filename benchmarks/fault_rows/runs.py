"""The scene of every row about processes: something happens to a run, and it must end as if nothing had.

The same command is given again, and then everything that the run has written is compared with
what an undisturbed run of the same setting wrote, byte by byte.
"""

import functools
import itertools
import json
import math
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fault_rows.forks import PRECISIONS, Child, concurrently, ended
from fault_rows.internals import CELLS, load_model, read_tensors
from fault_rows.outcome import Outcome, Row, expect, problem_of

RUN = "run"  # the name of every run here
FILES = Path("checkpoints", RUN)
MODEL = "model.safetensors"
SAVE_EVERY = (0.0, 0.02, 0.1, 60.0)  # seconds; a run's result does not depend on it
_SIZES = "--num-layers 2 --hidden-size 20 --embedding-dim 8 --batch-size 24 --seq-len 16 --learning-rate 0.01"
_DROPOUT = {True: "--dropout 0.2 --weight-drop 0.1", False: "--dropout 0"}
_OF_THE_CLOCK = ("chars_per_second", "seconds_left")
_OF_A_SITTING = ("resumed", "warning")  # events
_WORDS = ("ba", "bane", "dor", "dorin", "e", "ilu", "kest", "lo", "mirra", "na", "ost", "sa", "tul", "ven")


def make_text(length: int) -> str:
    """Lines of words of a made-up language with some order in it."""
    rng, text = random.Random(0), ""
    while len(text) < length:
        first = rng.randrange(len(_WORDS))
        words = [_WORDS[(first + k * rng.choice((1, 1, 2))) % len(_WORDS)] for k in range(rng.randint(3, 7))]
        text += " ".join(words) + ".\n"
    return text[:length]


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
        self.model, self.log = self.run / MODEL, self.run / "log.jsonl"

    def states(self) -> list[Path]:
        """The states, newest first."""
        found = self.run.glob("state-*.safetensors")
        return sorted(found, key=lambda path: -int(path.stem.removeprefix("state-")))

    def num_lines(self) -> int:
        """Whole lines of the log."""
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """The log's events, all or of a kind, without what the clock says and what belongs to one sitting."""
        text = self.log.read_text("utf-8")
        expect(not re.search(r"\bNaN\b|Infinity", text), "log.jsonl: a value that is not finite")
        events = [json.loads(line) for line in text.splitlines()]
        return [
            {name: value for name, value in event.items() if name not in _OF_THE_CLOCK}
            for event in events
            if event["event"] not in _OF_A_SITTING and kind in ("", event["event"])
        ]

    def is_over(self) -> bool:
        """Whether the run has come to its end."""
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
        ours = {MODEL, "log.jsonl", ".lock", "report.html", *(path.name for path in self.states()[:2])}
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
        self.setting, self.number, self.rng, self.text = setting, number, random.Random(seed), scratch / "text.txt"
        self.whole = Files(scratch / "-".join(map(str, setting)))
        self.counts: Counter[str] = Counter()

    def command(self, *more: object, steps: int = 200, save_every: float = 0.02) -> list[str]:
        """The command line of the run; all runs read the same text, because files name its path."""
        cell, dropout, precision, threads = self.setting
        where = ["--run", RUN, "--device", "cpu", "--cell", cell, "--precision", precision, "--threads", threads]
        sizes = [*_SIZES.split(), *_DROPOUT[dropout].split(), "--test-fraction", "0.05"]
        budget = ["--steps", steps, "--save-every", save_every]
        return list(map(str, ["train", self.text, *where, *sizes, *budget, *more]))

    def train(self, *more: object, save_every: float = 0.02, **options: Any) -> Child:
        """Start the run."""
        return Child(self.command(*more, save_every=save_every), self.folder, **options)

    def wait_for_line(self, child: Child, number: int) -> bool:
        """Wait until the log has so many lines; False if the process ended before."""
        return child.wait_for(lambda: self.num_lines() >= number)

    def finish(self, *more: object) -> None:
        """Give the same command again; it must succeed."""
        code, child = ended(self.command(*more), self.folder, tag="end")
        expect(code == 0, f"the same command then ended with {code}: {child.last_line()}")

    def check_resumed(self) -> None:
        """What is there is whole; the same command goes on, to the undisturbed run's bytes."""
        self.check_whole()
        self.finish()
        self.check_equal(self.whole)

    def clear(self) -> None:
        """Empty the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()


class Bench:
    """A folder for the runs of all rows, and their settings."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch, rng = scratch, random.Random(seed)
        others = list(itertools.product((False, True), PRECISIONS, (1, 2, 3)))
        of_each = [[Setting(cell, *other) for other in rng.sample(others, len(others))] for cell in CELLS]
        self.settings = list(itertools.chain(*zip(*of_each, strict=True)))  # every cell before one comes again

    def row(
        self,
        fault: str,
        must_hold: str,
        counts: tuple[int, int, int],
        trial: Callable[[Try], None],
        *,
        precision: str | None = None,
        tries: int = 1,
    ) -> Row:
        """A row that calls a trial for one setting after the other. tries: how many a trial counts for."""

        def fill(outcome: Outcome, count: int, rng: random.Random) -> None:
            usable = [setting for setting in self.settings if precision in (None, setting.precision)]
            outcome.skipped = "" if usable else f"this processor has no fast {precision}"
            settings = enumerate(itertools.islice(itertools.cycle(usable), count))
            runs = [Try(setting, self.scratch, number, rng.getrandbits(63)) for number, setting in settings]
            total: Counter[str] = Counter()
            for run, problem in concurrently(functools.partial(_attempt, trial), runs):
                outcome.note(f"{run.setting}, number {run.number}", problem, tries=tries)
                total += run.counts
            notes = ", ".join(f"{number} {what}" for what, number in total.items())
            outcome.fault += f" ({notes})" if notes else ""

        return fault, must_hold, counts, fill


def _attempt(trial: Callable[[Try], None], run: Try) -> tuple[Try, str | None]:
    """Call a trial, after the undisturbed run of its setting, if that is the first one."""
    whole, seconds = run.whole, run.whole.folder / "seconds"
    if not seconds.exists():
        whole.folder.mkdir()
        begun = time.monotonic()
        code, child = ended(run.command(), whole.folder)
        expect(code == 0, f"{run.setting}: exit code {code}: {child.errors()}")
        whole.check_ended()
        seconds.write_text(str(time.monotonic() - begun))
    run.clear()
    return run, problem_of(trial, run)
