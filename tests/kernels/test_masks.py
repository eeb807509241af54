"""Weight drop."""

import numpy as np
import pytest

from charrnn.kernels.masks import mask_rows
from charrnn.numerics.vectors import to_bfloat16


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (96, 300)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_what_is_kept_is_scaled_and_the_rest_is_zero(shape, dtype):
    """In either storage, and in place."""
    rng = np.random.default_rng(0)
    values, kept, scale = rng.normal(size=shape).astype(np.float32), rng.random(shape) < 0.7, np.float32(1 / 0.7)
    expected = np.where(kept, values * scale, np.float32(0.0))
    out = np.empty(shape, dtype)
    mask_rows(values, kept, scale, out)
    assert (out == (expected if dtype == np.float32 else to_bfloat16(expected))).all()
    mask_rows(values, kept, scale, values)
    assert (values == expected).all()
