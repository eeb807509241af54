"""What becomes of a run whatever happens to it: each row a fault, tried so often, and what must hold.

    python benchmarks/faults.py [--scale ci|night|smoke] [--seed N] [--only WORDS] [--json FILE]

smoke tries a handful of each (a minute on two cores), ci enough to see a regression (ten
minutes), night so many that a rare moment is met. --only: the rows whose name has one of these
words; processes and files are all rows of these kinds. Where a row did not hold, its failures
stand below the table and the exit status is 1.
"""

import argparse
import json
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fault_rows import controls, crashes, forks, hostile, poisons, processes, runs, saves
from fault_rows.internals import available_cores
from fault_rows.outcome import SCALES, Outcome, Row


def rows_of(kind: str, scratch: Path, seed: int) -> list[Row]:
    """The rows of the table about processes or files, in its order."""
    if kind == "processes":
        bench = runs.Bench(scratch, seed)
        return [*processes.rows(bench), *poisons.rows(bench), *controls.rows(bench)]
    scene = saves.Scene(scratch / "saves")
    return [*saves.rows(scene), *crashes.rows(scene), hostile.row(scratch / "hostile")]


def tried(scratch: Path, options: argparse.Namespace) -> Iterator[tuple[Outcome, float]]:
    """Try every row that is chosen: its outcome, and the seconds it took."""
    (scratch / "text.txt").write_text(runs.make_text(12_000), encoding="utf-8")
    forks.prepare(scratch / "text.txt", scratch)
    words = options.only.lower().split()
    for kind in ("processes", "files"):
        for fault, must_hold, counts, fill in rows_of(kind, scratch, options.seed):
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
            done.append({**vars(outcome), "held": outcome.held, "seconds": round(seconds, 2)})
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
