"""Vector maths that LLVM turns into wide instructions.

A loop vectorises if it is short and runs over contiguous rows of few arrays. exp is a
polynomial and exponent bits, so a loop that calls it vectorises too.

A number is stored as float32 or as bfloat16, which is the upper half of a float32. numpy has
no bfloat16, so its bits are held as uint16. Sums are float32 in both cases.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from charrnn.numerics.compilation import compiled

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Stored = NDArray[np.float32] | NDArray[np.uint16]
_LOG2_E = np.float32(math.log2(math.e))


@intrinsic
def _float_of_bits(typing: Any, bits: Any) -> Any:
    """Reinterpret 32 bits as a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _bits_of_float(typing: Any, number: Any) -> Any:
    """Reinterpret a float32 as its 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@compiled
def exp(x: Any) -> Any:
    """Compute e^x in float32, with a relative error of 2e-7 near 0 and 4e-6 far out.

    x is first clamped to -87…88; a NaN stays a NaN. 2^n is made by putting n into a float's exponent
    bits, and 2^f for |f| <= 1/2 by a polynomial (Cephes' exp2f).
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
    """Compute the logistic function in float32."""
    return np.float32(1.0) / (np.float32(1.0) + exp(-x))


@compiled
def tanh(x: Any) -> Any:
    """Compute the hyperbolic tangent in float32, with an absolute error of 1e-7, half of it near 1.

    Gradients depend on the distance from 1.
    """
    small = exp(np.float32(-2.0) * abs(x))
    size = np.float32(1.0) - np.float32(2.0) * small / (np.float32(1.0) + small)
    return size if x >= np.float32(0.0) else -size


def widen(source: Stored, out: Floats) -> None:
    """Convert stored numbers to float32. source, out: (n,). For kernels only."""
    raise NotImplementedError


def narrow(source: Floats, out: Stored) -> None:
    """Store float32 numbers, in bfloat16 rounded to nearest, ties to even. For kernels only.

    source, out: (n,). A NaN that arithmetic made stays a NaN.
    """
    raise NotImplementedError


def _copy(source: Any, out: Any) -> None:
    for i in range(len(source)):
        out[i] = source[i]


def to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Round contiguous values to bfloat16 as narrow does, to nearest and ties to even, without a kernel."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


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
