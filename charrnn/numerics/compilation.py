"""How kernels are compiled and cached, so that all processes of a machine compute the same bits.

numba compiles a kernel on its first call and writes it to its cache. This module chooses the cache's folder, which
must be the user's alone, lets several processes write at once, and compiles in child processes.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numba
from filelock import FileLock
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.runtime.nrt import rtsys

from charrnn.files import kernel_cache, make_private, user_cache

F = TypeVar("F", bound=Callable[..., Any])
_ROOMS = ("numerics", "kernels")  # whose functions are compiled
_PREFIX = "charrnn-"
_LAST_TESTED = (0, 68)  # version of numba whose compiled code runs before numba is ready to compile
_NUM_VERSIONS = 4  # of the sources, whose kernels stay: some 5 MB each


def compiled(function: F) -> F:
    """Compile on first use, and cache the result on disk.

    Sums may be reordered, because a dot product can't be vectorised otherwise. Infinities stay infinite.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    kernel = numba.njit(**options)(function)
    if cache_folder() is not None:
        kernel._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return cast(F, kernel)


@functools.cache
def cache_folder() -> Path | None:
    """Return the folder of compiled kernels; None, with a warning, if other users could plant some.

    Its name is a hash of all kernels' sources: numba's own check
    notices an edit only in the file of the called function, but a kernel calls kernels of other files.
    """
    base = kernel_cache()
    package = Path(__file__).parents[1]
    sources = sorted(path for room in _ROOMS for path in (package / room).glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    folder = base / f"{_PREFIX}{digest[:16]}"
    is_new = not folder.exists()
    for part in (user_cache(), base, folder) if base.parent == user_cache() else (base, folder):
        if problem := make_private(part):
            text = f"{part}: {problem}; kernels are not cached there, so every command compiles them again"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            return None
    if is_new:
        _drop_old(base)
    return folder


def _drop_old(base: Path) -> None:
    """Delete the kernels of all but the latest few versions of the sources."""
    by_age = sorted(base.glob(f"{_PREFIX}*"), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-_NUM_VERSIONS]:
        shutil.rmtree(path, ignore_errors=True)


class _Locator:
    """Tells numba where the cache is and how to name a function in it."""

    def __init__(self, function: Callable[..., Any], source: str) -> None:
        self._line, self._py_file = function.__code__.co_firstlineno, source  # numba's warnings name the file

    @classmethod
    def from_function(cls, function: Callable[..., Any], source: str) -> "_Locator":
        return cls(function, source)

    def ensure_cache_path(self) -> None:
        pass

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return ""  # the folder's name is one

    def get_disambiguator(self) -> str:
        return str(self._line)


class _LocatedCache(CompileResultCacheImpl):
    _locator_classes: ClassVar[list[type]] = [_Locator]  # type: ignore[misc, assignment]


class _Cache(FunctionCache):
    """numba's cache, but quicker to read, and with a lock.

    Without the lock two processes that write at once could give two variants of a function one file.
    """

    _impl_class = _LocatedCache

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load what was compiled for a signature.

        numba would first register its implementations of Python and numpy, which takes a third of a command's start
        and which only compilation needs. Compiled code needs its runtime alone.
        """
        if numba.version_info.short > _LAST_TESTED:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)  # type: ignore[no-untyped-call]

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write what was compiled for a signature. In a folder that can't be written to nothing is saved."""
        with contextlib.suppress(OSError), FileLock(Path(self.cache_path) / "kernels.lock"):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


def inlined(function: F) -> F:
    """Compile a function only as part of its callers: an entry of its own would take half a second."""
    return cast(F, numba.njit(inline="always")(function))


def compile_in_children(kernel: Callable[..., Any], *queues: Sequence[str]) -> list[str]:
    """Run calls of kernels in child processes, one per queue and all at once, unless they have succeeded before.

    Fresh code and cached code differ in the last bit of some sums: a function that several
    kernels share is linked from whichever kernel comes first, and each kernel optimised it on its
    own. So every process, the first one too, must load all kernels from the cache.

    kernel: any kernel; it knows the cache's folder. Without a cache to write to nothing is done.
    queues: lines of Python that call kernels.
    Returns the reason for each failure, such as the last line of a child's stderr. The caller then
    compiles in its own process. Its sums may differ in the last bit from those of later runs.
    """
    dispatcher: Any = kernel
    if dispatcher.stats.cache_path is None or not os.access(dispatcher.stats.cache_path, os.W_OK):
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
