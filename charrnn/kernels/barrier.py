"""A barrier for threads that meet every few microseconds; being woken by the system would take longer than their work.

A barrier is an int64 array from `new_barrier`. Whoever waits spins, and after a while offers
its core to others between looks, so that a crowded machine makes it slow but not stuck.
"""

import sys
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from charrnn.kernels.compilation import compiled

_build: Any = cgutils  # untyped
_ARRIVED, _TURN, _ABANDONED = 0, 8, 16  # places far enough apart to lie on cache lines of their own
_SPINS = 100  # a few microseconds


def new_barrier() -> NDArray[np.int64]:
    """A barrier that nobody has reached yet."""
    return np.zeros(24, np.int64)


def abandon(barrier: NDArray[np.int64]) -> None:
    """Let everybody through from now on: a thread that was to come never will. What they compute is worth nothing."""
    barrier[_ABANDONED] = 1


@intrinsic
def _load(typing: Any, array: Any, index: Any) -> Any:
    """Read a number that another thread may be writing, and see all it had written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def _add(typing: Any, array: Any, index: Any, number: Any) -> Any:
    """Add to a number that others add to, and return what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def _pause(typing: Any) -> Any:
    """Tell the processor that this is a spin, where there is an instruction for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if binding.get_process_triple().startswith("x86_64"):
            nothing = ir.FunctionType(ir.VoidType(), [])
            builder.call(_build.get_or_insert_function(builder.module, nothing, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _offer_core(typing: Any) -> Any:
    """Let another thread run, where POSIX has a call for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if sys.platform != "win32":
            call = ir.FunctionType(ir.IntType(32), [])
            builder.call(_build.get_or_insert_function(builder.module, call, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def meet(barrier: NDArray[np.int64], num_threads: int) -> None:
    """Wait until all threads are here; what each wrote before, the others then see."""
    if num_threads == 1:
        return
    turn: Any = _load(barrier, _TURN)  # type: ignore[call-arg]
    if _add(barrier, _ARRIVED, 1) == num_threads - 1:
        _add(barrier, _ARRIVED, -num_threads)
        _add(barrier, _TURN, 1)
        return
    spins = 0
    while _load(barrier, _TURN) == turn and _load(barrier, _ABANDONED) == 0:
        spins += 1
        if spins < _SPINS:
            _pause()
        else:
            _offer_core()
