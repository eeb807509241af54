"""What a trial of a training run is made with: settings, commands, moments, and how it is brought to its end."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fault_rows.compare import RUN, damage, difference, run_folder, told
from fault_rows.forks import PATIENCE, Child, new_folder

SAVE_EVERY = (0.0, 0.02, 0.1, 60.0)  # seconds; what a run does doesn't depend on it
STEPS = 200
_SIZES = "--num-layers 2 --hidden-size 20 --embedding-dim 8 --batch-size 24 --seq-len 16 --learning-rate 0.01"
_WORDS = ["ba", "bane", "dor", "dorin", "e", "ilu", "kest", "lo", "mirra", "na", "ost", "sa", "tul", "ven"]


def make_text(length: int, seed: int = 0) -> str:
    """Lines of words of a made-up language with some order in it."""
    rng, lines, done = random.Random(seed), [], 0
    while done < length:
        first = rng.randrange(len(_WORDS))
        line = " ".join(_WORDS[(first + k * rng.choice((1, 1, 2))) % len(_WORDS)] for k in range(rng.randint(3, 7)))
        lines.append(f"{line}.\n")
        done += len(line) + 2
    return "".join(lines)[:length]


@dataclass(frozen=True)
class Setting:
    """What a run's result depends on, besides its text."""

    cell: str
    dropout: bool
    precision: str
    threads: int

    def __str__(self) -> str:
        dropout = "dropout" if self.dropout else "no dropout"
        return f"{self.cell}, {dropout}, {self.precision}, {self.threads} threads"


@dataclass(frozen=True)
class Reference:
    """A run that nothing happened to: where it is, how many seconds it took, how many events it told."""

    folder: Path
    seconds: float
    num_events: int


@dataclass(frozen=True)
class Job:
    """One trial: a setting, a seed for all that is drawn, a place to work in, the run it is compared with."""

    setting: Setting
    seed: int
    scratch: Path
    text: Path
    reference: Reference | None = None

    def command(self, *more: object, steps: int = STEPS, save_every: float = 0.02) -> list[str]:
        """The command line of a run, without the program's name."""
        setting, dropout = self.setting, ["--dropout", "0.2", "--weight-drop", "0.1"]
        where = ["--cell", setting.cell, "--precision", setting.precision, "--threads", setting.threads]
        sizes = [*_SIZES.split(), *(dropout if setting.dropout else ["--dropout", "0"]), "--test-fraction", "0.05"]
        budget = ["--steps", steps, "--save-every", save_every]
        # the text is named by its path, which the files tell; so it is the same one for all
        return list(map(str, ["train", self.text, "--run", RUN, "--device", "cpu", *where, *sizes, *budget, *more]))

    @property
    def whole(self) -> Reference:
        """The run it is compared with."""
        assert self.reference is not None
        return self.reference


@dataclass
class Tried:
    """What became of a trial: for each thing that had to hold, why it didn't or None; and how often what happened."""

    results: list[str | None]
    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds, of what had to happen at once


def tried_once(job: Job, failure: str | None, counts: Counter[str] | None = None, slowest: float = 0.0) -> Tried:
    """A trial with one result."""
    named = None if failure is None else f"{job.setting}, seed {job.seed}: {failure}"
    return Tried([named], counts or Counter(), slowest)


def uninterrupted(job: Job) -> tuple[Setting, Reference]:
    """Run it undisturbed."""
    folder = new_folder(job.scratch)
    with Child(job.command(), folder) as child:
        code = child.wait()
        seconds = time.monotonic() - child.begun
        assert code == 0, f"{job.setting}: exit code {code}: {child.errors()}"
    assert damage(folder) is None
    return job.setting, Reference(folder, seconds, num_lines(folder))


def ends_alike(job: Job, folder: Path) -> str | None:
    """Give the command once more, and compare with the undisturbed run."""
    with Child(job.command(), folder, tag="end") as child:
        code = child.wait()
        if code != 0:
            return f"the same command then ended with {code}: {last_line(child)}"
    return difference(job.whole.folder, folder)


def stop_at(job: Job, folder: Path, line: int, number: int = signal.SIGTERM) -> int | None:
    """Train until the log has so many lines, then send a signal; how it ended, None if it hung."""
    with Child(job.command(), folder, tag="first") as child:
        wait_for_line(child, folder, line)
        child.send(number)
        return child.wait()


def wait_for_line(child: Child, folder: Path, line: int) -> bool:
    """Wait until a run's log has so many lines; False if it ended before."""
    return wait_for(child, lambda: num_lines(folder) >= line)


def wait_for(child: Child, holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait until something holds; False if the process ended, or the time was over, before it did."""
    end = time.monotonic() + seconds
    while not holds():
        if child.wait(0.001) is not None or time.monotonic() > end:
            return holds()
    return True


def wait_for_all_but(children: Sequence[Child], left: int, seconds: float = PATIENCE) -> list[Child]:
    """Wait until all but so many have ended; those that have not."""
    end = time.monotonic() + seconds
    while True:
        running = [child for child in children if child.wait(0.0) is None]
        if len(running) <= left or time.monotonic() > end:
            return running
        time.sleep(0.002)


def num_lines(folder: Path) -> int:
    """Whole lines in a run's log."""
    log = run_folder(folder) / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def is_over(folder: Path) -> bool:
    """Whether a run has come to its end."""
    return num_lines(folder) > 0 and told(folder)[-1]["event"] == "finished"


def last_line(child: Child) -> str:
    """What a process said last."""
    return (child.errors().strip().splitlines() or ["(nothing)"])[-1]
