"""What becomes of a run whatever happens to it: each row a fault, tried so often, and what must hold.

    python benchmarks/faults.py [--scale ci|night|smoke] [--seed N] [--only WORDS] [--json FILE]

smoke tries a handful of each (a minute on two cores), ci enough to see a regression (ten
minutes), night so many that a rare moment is met. --only: the rows whose name has one of these
words; processes, files and strangers are all rows of these kinds. Where a row did not hold, its failures
stand below the table and the exit status is 1.
"""

import argparse
import functools
import json
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fault_rows import disk, hostile, processes, runs, saves, strangers, tampering
from fault_rows.outcome import Outcome

from charrnn.config import CELLS
from charrnn.hardware import available_cores

SCALES = ("smoke", "ci", "night")
# A fault, what must hold, its tries at each of SCALES, and what tries it: fill(outcome, count, rng)
Row = tuple[str, str, tuple[int, int, int], Callable[..., None]]

EQUAL = "model, newest state and log are, but for the clock, to the last byte an undisturbed run's"
SAVED = "saved, ended by the signal, then equal ends"
ENDED = "ended at once, whole files, then equal ends"
IN_USE = "one trains, the others exit 5 and name it"
WHOLE = "each exits 0, with a whole result"
FINITE = "none in a file; reported, and trained to the end"
DIVERGED = "none in a file; exit 7, best model whole; without it the run resumes"
KILLED = "the old or the new state loads, the model too, and what is left over the next run takes away"
FAILED = "what was saved before loads, the failure is reported exactly once, a later save works"
LOGGED = "the failure is reported exactly once, each line is there once"
LOADS = "the last whole state or a newer one loads, with its model and its part of the log; none is another's"
REFUSED = "refused by an error that names the file; a run falls back to the state before it, and says so"
HARMLESS = "exit 4 in one line, within a second, in four times the file's size of memory; nothing is executed"
INERT = "nothing of it is executed, and the command does its work"
KEPT = "exit 1 in one line; what the link points to is as it was"
UNREAD = "ends without opening them; nothing of them is cached"
SILENT = "ended by the signal, without a traceback"


def about_processes(scratch: Path, seed: int) -> Iterator[Row]:
    """The rows about runs in processes of their own."""
    settings = runs.make_settings(seed)

    def trial(function: Callable[..., None], *, precision: str = "", tries: int = 1, **options: Any) -> Any:
        usable = [setting for setting in settings if precision in ("", setting.precision)]
        return runs.Trials(scratch, usable, functools.partial(function, **options), tries)

    yield "none, in a fresh process instead of a fork", EQUAL, (1, 3, 12), trial(processes.in_own_process)
    for precision, num_ci in (("float32", 13), ("bfloat16", 12)):
        killed = trial(processes.killed, precision=precision)
        yield f"SIGKILL at random moments, {precision}", EQUAL, (1, num_ci, 50), killed
    for number in processes.SIGNALS:
        interrupted = trial(processes.interrupted, number=number)
        yield f"{number.name} at a random moment", f"reported at once, {SAVED}", (1, 20, 100), interrupted
    yield "a signal while a full pipe blocks stderr", SAVED, (1, 6, 30), trial(processes.blocked)
    yield "a second signal after the first", ENDED, (1, 10, 50), trial(processes.twice)
    yield "two to eight runs at once in a folder", IN_USE, (1, 10, 100), trial(processes.together)
    reads, counts = processes.READS, (1, 200 // processes.READS, 1000 // processes.READS)
    fault = f"sample and eval beside a training run, {reads} times"
    yield fault, WHOLE, counts, trial(processes.beside, tries=reads)
    yield "NaN or infinity in a run, once", FINITE, (2, 12, 60), trial(tampering.poisoned, lasting=False)
    yield "NaN or infinity in a run, for good", DIVERGED, (1, 8, 40), trial(tampering.poisoned, lasting=True)
    for name in tampering.LEFT_OUT:
        counts = (int(name in (tampering.NOTHING, tampering.LANES)), 1, len(CELLS))
        fault = f"control: {name}" + " left out of the state" * (name != tampering.NOTHING)
        must_hold = f"the check finds {'nothing' if name == tampering.NOTHING else 'it'}"
        yield fault, must_hold, counts, trial(tampering.resumed_without, name=name)
    for name in tampering.CHANGES:
        yield f"control: {name}", "the check finds it", (1, 1, 1), trial(tampering.with_change, name=name)


def about_files(scratch: Path) -> Iterator[Row]:
    """The rows about what is left on a disk, and what is read from it."""
    scene, errors = saves.Scene(scratch / "saves"), ", ".join(saves.ERRORS)
    by_strace = [f"error={error}" for error in saves.ERRORS]
    file_operation, system_call = "at every file operation of a save", "at every system call of a save, by strace"
    all_of_them = (6, 10**6, 10**6)

    def trial(function: Callable[..., None], *arguments: Any) -> Any:
        return functools.partial(function, scene, *arguments)

    killed = trial(saves.at_every, saves.save_new, disk.KILLS, saves.kill)
    yield f"SIGKILL {file_operation}", KILLED, all_of_them, killed
    killed = trial(saves.at_every, saves.save_new, ["signal=KILL"], saves.kill)
    yield f"SIGKILL {system_call}", KILLED, all_of_them, killed
    failed = trial(saves.at_every, saves.write_new, saves.FAILURES, saves.fail_write)
    yield f"{errors}, short write {file_operation}", FAILED, all_of_them, failed
    failed = trial(saves.at_every, saves.log_one, saves.FAILURES, saves.fail_log)
    yield f"{errors}, short write where the log is written", LOGGED, all_of_them, failed
    failed = trial(saves.at_every, saves.write_new, by_strace, saves.fail_write)
    yield f"{errors} {system_call}", FAILED, all_of_them, failed
    yield "lost writes: a crash at every operation of some saves", LOADS, (20, 200, 1000), trial(saves.crash)
    flipped = trial(saves.damage, ("flipped",))
    yield "one random bit flipped in a model or a state", REFUSED, (20, 500, 3000), flipped
    damaged = trial(saves.damage, ("truncated", "extended", "zeroed", "swapped", "moved"))
    yield "truncated, extended, blocks zeroed, swapped or moved", REFUSED, (20, 200, 1000), damaged
    hostile_files = functools.partial(hostile.fill, scratch / "hostile")
    yield "hostile files, with checksums that are right", HARMLESS, (15, 200, 2000), hostile_files


def about_strangers(scratch: Path) -> Iterator[Row]:
    """The rows about what others prepared, and about a command's first moments."""

    def trial(function: Callable[..., None], **options: Any) -> Any:
        return functools.partial(function, scratch / "strangers", **options)

    fault = "files named random.py, charrnn/, ... in the current folder while kernels are compiled"
    yield fault, INERT, (0, 1, 6), trial(strangers.planted, plant=strangers.plant_modules)
    fault = "others can write to the cache, and each compiled kernel there is a pickle that acts"
    yield fault, INERT, (0, 1, 6), trial(strangers.planted, plant=strangers.plant_kernels)
    yield "links and FIFOs in a run's folder", KEPT, (2, 42, 42), trial(strangers.links)
    fault = "a model whose training text is a private file, a FIFO, a device"
    yield fault, UNREAD, (2, 20, 60), trial(strangers.foreign_paths)
    yield "Ctrl-C at a random moment of a command's start", SILENT, (3, 40, 150), trial(strangers.interrupted)


def tried(scratch: Path, options: argparse.Namespace) -> Iterator[tuple[Outcome, float]]:
    """Try every row that is chosen: its outcome, and the seconds it took."""
    runs.prepare(scratch)
    words = options.only.lower().split()
    kinds = {
        "processes": about_processes(scratch, options.seed),
        "files": about_files(scratch),
        "strangers": about_strangers(scratch),
    }
    for kind, rows in kinds.items():
        for fault, must_hold, counts, fill in rows:
            count = counts[SCALES.index(options.scale)]
            if count and (not words or any(word == kind or word in fault.lower() for word in words)):
                begun, outcome = time.monotonic(), Outcome(fault, must_hold)
                fill(outcome, count, random.Random(f"{options.seed} {fault}"))
                yield outcome, time.monotonic() - begun


def line(outcome: Outcome, seconds: float) -> str:
    """A row of the table."""
    survived = f"{outcome.survived}" if outcome.held else f"**{outcome.survived}**"
    numbers = f"{outcome.tried} | {survived}" if not outcome.skipped else f"skipped: {outcome.skipped} |"
    return f"| {outcome.fault} | {numbers} | {outcome.must_hold} | {seconds:.0f} |"


def main() -> int:
    """Try everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="ci")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="words, one of which the fault's name has")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that temporary folders go
    print(f"scale {options.scale}, seed {options.seed}; {platform.machine()}, {available_cores()} cores\n")
    print("| fault | tried | survived | what must hold | seconds |\n|---|---|---|---|---|", flush=True)
    begun, done = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="charrnn-faults-") as name:
        for outcome, seconds in tried(Path(name).resolve(), options):
            print(line(outcome, seconds), flush=True)
            failures = outcome.failures[:20]
            done.append({**vars(outcome), "failures": failures, "held": outcome.held, "seconds": round(seconds, 2)})
    broken = [record for record in done if not record["held"]]
    print(f"\n{len(done) - len(broken)} of {len(done)} rows held, in {time.monotonic() - begun:.0f} s")
    for record in broken:
        print(f"\n{record['fault']}:")
        print("\n".join(f"- {failure}" for failure in record["failures"]) or "- nothing was tried")
    if options.json:
        options.json.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
