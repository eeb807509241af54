"""Weight drop: a weight of which some numbers are zero during a window.

Letters: N rows, K columns.
"""

import numpy as np
from numpy.typing import NDArray

from charrnn.numerics.compilation import compiled
from charrnn.numerics.vectors import Floats, Stored, narrow


@compiled
def mask_rows(values: Floats, kept: NDArray[np.bool_], scale: np.float32, out: Stored) -> None:
    """Multiply the numbers of values (N, K) that are kept by scale, and set the others to zero. out: may be values."""
    num_columns = values.shape[1]
    row = np.empty(num_columns, np.float32)
    for j in range(len(values)):
        for k in range(num_columns):
            row[k] = values[j, k] * scale if kept[j, k] else np.float32(0.0)
        narrow(row, out[j])
