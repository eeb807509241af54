"""Reading a file, or a command, in a forked process: how it ends, and what of time and memory it takes."""

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from charrnn.errors import ModelFileError
from fault_rows.forks import be_command

PATIENCE = 30  # seconds, after which a process hangs
SPACE = 1 << 30  # bytes of addresses that a process may take beyond what it begins with
_RESET_PEAK = "5"  # what Linux wants to be told for that


@dataclass(frozen=True)
class Reading:
    """How it ended that a file was read: the message it was refused with, another exception, or neither.

    seconds: of the processor. grown: bytes of memory at most, beyond those before.
    """

    refusal: str = ""
    odd: str = ""
    seconds: float = 0.0
    grown: int = 0


def read_measured(load: Callable[[], Any], warm_up: Callable[[], Any]) -> Reading:
    """Read in a process of its own. warm_up: the same with a good file, so that all code is in memory."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        _in_child(lambda: os.write(theirs, json.dumps(_read(load, warm_up)).encode()))
    os.close(theirs)
    with open(ours, "rb") as answer:
        said = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Reading(**json.loads(said)) if said else Reading(odd=_end(status))


def _read(load: Callable[[], Any], warm_up: Callable[[], Any]) -> dict[str, Any]:
    """Read and measure, in this process."""
    warm_up()
    _limit_space()
    before = _memory(reset=True)
    begun, refusal, odd = time.process_time(), "", ""
    try:
        load()
    except ModelFileError as error:
        refusal = str(error)[:1000]
    except BaseException as error:
        odd = f"{type(error).__name__}: {str(error)[:200]}"
    return {
        "refusal": refusal,
        "odd": odd,
        "seconds": time.process_time() - begun,
        "grown": _memory() - before,
    }


def _memory(*, reset: bool = False) -> int:
    """Bytes that this process has taken at most; reset: from here on."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # no Linux, or an old one
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def command(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run a command of charrnn in a folder that has a cache: its exit code, or -n by signal n; and its stderr."""
    errors = folder / "stderr"
    pid = os.fork()
    if pid == 0:
        _in_child(lambda: be_command(arguments, folder, Path(os.devnull), errors, _limit_space))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, errors.read_text(encoding="utf-8", errors="replace")


def _limit_space() -> None:
    """Have the system refuse what a hostile file could make this process ask for (Linux)."""
    if sys.platform == "linux":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + SPACE, size + SPACE))


def _in_child(work: Callable[[], Any]) -> NoReturn:
    """Do the work, and end this process without what an interpreter does then, in time."""
    code = 0
    try:
        gc.disable()  # which would touch, and so copy, all that the processes share
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        os._exit(code)


def _end(status: int) -> str:
    """How a process ended that said nothing."""
    return "hangs" if status == -signal.SIGALRM else f"the process ended with {status}"
