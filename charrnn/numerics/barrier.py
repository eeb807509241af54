"""A barrier for threads that meet every few microseconds; the system would take longer to wake them.

A barrier is an int64 array from `new_barrier`. A waiting thread spins. After a while it yields its
core between two looks, so a crowded machine makes it slow but not stuck.
"""

import sys
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from charrnn.numerics.compilation import compiled

_build: Any = cgutils  # untyped
_ARRIVED, _PHASE, _ABORTED = 0, 8, 16  # indices far enough apart to lie on separate cache lines
_SPINS = 100  # a few microseconds


def new_barrier() -> NDArray[np.int64]:
    """Make a barrier that no thread has reached yet."""
    return np.zeros(24, np.int64)


def abort(barrier: NDArray[np.int64]) -> None:
    """Release all threads, now and later, because one will never arrive; their results must be discarded."""
    barrier[_ABORTED] = 1


@intrinsic
def _load(typing: Any, array: Any, index: Any) -> Any:
    """Read an integer that another thread may write, and see everything that thread wrote before it (acquire)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def _fetch_add(typing: Any, array: Any, index: Any, number: Any) -> Any:
    """Add to an integer atomically and return its old value."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def _pause(typing: Any) -> Any:
    """Tell the processor that this is a spin loop, where there is an instruction for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if binding.get_process_triple().startswith("x86_64"):
            function = ir.FunctionType(ir.VoidType(), [])
            builder.call(_build.get_or_insert_function(builder.module, function, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _yield_core(typing: Any) -> Any:
    """Let another thread run, where POSIX has a call for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if sys.platform != "win32":
            function = ir.FunctionType(ir.IntType(32), [])
            builder.call(_build.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def wait(barrier: NDArray[np.int64], num_threads: int) -> None:
    """Wait until all threads are here. Each then sees what the others wrote before."""
    if num_threads == 1:
        return
    phase: Any = _load(barrier, _PHASE)  # type: ignore[call-arg]
    if _fetch_add(barrier, _ARRIVED, 1) == num_threads - 1:
        _fetch_add(barrier, _ARRIVED, -num_threads)
        _fetch_add(barrier, _PHASE, 1)
        return
    spins = 0
    while _load(barrier, _PHASE) == phase and _load(barrier, _ABORTED) == 0:
        spins += 1
        if spins < _SPINS:
            _pause()
        else:
            _yield_core()
