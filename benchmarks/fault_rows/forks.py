"""The command line in forked processes: what a fresh one imports for seconds is there already.

`prepare` imports everything and loads every compiled kernel, with one thread and none left
behind, so that a fork lacks nothing. A fork has its own folder, cache and output, ordinary
signal handlers, and ends as an interpreter does; it dies with the process that made it.
"""

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does; it is read when torch is imported

Job = TypeVar("Job")
Result = TypeVar("Result")

PATIENCE = 120.0  # seconds, after which a process hangs
_FORK = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1


@functools.cache
def prepare() -> None:
    """Import what the commands import, and run every kernel once."""
    import numpy as np
    import torch

    from charrnn import precompile as precompilation
    from charrnn.config import CELLS, ModelConfig, TrainConfig
    from charrnn.evaluation.scoring import evaluate
    from charrnn.hardware import set_torch_threads
    from charrnn.kernels.products import has_fast_bfloat16
    from charrnn.model.gradients import Workers
    from charrnn.training import loop as training
    from charrnn.training.state import TrainState

    set_torch_threads(1)  # so that OpenMP starts no thread here, which a fork wouldn't have
    x = torch.zeros(2, 1, dtype=torch.int64)
    for precision in ("float32", "bfloat16") if has_fast_bfloat16() else ("float32",):
        precompilation.for_sampling(precision, "cpu")
        precompilation.for_training(precision, "cpu")
        for cell in CELLS:
            config = TrainConfig(batch_size=1, seq_len=2, dropout=0.5, weight_drop=0.5, learning_rate=1e-3)
            state = TrainState.fresh(ModelConfig(cell, 2, 1, 2, 2, reset_id=1), config, torch.device("cpu"))
            masks = training.dropout_masks(state, config, x.device), training.weight_masks(state, config, x.device)
            with Workers(state.model, num_workers=1, precision=precision) as workers:
                workers.window_gradient(x, x, state.hidden, *masks)
            evaluate(state.model, np.zeros(4, np.uint8), context=np.zeros(2, np.uint8))
    assert threading.active_count() == 1, "a fork would lack a thread"


class Child:
    """One command in a process of its own, in a folder; its output goes to files there."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        tag: str = "last",
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """before: what the process does first, in its folder; there it may break things."""
        self.out, self.err = folder / f"{tag}.out", folder / f"{tag}.err"
        self.begun = time.monotonic()
        self._process: BaseProcess = _FORK.Process(target=_run, args=(arguments, folder, self.out, self.err, before))
        self._process.start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        """End it, whatever it does."""
        self.send(signal.SIGKILL)
        self.wait()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """How it ended, -n by signal n; None while it runs."""
        self._process.join(seconds)
        return self._process.exitcode

    def send(self, number: int) -> bool:
        """Send a signal; whether the process was still there."""
        if self._process.exitcode is not None:  # and so its number may be another's by now
            return False
        os.kill(self.pid, number)
        return True

    def errors(self) -> str:
        """What it has written to stderr so far."""
        return self.err.read_text(encoding="utf-8", errors="replace") if self.err.exists() else ""


def _run(arguments: Sequence[str], folder: Path, out: Path, err: Path, before: Callable[[], None]) -> None:
    """Be the command; ends with SystemExit, which multiprocessing turns into the exit code."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    be_command(arguments, folder, out, err, before)


def be_command(arguments: Sequence[str], folder: Path, out: Path, err: Path, before: Callable[[], None]) -> None:
    """Be the command line, up to its exit: in a folder, with its output in files; before: what is done first."""
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["charrnn", *arguments]
    from charrnn.cli import main as cli

    before()
    cli.main()


def _die_with_parent() -> None:
    """Have the kernel kill this process when the one that made it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def concurrently(function: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int) -> Iterator[Result]:
    """The results as they come, from processes with no thread but their first, which may fork."""
    with ProcessPoolExecutor(workers, mp_context=_FORK, initializer=_die_with_parent) as pool:
        futures = [pool.submit(function, job) for job in jobs]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def new_folder(parent: Path) -> Path:
    """An empty folder for one try."""
    return Path(tempfile.mkdtemp(dir=parent))
