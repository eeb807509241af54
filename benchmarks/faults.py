"""What becomes of a run whatever happens to it: each row a fault, tried so often, and what must hold.

    python benchmarks/faults.py [--scale ci|night|smoke] [--seed N] [--only WORDS] [--json FILE]

smoke tries a handful of each (a minute on two cores), ci enough to see a regression (ten
minutes), night so many that a rare moment is met. --only: the rows whose name has one of these
words; processes and files are all rows of these modules. Where a row did not hold, its failures
stand below the table and the exit status is 1.
"""

import argparse
import functools
import itertools
import json
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_rows import files, processes
from fault_rows.outcome import Outcome

from charrnn.hardware import available_cores

SCALES = ("smoke", "ci", "night")


def rows(scale: str, seed: int, words: list[str]) -> Iterator[Outcome]:
    """Every row that one of the words is meant for; without words every row."""
    kinds = {"processes": processes.rows, "files": files.rows}

    def chosen(kind: str, fault: str) -> bool:
        return not words or any(word == kind or word in fault.lower() for word in words)

    return itertools.chain.from_iterable(
        make(scale, seed, functools.partial(chosen, kind)) for kind, make in kinds.items()
    )


def timed(outcomes: Iterator[Outcome]) -> Iterator[tuple[Outcome, float]]:
    """Each outcome with the seconds it took to come."""
    begun = time.monotonic()
    for outcome in outcomes:
        yield outcome, time.monotonic() - begun
        begun = time.monotonic()


def line(outcome: Outcome, seconds: float) -> str:
    """A row of the table."""
    survived = f"{outcome.survived}" if outcome.held else f"**{outcome.survived}**"
    numbers = f"{outcome.tried} | {survived}" if not outcome.skipped else f"skipped: {outcome.skipped} |"
    return f"| {outcome.fault} | {numbers} | {outcome.must_hold} | {seconds:.0f} |"


def record(outcome: Outcome, seconds: float) -> dict[str, Any]:
    """A row as JSON."""
    return {**vars(outcome), "held": outcome.held, "seconds": round(seconds, 2)}


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
    for outcome, seconds in timed(rows(options.scale, options.seed, options.only.lower().split())):
        print(line(outcome, seconds), flush=True)
        done.append((outcome, seconds))
    broken = [outcome for outcome, _ in done if not outcome.held]
    print(f"\n{len(done) - len(broken)} of {len(done)} rows held, in {time.monotonic() - begun:.0f} s")
    for outcome in broken:
        print(f"\n{outcome.fault}:")
        print("\n".join(f"- {failure}" for failure in outcome.failures) or "- nothing was tried")
    if options.json:
        options.json.write_text(json.dumps([record(*row) for row in done], indent=1) + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
