"""One step of each cell against its equations; test_layers.py has whole windows and gradients."""

import numpy as np
import pytest

from charrnn.config import CELLS, NUM_GATES
from charrnn.kernels import cells
from tests import reference

STEPS = {"rnn": cells.rnn_step, "gru": cells.gru_step, "lstm": cells.lstm_step}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden", [1, 7, 200])
def test_a_step_follows_the_equations(cell, hidden):
    """One layer's step equals the naive cell, with large pre-activations too."""
    rng = np.random.default_rng(hidden)
    gates = NUM_GATES[cell] * hidden
    w_ih, w_hh = rng.standard_normal((gates, 5)) * 3, rng.standard_normal((gates, hidden)) * 3
    b_ih, b_hh = rng.standard_normal(gates), rng.standard_normal(gates)
    x, state = rng.standard_normal(5), [rng.standard_normal(hidden) for _ in range(reference.NUM_STATES[cell])]
    single = [part.astype(np.float32) for part in state]
    projected, recurrent = (w_ih @ x + b_ih).astype(np.float32), (w_hh @ state[0] + b_hh).astype(np.float32)
    before = projected.copy()
    STEPS[cell](projected, recurrent, *single)
    assert (projected == before).all()  # it may be a row of the table
    for found, expected in zip(single, reference.CELLS[cell](x, state, [w_ih, w_hh, b_ih, b_hh]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
