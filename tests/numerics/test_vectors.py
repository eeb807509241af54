"""Vector maths and stored numbers."""

import numpy as np
import pytest
import torch

from charrnn.numerics import vectors
from charrnn.numerics.compilation import compiled
from tests import reference
from tests.numerics.stored import from_bfloat16, to_bfloat16


@compiled
def apply(function, x, out):
    """Apply exp, sigmoid or tanh, by number, to arrays (n,)."""
    if function == 0:
        for i in range(len(x)):
            out[i] = vectors.exp(x[i])
    elif function == 1:
        for i in range(len(x)):
            out[i] = vectors.sigmoid(x[i])
    else:
        for i in range(len(x)):
            out[i] = vectors.tanh(x[i])


@compiled
def widen(source, out):
    """Call vectors.widen, which only kernels can."""
    vectors.widen(source, out)


@compiled
def narrow(source, out):
    """Call vectors.narrow, which only kernels can."""
    vectors.narrow(source, out)


def evaluate(function, x):
    """Apply a function, by name, to an array."""
    x = np.asarray(x, np.float32)
    out = np.empty_like(x)
    apply(["exp", "sigmoid", "tanh"].index(function), x, out)
    return out


@pytest.mark.parametrize(
    ("function", "exact", "relative", "absolute"),
    [("exp", np.exp, 4e-6, 0), ("sigmoid", reference.sigmoid, 5e-6, 0), ("tanh", np.tanh, 0, 2e-7)],
)
def test_functions_are_accurate(function, exact, relative, absolute):
    """They agree with float64 over the range in which they don't saturate, and densely near zero."""
    x = np.concatenate([np.linspace(-86.9, 87.9, 50_001), np.linspace(-1, 1, 20_001), np.linspace(-1e-3, 1e-3, 1001)])
    x = x.astype(np.float32)
    np.testing.assert_allclose(evaluate(function, x), exact(x.astype(float)), rtol=relative, atol=absolute)


def test_exp_is_nearly_exact_near_zero():
    """The error is a few units in the last place, and e^0 is 1."""
    x = np.linspace(-1, 1, 20_001).astype(np.float32)
    np.testing.assert_allclose(evaluate("exp", x), np.exp(x.astype(float)), rtol=2e-7)
    assert (evaluate("exp", [0.0, -0.0]) == 1).all()


@pytest.mark.parametrize(
    ("function", "limits"),
    [
        ("exp", [0, 0, 1, np.exp(88), np.exp(88)]),
        ("sigmoid", [0, 0, 0.5, 1, 1]),
        ("tanh", [-1, -1, 0, 1, 1]),
    ],
)
def test_functions_saturate(function, limits):
    """Far out they take their limits, and a NaN stays a NaN."""
    found = evaluate(function, [-np.inf, -1e30, 0, 1e30, np.inf])
    np.testing.assert_allclose(found, limits, rtol=1e-5, atol=1e-37)
    assert np.isnan(evaluate(function, [np.nan, -np.nan] * 20)).all()


def test_narrow_rounds_to_the_nearest_bfloat16():
    """Every upper half, with lower halves around the ties, is rounded as PyTorch does, to even."""
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper | np.uint32(lower)).view(np.float32)
        x = x[~np.isnan(x)]  # includes denormals, infinities and both zeros
        found = np.empty(len(x), np.uint16)
        narrow(x, found)
        assert (found == to_bfloat16(x)).all(), hex(lower)
    for number, bits in [(1.00390625, 0x3F80), (1.01171875, 0x3F82), (-1.00390625, 0xBF80), (3.4e38, 0x7F80)]:
        narrow(np.array([number], np.float32), found[:1])
        assert found[0] == bits


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000])
def test_a_narrowed_nan_stays_a_nan(bits):
    """This holds for the NaNs that arithmetic makes, of either sign."""
    found = np.empty(40, np.uint16)
    narrow(np.full(40, bits, np.uint32).view(np.float32), found)
    assert np.isnan(from_bfloat16(found)).all()


def test_widen_is_exact():
    """Every bfloat16 number survives the way to float32 and back."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = np.empty(len(bits), np.float32)
    widen(bits, found)
    exact = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(found.view(np.uint32), exact.view(np.uint32))
    numbers, back = found[~np.isnan(found)], np.empty(np.count_nonzero(~np.isnan(found)), np.uint16)
    narrow(numbers, back)
    assert (back == bits[~np.isnan(found)]).all()


@pytest.mark.parametrize("copy", [widen, narrow])
def test_float32_is_stored_unchanged(copy):
    """Both copy float32 bit for bit."""
    x = np.random.default_rng(1).integers(0, 1 << 32, 1000, np.uint32).view(np.float32)
    found = np.zeros_like(x)
    copy(x, found)
    assert (found.view(np.uint32) == x.view(np.uint32)).all()
