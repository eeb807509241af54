"""The command line in forked processes, which save the seconds that imports and kernels take.

A fork has its own folder, cache and output, ordinary signal handlers, and ends as an
interpreter does; it dies with the process that made it.
"""

import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fault_rows.internals import CELLS, available_cores, has_fast_bfloat16
from fault_rows.outcome import expect

PATIENCE = 120.0  # seconds, after which a process hangs
PRECISIONS = ("float32", "bfloat16") if has_fast_bfloat16() else ("float32",)
FORK = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1
_SMALL = "--num-layers 1 --hidden-size 2 --embedding-dim 2 --batch-size 2 --seq-len 4 --steps 2 --device cpu --quiet"
_DROP = "--dropout 0.5 --weight-drop 0.5"


def nothing() -> None:
    """Change nothing."""


def prepare(text: Path, folder: Path) -> None:
    """Use every cell once in this process, so that forks find everything imported and every kernel loaded."""
    commands = [
        f"train {text} --run {cell}-{precision} --cell {cell} --precision {precision} {_SMALL} {_DROP}"
        for cell, precision in itertools.product(CELLS, PRECISIONS)
    ]
    for command in (*commands, "eval --device cpu", "sample -n 5 --seed 1"):
        with open(os.devnull, "w") as out, contextlib.redirect_stdout(out), contextlib.chdir(folder):
            try:
                _be_command([*command.split(), "--threads", "1"], folder)
            except SystemExit as end:
                expect(not end.code, f"{command}: exit code {end.code}")
    wait_until(lambda: threading.active_count() == 1)
    expect(threading.active_count() == 1, f"a fork would lack {threading.enumerate()}")
    gc.freeze()  # a collection in a fork would copy everything that it shares with this process


def _be_command(arguments: Sequence[str], folder: Path, before: Callable[[], None] = nothing) -> None:
    from charrnn.cli import main as cli

    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    sys.argv = ["charrnn", *arguments]
    before()
    cli.main()


class Child:
    """One command in a process of its own, in a folder; its output goes to files there.

    before: what the process does first, in its folder; there it may break things.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path, *, tag: str = "last", before: Callable[[], None] = nothing
    ) -> None:
        self.out, self.err = folder / f"{tag}.out", folder / f"{tag}.err"
        self.process = FORK.Process(target=self._run, args=(arguments, folder, before))
        self.process.start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def _run(self, arguments: Sequence[str], folder: Path, before: Callable[[], None]) -> None:
        """Be the command; it ends with SystemExit, which multiprocessing turns into the exit code."""
        _die_with_parent()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for number, path in ((1, self.out), (2, self.err)):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        _be_command(arguments, folder, before)

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """How it ended, -n by signal n; None while it runs."""
        self.process.join(seconds)
        return self.process.exitcode

    def wait_for(self, holds: Callable[[], bool]) -> bool:
        """Wait until something holds; False if the process ended before it did."""
        wait_until(lambda: holds() or self.wait(0.0) is not None)
        return holds()

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended: its number may be another's by now."""
        if self.process.exitcode is None:
            os.kill(self.process.pid or 0, number)

    def errors(self) -> str:
        """What it has written to stderr so far."""
        return self.err.read_text(encoding="utf-8", errors="replace") if self.err.exists() else ""

    def last_line(self) -> str:
        """The last line it has written to stderr."""
        return (self.errors().strip().splitlines() or ["(nothing)"])[-1]


def ended(arguments: Sequence[str], folder: Path, **options: Any) -> tuple[int | None, Child]:
    """Run a command to its end: its exit code, -n by signal n, None if it hung; and the process."""
    with Child(arguments, folder, **options) as child:
        return child.wait(), child


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, but not forever."""
    end = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)


def in_fork(work: Callable[[], Any]) -> int | None:
    """Do something in a process of its own; how that ended, -n by signal n."""
    process = FORK.Process(target=work)
    process.start()
    process.join(PATIENCE)
    process.kill()
    return process.exitcode


def _die_with_parent() -> None:
    """Have the kernel kill this process when the one that made it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def concurrently(function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
    """A function's results, as many at a time as there are cores, from processes that may fork."""
    with ProcessPoolExecutor(min(8, available_cores()), mp_context=FORK, initializer=_die_with_parent) as pool:
        yield from pool.map(function, jobs)
