"""Numbers as kernels store them, in float32 or bfloat16."""

import numpy as np
import pytest
import torch

from charrnn.numerics.processor import cpu_has

STORAGES = [
    "float32",
    pytest.param("bfloat16", marks=pytest.mark.skipif(not cpu_has("avx512bf16"), reason="no AVX512-BF16 here")),
]


def to_bfloat16(x):
    """Round float32 numbers to bfloat16 with PyTorch; return their bits."""
    tensor = torch.from_numpy(np.ascontiguousarray(x)).to(torch.bfloat16)
    return tensor.view(torch.int16).numpy().view(np.uint16)


def from_bfloat16(bits):
    """Turn the bits of bfloat16 into float32 numbers."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def random_stored(rng, storage, *shape):
    """Draw random numbers in a storage; return them as stored, and the same numbers in float64."""
    x = rng.standard_normal(shape).astype(np.float32)
    if storage == "float32":
        return x, x.astype(np.float64)
    bits = to_bfloat16(x)
    return bits, from_bfloat16(bits).astype(np.float64)


def nan_like(stored, *shape):
    """Make NaNs in the storage of another array, so that a kernel that reads one shows it."""
    return np.full(shape, np.nan if stored.dtype == np.float32 else 0x7FC0, stored.dtype)
