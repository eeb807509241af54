"""TODO."""

import contextlib
import functools
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from filelock import FileLock
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile on first use, keeping the result on disk where a folder for it can be written.

    WeightGradients may be reordered, which vectorising a dot product needs; infinities stay infinite.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        kernel = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache
        return cast(F, numba.njit(**options)(function))
    _forget_outdated(Path(kernel.stats.cache_path))
    kernel._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return cast(F, kernel)


class _Cache(FunctionCache):
    """numba's, for several processes: two that wrote at once could give a function's variants the same file."""

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for a signature."""
        with FileLock(Path(self.cache_path) / "kernels.lock"):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


def inlined(function: F) -> F:
    """Compile a function only as a part of those that call it: an entry of its own would take half a second."""
    return cast(F, numba.njit(inline="always")(function))


@functools.cache
def _forget_outdated(folder: Path) -> None:
    """Drop what was compiled from other sources than these.

    numba's cache notices an edit by a file's time, and only in the file of the function that
    is called, while a kernel calls those of other files. So a hash of all of them lies beside it.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = folder / "kernels.sha256"
    with contextlib.suppress(OSError):  # a folder that can't be written is left to numba's own check
        if stamp.exists() and stamp.read_text() == digest:
            return
        for outdated in (*folder.glob("*.nbi"), *folder.glob("*.nbc"), *folder.glob("*.ready")):
            outdated.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        stamp.write_text(digest)


def compile_in_children(kernel: Callable[..., Any], *queues: Sequence[str]) -> None:
    """Have a process of its own for each queue, side by side, run the lines that none has run before.

    What was just compiled and what comes out of the cache differ in the last bit of some sums:
    a function that several kernels share is linked from the one that comes first, each of which
    optimised it on its own. So every process, the first one too, takes all of them out of the
    cache. queues: lines of Python that call kernels. kernel: any, which knows where the cache is;
    without one nothing is done.
    """
    dispatcher: Any = kernel
    if dispatcher.stats.cache_path is None:
        return
    made_by = (numba.__version__, sys.version, dispatcher.targetctx.codegen().magic_tuple())
    running = []
    with contextlib.suppress(OSError):  # then they are compiled here
        for queue in queues:
            digests = {line: hashlib.sha256(repr((made_by, line)).encode()).hexdigest()[:16] for line in queue}
            marks = {line: Path(dispatcher.stats.cache_path) / f"{digest}.ready" for line, digest in digests.items()}
            missing = [line for line, mark in marks.items() if not mark.exists()]
            if missing:
                command = [sys.executable, "-c", "\n".join(missing)]
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                running.append((process, [marks[line] for line in missing]))
        for process, made in running:
            if process.wait() == 0:
                for mark in made:
                    mark.touch()
