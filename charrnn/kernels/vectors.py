"""Vector maths that LLVM turns into wide instructions, and how kernels are compiled.

A loop vectorises when it is short and runs over contiguous rows of few arrays; exp is a
polynomial and exponent bits, which no loop stops for.

A number is stored as float32 or as bfloat16, the upper half of a float32, which numpy does
not know: its bits travel as uint16. Sums are float32 in either.
"""

import contextlib
import functools
import hashlib
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from filelock import FileLock
from llvmlite import ir
from numba.core import types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Stored = NDArray[np.float32] | NDArray[np.uint16]
F = TypeVar("F", bound=Callable[..., Any])

_LOG2_E = np.float32(math.log2(math.e))


def compiled(function: F) -> F:
    """Compile on first use, keeping the result on disk where a folder for it can be written.

    Sums may be reordered, which vectorising a dot product needs; infinities stay infinite.
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


def compile_apart(kernel: Callable[..., Any], *queues: Sequence[str]) -> None:
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


@intrinsic
def _float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 that has these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _bits_of_float(typing: Any, number: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@compiled
def exp(x: Any) -> Any:
    """e^x in float32, to 2e-7 relative near 0 and 4e-6 far out; x is first clamped to -87…88, a NaN stays one.

    2^n is made by putting n in a float's exponent bits, 2^f for |f| <= 1/2 by a polynomial
    (Cephes' exp2f).
    """
    low, high = np.float32(-87.0), np.float32(88.0)
    x = low if x < low else x
    x = high if x > high else x
    power = x * _LOG2_E
    whole = np.rint(power)
    f = power - whole
    p = np.float32(1.535336188319500e-4)
    p = p * f + np.float32(1.339887440266574e-3)
    p = p * f + np.float32(9.618437357674640e-3)
    p = p * f + np.float32(5.550332471162809e-2)
    p = p * f + np.float32(2.402264791363012e-1)
    p = p * f + np.float32(6.931472028550421e-1)
    p = p * f + np.float32(1.0)
    bits: Any = (np.int32(whole) + np.int32(127)) << np.int32(23)
    return p * _float_of_bits(bits)  # type: ignore[call-arg]


@compiled
def sigmoid(x: Any) -> Any:
    """The logistic function in float32."""
    return np.float32(1.0) / (np.float32(1.0) + exp(-x))


@compiled
def tanh(x: Any) -> Any:
    """The hyperbolic tangent in float32, to 1e-7 absolute and half that near one, which gradients feel."""
    small = exp(np.float32(-2.0) * abs(x))
    size = np.float32(1.0) - np.float32(2.0) * small / (np.float32(1.0) + small)
    return size if x >= np.float32(0.0) else -size


def widen(source: Stored, out: Floats) -> None:
    """Read stored numbers as float32. source, out: (n,). For kernels only."""
    raise NotImplementedError


def narrow(source: Floats, out: Stored) -> None:
    """Store float32 numbers, to bfloat16 by rounding to nearest, ties to even. For kernels only.

    source, out: (n,). No NaN may become a number: those that arithmetic makes don't.
    """
    raise NotImplementedError


def _copy(source: Any, out: Any) -> None:
    for i in range(len(source)):
        out[i] = source[i]


@overload(widen)
def _widen(source: Any, out: Any) -> Any:
    def from_bfloat16(source: Any, out: Any) -> None:
        for i in range(len(source)):
            bits: Any = np.int32(np.uint32(source[i]) << np.uint32(16))
            out[i] = _float_of_bits(bits)  # type: ignore[call-arg]

    return _copy if source.dtype == types.float32 else from_bfloat16


@overload(narrow)
def _narrow(source: Any, out: Any) -> Any:
    def to_bfloat16(source: Any, out: Any) -> None:
        for i in range(len(source)):
            bits: Any = np.uint32(_bits_of_float(source[i]))  # type: ignore[call-arg]
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            out[i] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return _copy if out.dtype == types.float32 else to_bfloat16
