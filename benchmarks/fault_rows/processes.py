"""Faults of processes: runs that are killed, interrupted, started twice, read while they write, or fed NaN."""

import contextlib
import functools
import itertools
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import charrnn
from charrnn.config import CELLS
from charrnn.hardware import available_cores
from charrnn.kernels.products import has_fast_bfloat16
from charrnn.training.folder import MODEL_NAME
from fault_rows import forks
from fault_rows.compare import RUN, damage, difference, left_behind, run_folder, states, told
from fault_rows.controls import CONTROLS, TAMPERINGS, control, tampered
from fault_rows.forks import PATIENCE, Child, new_folder
from fault_rows.outcome import Outcome
from fault_rows.poisons import poisoned
from fault_rows.trials import (
    SAVE_EVERY,
    Job,
    Reference,
    Setting,
    Tried,
    ends_alike,
    is_over,
    last_line,
    make_text,
    tried_once,
    uninterrupted,
    wait_for,
    wait_for_all_but,
    wait_for_line,
)

AT_ONCE = 1.0  # seconds, on a busy machine
_HEARD = "stopping after this step"
_ENDLESS = 10**6  # steps
_READS = 25  # in a trial
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EQUAL = "model, newest state and log are, but for the clock, to the last byte an undisturbed run's"
_SAVED = "saved, ended by the signal, then equal ends"

Trial = Callable[[Job], Tried]


@dataclass(frozen=True)
class Row:
    """A fault, what must hold, and how it is tried how often at each scale; skipped: why it can't be."""

    fault: str
    must_hold: str
    trial: Trial
    ci: int
    night: int
    smoke: int
    compared: bool = True  # with an undisturbed run
    precision: str | None = None  # only this one
    skipped: str = ""

    def count(self, scale: str) -> int:
        """How often it is tried; never, at a scale it is too slow for."""
        return {"ci": self.ci, "night": self.night, "smoke": self.smoke}[scale]


def rows(scale: str, seed: int, chosen: Callable[[str], bool] = lambda fault: True) -> Iterator[Outcome]:
    """Try every fault whose name is chosen, so often as the scale says."""
    forks.prepare()
    with tempfile.TemporaryDirectory(prefix="charrnn-faults-") as name:
        scratch = Path(name).resolve()
        (scratch / "text.txt").write_text(make_text(12_000), encoding="utf-8")
        bench = Bench(scratch, seed)
        for row in _rows():
            if chosen(row.fault) and row.count(scale):
                yield bench.outcome(row, row.count(scale))


def _rows() -> list[Row]:
    """The table's rows, in its order."""
    slow_here = "" if has_fast_bfloat16() else "this processor has no fast bfloat16"
    alone = functools.partial(Row, compared=False)
    return [
        Row("none, in a fresh process instead of a fork", _EQUAL, in_own_process, 3, 12, 1),
        Row("SIGKILL at random moments, float32", _EQUAL, killed, 13, 50, 1, precision="float32"),
        Row("SIGKILL at random moments, bfloat16", _EQUAL, killed, 12, 50, 1, precision="bfloat16", skipped=slow_here),
        *(
            Row(f"{number.name} at a random moment", f"told at once, {_SAVED}", trial, 20, 100, 1)
            for number, trial in ((number, functools.partial(interrupted, number=number)) for number in _SIGNALS)
        ),
        Row("a signal while a full pipe blocks stderr", _SAVED, blocked, 6, 30, 1),
        Row("a second signal after the first", "ended at once, whole files, then equal ends", twice, 10, 50, 1),
        alone(
            "two to eight runs at once in a folder", "one trains, the others exit 5 and name it", together, 10, 100, 1
        ),
        alone(
            f"sample and eval beside a training run, {_READS} times",
            "each exits 0, with a whole result",
            beside,
            *(200 // _READS, 1000 // _READS, 1),
        ),
        alone(
            "NaN or infinity in a run, once",
            "none in a file; told, and trained to the end",
            functools.partial(poisoned, lasting=False),
            *(12, 60, 2),
        ),
        alone(
            "NaN or infinity in a run, for good",
            "none in a file; exit 7, best model whole; without it the run goes on",
            functools.partial(poisoned, lasting=True),
            *(8, 40, 1),
        ),
        *_controls(),
    ]


def _controls() -> list[Row]:
    """The rows that show that the others can fail."""
    left_out = [
        Row(
            f"control: {name}" + " left out of the state" * (name != "nothing"),
            "the check finds nothing" if name == "nothing" else "the check finds it",
            functools.partial(control, name=name),
            *(1, len(CELLS), int(name in ("nothing", "the lanes' states"))),
        )
        for name in CONTROLS
    ]
    changed = [
        Row(f"control: {name}", "the check finds it", functools.partial(tampered, name=name), 1, 1, 1)
        for name in TAMPERINGS
    ]
    return [*left_out, *changed]


@dataclass
class Bench:
    """A place to work in, and the undisturbed runs so far."""

    scratch: Path
    seed: int
    references: dict[Setting, Reference] = field(default_factory=dict)

    def settings(self, precision: str | None, count: int) -> list[Setting]:
        """So many settings; every cell comes before one comes again."""
        rng, precisions = random.Random(self.seed), ["float32", *["bfloat16"] * has_fast_bfloat16()]
        of_each = []
        for cell in CELLS:
            others = list(itertools.product((False, True), precisions, (1, 2, 3)))
            of_each.append([Setting(cell, *other) for other in rng.sample(others, len(others))])
        ordered = [setting for group in zip(*of_each, strict=True) for setting in group]
        usable = [setting for setting in ordered if precision in (None, setting.precision)]
        return list(itertools.islice(itertools.cycle(usable), count))

    def outcome(self, row: Row, count: int) -> Outcome:
        """Try a row's fault so often."""
        outcome = Outcome(row.fault, row.must_hold, skipped=row.skipped)
        if outcome.skipped:
            return outcome
        jobs = [
            Job(setting, 1000 * self.seed + number, self.scratch, self.scratch / "text.txt")
            for number, setting in enumerate(self.settings(row.precision, count))
        ]
        if row.compared:
            new = {job.setting: job for job in jobs if job.setting not in self.references}
            self.references |= dict(self._run(uninterrupted, list(new.values())))
            jobs = [replace(job, reference=self.references[job.setting]) for job in jobs]
        counts: Counter[str] = Counter()
        slowest = 0.0
        for tried in self._run(functools.partial(guarded, row.trial), jobs):
            for failure in tried.results:
                outcome.note(failure)
            counts += tried.counts
            slowest = max(slowest, tried.slowest)
        notes = [f"{number} {what}" for what, number in counts.items()]
        notes += [f"at most {slowest:.2f} s"] * (slowest > 0)
        outcome.fault += f" ({', '.join(notes)})" if notes else ""
        return outcome

    def _run(self, function: Callable[[Job], Any], jobs: list[Job]) -> Iterator[Any]:
        """A function's results for the jobs, as many at a time as there are cores."""
        return forks.concurrently(function, jobs, workers=min(8, available_cores()))


def guarded(trial: Trial, job: Job) -> Tried:
    """A trial; what it stumbles over is a failure too."""
    try:
        return trial(job)
    except Exception as error:
        return tried_once(job, f"{type(error).__name__}: {error}")


def in_own_process(job: Job) -> Tried:
    """The same command in a fresh interpreter, as people give it: what forks hide, if anything, shows here."""
    folder = new_folder(job.scratch)
    paths = {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(Path(charrnn.__file__).parent.parent)}
    command = [sys.executable, "-m", "charrnn", *job.command()]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **paths}, capture_output=True, check=False)
    if done.returncode != 0:
        return tried_once(job, f"exit code {done.returncode}: {done.stderr.decode(errors='replace')[-200:]}")
    return tried_once(job, difference(job.whole.folder, folder))


def killed(job: Job) -> Tried:
    """SIGKILL up to four times, in the whole of a process's life; everything is whole after each."""
    rng, counts, life = random.Random(job.seed), Counter[str](), job.whole.seconds
    folder, wanted = new_folder(job.scratch), rng.randint(1, 4)
    while counts["kills"] < wanted:
        by_itself = rng.random() < 0.4
        before = functools.partial(die_at_disk, rng.randint(1, 60), after=rng.random() < 0.5) if by_itself else nothing
        with Child(job.command(save_every=rng.choice(SAVE_EVERY)), folder, before=before) as child:
            code = child.wait(PATIENCE if by_itself else rng.uniform(0.0, life))
        if code in (None, -signal.SIGKILL):
            counts["kills"] += 1
            counts["of them while a file was written"] += any(run_folder(folder).glob(".*.tmp"))
            if failure := damage(folder):
                return tried_once(job, f"after kill {counts['kills']}: {failure}", counts)
        elif code != 0:
            return tried_once(job, f"ended with {code}: {last_line(child)}", counts)
        elif counts["kills"]:
            break
        else:  # it was over before it was to be killed
            folder, life = new_folder(job.scratch), 0.7 * life
    return tried_once(job, ends_alike(job, folder), counts)


def nothing() -> None:
    """Change nothing."""


def die_at_disk(count: int, *, after: bool) -> None:
    """Have this process killed before or after so many flushes, renames and removals: the moments that matter."""
    calls = itertools.count(1)

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            due = next(calls) == count
            if due and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if due:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os.fsync, os.replace, os.unlink = deadly(os.fsync), deadly(os.replace), deadly(os.unlink)


def interrupted(job: Job, *, number: int) -> Tried:
    """A signal somewhere between a run's first event and its last."""
    rng, folder = random.Random(job.seed + number), new_folder(job.scratch)
    counts: Counter[str] = Counter()
    with Child(job.command(save_every=rng.choice(SAVE_EVERY)), folder) as child:
        wait_for_line(child, folder, rng.randrange(1, job.whole.num_events))
        time.sleep(rng.uniform(0.0, 0.01))
        begun = time.monotonic()
        child.send(number)
        heard = wait_for(child, lambda: _HEARD in child.errors())
        slowest = time.monotonic() - begun
        code = child.wait()
    if is_over(folder):  # it was about to end
        counts["had finished"] += 1
        return tried_once(job, difference(job.whole.folder, folder), counts)
    failure = None
    if code != -number:
        failure = f"ended with {code}: {last_line(child)}"
    elif not heard or slowest > AT_ONCE:
        failure = f"the line on stderr came after {slowest:.1f} s" if heard else "no line on stderr"
    else:
        failure = not_as_it_says(child, folder) or damage(folder) or left_behind(folder)
    return tried_once(job, failure or ends_alike(job, folder), counts, slowest if heard else 0.0)


def not_as_it_says(child: Child, folder: Path) -> str | None:
    """What is wrong with the last line of an interrupted run: it names the step that is saved."""
    said = re.search(r"stopped after step (\d+); the same command goes on from there$", last_line(child))
    if said is None:
        return f"the last line was: {last_line(child)}"
    newest = states(folder)[0].name
    return None if newest == f"state-{said[1]}.safetensors" else f"stopped after step {said[1]}, but saved {newest}"


def blocked(job: Job) -> Tried:
    """A signal that is heard in the middle of a print, as with a pager that nobody scrolls."""
    rng, folder = random.Random(job.seed), new_folder(job.scratch)
    number, (end, pipe) = rng.choice(_SIGNALS), os.pipe()
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b" " * select.PIPE_BUF)
    os.set_blocking(pipe, True)
    with Child(job.command(), folder, before=functools.partial(os.dup2, pipe, 2)) as child:
        os.close(pipe)
        wait_for_line(child, folder, 1)  # the plan, which is then shown
        time.sleep(rng.uniform(0.05, 0.2))
        child.send(number)
        time.sleep(rng.uniform(0.0, 0.1))
        with open(end, "rb") as reader:
            said = reader.read().decode(errors="replace").strip()
        code = child.wait()
    if code != -number or _HEARD not in said:
        return tried_once(job, f"ended with {code} by {number}: {(said.splitlines() or [''])[-1]}")
    return tried_once(job, damage(folder) or left_behind(folder) or ends_alike(job, folder))


def twice(job: Job) -> Tried:
    """A second signal, while the disk is so slow that what the first asked for takes seconds."""
    rng, folder = random.Random(job.seed), new_folder(job.scratch)
    first, second, waits = rng.choice(_SIGNALS), rng.choice(_SIGNALS), rng.random() < 0.8
    with Child(job.command(save_every=rng.choice(SAVE_EVERY)), folder, before=slow_disk) as child:
        wait_for_line(child, folder, rng.randrange(1, job.whole.num_events - 20))
        if waits:
            Path(folder / "slow").touch()
        child.send(first)
        if waits:
            wait_for(child, lambda: _HEARD in child.errors())
            time.sleep(rng.uniform(0.0, 0.05))
        begun = time.monotonic()
        child.send(second)
        code = child.wait()
        slowest = time.monotonic() - begun
    Path(folder / "slow").unlink(missing_ok=True)
    counts = Counter({"of them before the first was heard": int(not waits)})
    failure = damage(folder)
    if code not in ((-second,) if waits else (-first, -second)):
        failure = f"ended with {code} by {first} and {second}: {last_line(child)}"
    elif slowest > AT_ONCE:
        failure = f"went on for {slowest:.1f} s"
    return tried_once(job, failure or ends_alike(job, folder), counts, slowest)


def slow_disk() -> None:
    """Let what waits for the disk wait a second longer while a file named slow is in the folder."""
    fsync = os.fsync

    def slowly(handle: int) -> None:
        if os.path.exists("slow"):
            time.sleep(1.0)
        fsync(handle)

    os.fsync = slowly


def together(job: Job) -> Tried:
    """Many start at once; and once more where the one that trained was killed."""
    rng, folder = random.Random(job.seed), new_folder(job.scratch)
    count, counts = rng.randint(2, 8), Counter[str]()
    for round_, number in enumerate((signal.SIGKILL, signal.SIGTERM)):
        counts["processes"] += count
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(child) for child in start_at_once(job, folder, count, f"{round_}-")]
            running = wait_for_all_but(children, 1)
            failure = one_trains(children, running)
            if failure is None and not wait_for_line(running[0], folder, 3):
                failure = f"the one that had the folder ended: {last_line(running[0])}"
            if failure is None:
                running[0].send(number)
                code = running[0].wait()
                failure = damage(folder) or (
                    None if code == -number else f"it ended with {code}: {last_line(running[0])}"
                )
        if failure:
            return tried_once(job, f"{count} at once, round {round_}: {failure}", counts)
    plans = [event for event in told(folder) if event["event"] == "plan"]
    return tried_once(job, None if len(plans) == 1 else f"{len(plans)} runs began", counts)


def start_at_once(job: Job, folder: Path, count: int, tag: str) -> list[Child]:
    """Processes that wait for each other before they begin."""
    end, gate = os.pipe()

    def wait_at_gate() -> None:
        os.close(gate)
        os.read(end, 1)  # until nobody holds the gate any more

    command = job.command(steps=_ENDLESS)
    children = [Child(command, folder, tag=f"{tag}{index}", before=wait_at_gate) for index in range(count)]
    time.sleep(0.1)
    os.close(gate)
    os.close(end)
    return children


def one_trains(children: list[Child], running: list[Child]) -> str | None:
    """What is wrong with processes of which one should go on and the others have said that it does."""
    if len(running) != 1:
        return f"{len(running)} train: {'; '.join(last_line(child) for child in children if child not in running)}"
    expected = f"{run_folder(Path())} is in use by process {running[0].pid}; "
    for child in children:
        if child is not running[0] and (child.wait() != 5 or expected not in child.errors()):
            return f"one ended with {child.wait()}, beside process {running[0].pid}: {last_line(child)}"
    return None


def beside(job: Job) -> Tried:
    """Read the model again and again while each step of a training run writes a better one."""
    rng, folder, results = random.Random(job.seed), new_folder(job.scratch), []
    endless = job.command("--patience", 0, steps=_ENDLESS, save_every=0.0)
    endless[endless.index("--learning-rate") + 1] = "0.0001"  # so that it gets better for long
    with Child(endless, folder, tag="train", before=evaluate_always) as child:
        wait_for(child, (run_folder(folder) / MODEL_NAME).exists)
        for number in range(_READS):
            failure = read_sample(rng, folder) if number % 2 else read_score(folder)
            named = failure and f"{job.setting}, seed {job.seed}, reading {number}: {failure}"
            results.append(named or (None if child.wait(0.0) is None else f"training ended: {last_line(child)}"))
        child.send(signal.SIGTERM)
        child.wait()
    written = sum(event["event"] == "saved" for event in told(folder))
    return Tried(results, Counter({"models were written": written}))


def evaluate_always() -> None:
    """Score, and so write a better model, after every step."""
    from charrnn.training import loop as training
    from charrnn.training import state

    state.AVERAGE_EVERY = 1
    training.evaluation_is_due = lambda *_: True


def read_sample(rng: random.Random, folder: Path) -> str | None:
    """Draw a text; why it isn't one."""
    length = rng.randint(20, 200)
    options = ["-n", length, "--no-echo", "--seed", rng.randrange(10**6), "--threads", rng.randint(1, 2)]
    with Child(list(map(str, ["sample", "-m", RUN, *options])), folder, tag="sample") as child:
        code = child.wait()
    text = child.out.read_text(encoding="utf-8")
    if code != 0 or len(text) != length:
        return f"sample ended with {code} and {len(text)} of {length} characters: {last_line(child)}"
    return None


def read_score(folder: Path) -> str | None:
    """Score the text that was held out; why that failed."""
    with Child(["eval", "-m", RUN, "--json", "--device", "cpu"], folder, tag="eval") as child:
        code = child.wait()
    try:
        facts = json.loads(child.out.read_text(encoding="utf-8"))
    except ValueError:
        facts = {}
    if code != 0 or facts.get("num_chars") != 1200 or not 0.0 < facts["nats_per_char"] < 10.0:
        return f"eval ended with {code} and {facts}: {last_line(child)}"
    return None
