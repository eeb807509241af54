"""What is dropped in a step."""

import torch

from charrnn.config import ModelConfig, TrainConfig
from charrnn.counters import lane_resets
from charrnn.model.network import CharRNN
from charrnn.training import optimizer
from charrnn.training.optimizer import reset_lanes
from charrnn.training.state import TrainState


def test_chosen_lanes_start_from_zeros_and_the_others_carry_on(monkeypatch):
    """In all parts of the state and all layers; a process that owns some lanes resets the same ones."""
    monkeypatch.setattr(optimizer, "RESET_SHARE", 0.5)
    config = TrainConfig(batch_size=8, seq_len=4, dropout=0.0, learning_rate=1e-3, seed=3)
    state = TrainState.initial(CharRNN(ModelConfig("lstm", 5, 4, 6, 2)), config)
    before = state.hidden = tuple(torch.rand(2, 8, 6) + 1.0 for _ in range(2))
    chosen = torch.from_numpy(lane_resets(0.5, seed=3, step=0, lanes=range(8)))
    assert 0 < chosen.sum() < 8
    reset_lanes(state, config)
    for old, new in zip(before, state.hidden, strict=True):
        assert (new[:, chosen] == 0).all()
        assert (new[:, ~chosen] == old[:, ~chosen]).all()
    whole, state.hidden = state.hidden, tuple(part[:, 4:] for part in before)
    reset_lanes(state, config, slice(4, 8))
    assert all((part == all_lanes[:, 4:]).all() for part, all_lanes in zip(state.hidden, whole, strict=True))
