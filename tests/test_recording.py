"""Which way a function is called: as it is, or by a replay where that is right and faster. GPUs: test_cuda.py."""

import time

import pytest
import torch

from charrnn.lanes import Workers, window_gradient
from charrnn.model import CharRNN
from charrnn.recording import Replays
from tests.conftest import small_plan

CALLS = 30  # more than go before a recording


def slow(x, y):
    """Two results, after a while."""
    time.sleep(0.002)
    return x * y, x + y


class Calls:
    """Makes replays that count how often they run."""

    def __init__(self, outcome, seconds=0.0):
        self.outcome, self.seconds = outcome, seconds
        self.made, self.run = [], 0

    def __call__(self, function, inputs):
        self.made.append(inputs[0].shape)

        def replay(*inputs):
            self.run += 1
            time.sleep(self.seconds)
            return self.outcome(*inputs)

        return replay


def call(replays, size, count=CALLS):
    """Each result, for inputs that differ in every call."""
    for number in range(count):
        x, y = torch.full((size,), float(number + 1)), torch.ones(size)
        product, total = replays(x, y)
        assert (product == x * y).all()
        assert (total == x + y).all()


def test_a_faster_replay_takes_over():
    """From some call on, for the inputs' own values."""
    record = Calls(lambda x, y: (x * y, x + y))
    replays = Replays(slow, record)
    call(replays, 3)
    assert record.made == [(3,)]
    assert record.run > CALLS // 2
    assert replays.is_replayed(torch.Size([3]))


def test_each_shape_has_its_own_and_a_rare_one_none():
    """A text's last window, which is shorter, isn't worth it."""
    record = Calls(lambda x, y: (x * y, x + y))
    replays = Replays(slow, record)
    call(replays, 3)
    call(replays, 2, count=3)
    call(replays, 4)
    assert record.made == [(3,), (4,)]


@pytest.mark.parametrize(
    "record",
    [
        Calls(lambda x, y: (x * y, x + y), seconds=0.01),
        Calls(lambda x, y: (x * y, x + y + 0.1)),
        Calls(lambda x, y: (x * y, x * float("nan"))),
    ],
    ids=["slower", "wrong", "not a number"],
)
def test_a_replay_that_is_no_better_is_dropped(record):
    """It ran a few times, to be measured and compared, and never again."""
    replays = Replays(slow, record)
    call(replays, 3)
    tried = record.run
    assert 1 <= tried < CALLS
    call(replays, 3)
    assert (len(record.made), record.run) == (1, tried)
    assert not replays.is_replayed(torch.Size([3]))


def test_what_cannot_be_recorded_is_called():
    """No memory for it, say."""
    made = []

    def record(function, inputs):
        made.append(function)
        raise torch.OutOfMemoryError("CUDA out of memory")

    call(Replays(slow, record), 3)
    assert made == [slow]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_gpus_way_computes_what_a_cpus_does(tmp_path, corpus, cell):
    """All lanes at once, in float64, with masks; the results come apart again as they were put together."""
    plan = small_plan(tmp_path, corpus)
    model = CharRNN(plan.model).double()
    x, targets = torch.randint(plan.model.vocab_size, (2, 5, 4))
    state = tuple(torch.randn(part.shape, dtype=torch.float64) for part in model.initial_state(4))
    masks = [torch.rand(4, plan.model.hidden_size, dtype=torch.float64) for _ in range(2)]
    expected = window_gradient(model, x, targets, state, masks)
    with Workers(model, num_workers=1, precision="float32") as workers:
        nats, gradient, *after = workers._of_one(x, targets, *state, *masks)
    assert float(nats) == float(expected.nats)
    torch.testing.assert_close(gradient, expected.gradient.float())
    torch.testing.assert_close(tuple(after), expected.state)
