"""Windows on a device are those that the host reads."""

import numpy as np
import pytest
import torch

from charrnn import feed
from charrnn.batches import Cursor, next_step, read_window
from charrnn.feed import Feed, gather, has_room, resident
from charrnn.withholding import SIZE, Withheld

CPU = torch.device("cpu")


def made(dtype, num_chars=7001):
    """A text without two pieces, one at its very end."""
    ids = np.random.default_rng(1).integers(0, 250, num_chars).astype(dtype)
    return Withheld(ids, np.array([1500, num_chars - SIZE]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("piece", [1 << 24, 999])
def test_a_text_lies_on_a_device_as_it_is_read(monkeypatch, dtype, piece):
    """Without what is withheld, however many pieces it is copied in; every number of either type."""
    monkeypatch.setattr(feed, "_PIECE", piece)
    text = made(dtype)
    text.ids[:3] = [0, np.iinfo(dtype).max, 77]
    found = resident(text, CPU)
    assert np.array_equal(found.numpy().astype(np.int64), text[np.arange(len(text))].astype(np.int64))


@pytest.mark.parametrize("lanes", [slice(None), slice(2, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_are_gathered_as_they_are_read(dtype, lanes):
    """All of two passes, the shorter last windows too."""
    text, cursor = made(dtype), Cursor()
    there = resident(text, CPU)
    while cursor.pass_index < 2:
        step = next_step(len(text), cursor, batch_size=7, seq_len=64, seed=3, lanes=lanes)
        expected = read_window(text, step)
        for x, targets in (gather(there, step), Feed(text, CPU).window(step)):
            assert (x.dtype, targets.dtype) == (torch.int64, torch.int64)
            assert np.array_equal(x.numpy(), expected.x)
            assert np.array_equal(targets.numpy(), expected.targets)
        cursor = step.after


def test_a_text_lies_on_a_gpu_where_it_takes_little_of_it(monkeypatch):
    """A quarter of what is free at most; a CPU needs no copy."""
    text, free = made(np.uint16), [0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 1 << 40))
    assert not has_room(text, CPU)
    for free[0], expected in [(16 * len(text), True), (16 * len(text) - 4, False)]:
        assert has_room(text, torch.device("cuda", 0)) == expected
