"""How kernels are compiled and cached, so that all processes of a machine compute the same bits.

numba compiles a kernel on its first call and writes it to its cache. This module adds what that cache lacks: it
drops entries of edited sources, lets several processes write at once, and compiles in child processes.
"""

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
    """Compile on first use, and cache the result on disk if numba finds a writable folder.

    Sums may be reordered, because a dot product can't be vectorised otherwise. Infinities stay infinite.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        kernel = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache
        return cast(F, numba.njit(**options)(function))
    _drop_outdated(Path(kernel.stats.cache_path))
    kernel._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return cast(F, kernel)


class _Cache(FunctionCache):
    """numba's cache with a lock: two processes that write at once could give two variants of a function one file."""

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write what was compiled for a signature."""
        with FileLock(Path(self.cache_path) / "kernels.lock"):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


def inlined(function: F) -> F:
    """Compile a function only as part of its callers: an entry of its own would take half a second."""
    return cast(F, numba.njit(inline="always")(function))


@functools.cache
def _drop_outdated(folder: Path) -> None:
    """Delete cache entries that were compiled from other sources than the present ones.

    numba's cache notices an edit by a file's time, and only in the file of the called
    function. But a kernel calls kernels of other files. So a hash of all sources lies beside the cache.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = folder / "kernels.sha256"
    with contextlib.suppress(OSError):  # in a folder that can't be written, numba's own check has to do
        if stamp.exists() and stamp.read_text() == digest:
            return
        for outdated in (*folder.glob("*.nbi"), *folder.glob("*.nbc"), *folder.glob("*.ready")):
            outdated.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        stamp.write_text(digest)


def compile_in_children(kernel: Callable[..., Any], *queues: Sequence[str]) -> list[str]:
    """Run calls of kernels in child processes, one per queue and all at once, unless they have succeeded before.

    Fresh code and cached code differ in the last bit of some sums: a function that several
    kernels share is linked from whichever kernel comes first, and each kernel optimised it on its
    own. So every process, the first one too, must load all kernels from the cache.

    kernel: any kernel; it knows the cache's folder. Without a cache nothing is done.
    queues: lines of Python that call kernels.
    Returns the reason for each failure, such as the last line of a child's stderr. The caller then
    compiles in its own process. Its sums may differ in the last bit from those of later runs.
    """
    dispatcher: Any = kernel
    if dispatcher.stats.cache_path is None:
        return []
    folder = Path(dispatcher.stats.cache_path)
    compiler = (numba.__version__, sys.version, dispatcher.targetctx.codegen().magic_tuple())
    running, failures = [], []
    for queue in queues:
        digests = {line: hashlib.sha256(repr((compiler, line)).encode()).hexdigest()[:16] for line in queue}
        marks = {line: folder / f"{digest}.ready" for line, digest in digests.items()}
        missing = [line for line, mark in marks.items() if not mark.exists()]
        if missing:
            try:
                process = subprocess.Popen(
                    child_command(missing), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
            except OSError as error:
                failures.append(str(error))
            else:
                running.append((process, [marks[line] for line in missing]))
    for process, done in running:
        errors = process.communicate()[1].decode(errors="replace").strip()
        if process.returncode != 0:
            failures.append(errors.rpartition("\n")[2] or f"exit status {process.returncode}")
            continue
        with contextlib.suppress(OSError):  # without marks the next run starts children again
            for mark in done:
                mark.touch()
    return failures


def child_command(lines: Sequence[str]) -> list[str]:
    """Build the command that runs lines of Python in a child that imports from the same places as this process.

    -P keeps the working directory off the child's path: a file random.py there must not be imported.
    """
    return [sys.executable, "-P", "-c", "\n".join([f"import sys; sys.path[:] = {sys.path!r}", *lines])]
