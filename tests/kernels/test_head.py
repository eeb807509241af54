"""The output layer: its loss and gradients in one pass over the rows."""

import numpy as np
import pytest

from charrnn.kernels.head import PackedHead, nats_and_gradients
from charrnn.numerics.products import new_packed, pack, pack_transposed, padded
from tests.conftest import relative_error
from tests.numerics.stored import STORAGES, from_bfloat16, nan_like, random_stored

MARK = np.float32(-7.75)  # stands where nothing may be written


def run_head(y, weight, bias, targets, *, d_weight, d_bias):
    """Return the nats and dy; d_weight and d_bias are added to. y: (R, H); weight: (V, H), stored as y is."""
    forward, backward = new_packed(weight, weight.shape[1], weight.shape[0]), new_packed(weight, *weight.shape)
    pack_transposed(weight, forward)
    pack(weight, backward)
    dy = nan_like(y, *y.shape)
    nats = nats_and_gradients(PackedHead(forward, backward, bias), y, targets, dy, d_weight, d_bias)
    return nats, dy.astype(np.float64) if dy.dtype == np.float32 else from_bfloat16(dy).astype(np.float64)


def cross_entropy(y, weight, bias, targets):
    """Compute nats, dy, d_weight and d_bias of the scored rows in float64, from the softmax."""
    logits = y @ weight.T + bias
    logits -= logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    scored = np.flatnonzero(targets >= 0)
    errors = np.zeros_like(logits)
    errors[scored] = np.exp(log_probabilities[scored])
    errors[scored, targets[scored]] -= 1
    return -log_probabilities[scored, targets[scored]].sum(), errors @ weight, errors.T @ y, errors.sum(axis=0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("vocab", "rows", "hidden"), [(2, 5, 1), (2, 5, 33), (65, 3001, 7), (65, 3001, 33), (5000, 60, 1), (5000, 60, 33)]
)
def test_the_loss_and_its_gradients_follow_the_softmax(storage, vocab, rows, hidden):
    """They do with one and with several chunks of rows; rows that aren't scored have no effect."""
    rng = np.random.default_rng(vocab + hidden)
    y, exact_y = random_stored(rng, storage, rows, hidden)
    weight, exact_weight = random_stored(rng, storage, vocab, hidden)
    bias = rng.standard_normal(vocab).astype(np.float32)
    targets = rng.integers(0, vocab, rows)
    targets[[0, rows // 2]] = -1, -100
    start, d_bias = rng.standard_normal((vocab, padded(hidden))).astype(np.float32), np.ones(vocab, np.float32)
    d_weight = start.copy()
    found, dy = run_head(y, weight, bias, targets, d_weight=d_weight, d_bias=d_bias)
    nats, exact_dy, exact_d_weight, exact_d_bias = cross_entropy(exact_y, exact_weight, bias, targets)
    assert found == pytest.approx(nats, rel=1e-6)
    # errors and dy are stored as y is: half a unit in the last of bfloat16's 8 bits
    tolerance = 1e-5 if storage == "float32" else 2**-8
    assert relative_error(dy, exact_dy) < tolerance
    assert relative_error(d_weight[:, :hidden] - start[:, :hidden], exact_d_weight) < tolerance
    assert relative_error(d_bias, 1 + exact_d_bias) < 1e-5
    assert (dy[targets < 0] == 0).all()
    assert (d_weight[:, hidden:] == start[:, hidden:]).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_without_scored_rows_there_is_no_loss(storage):
    """The nats are zero, and no bit of a gradient changes."""
    rng = np.random.default_rng(1)
    (y, _), (weight, _) = random_stored(rng, storage, 9, 7), random_stored(rng, storage, 65, 7)
    d_weight, d_bias = np.full((65, padded(7)), MARK), np.full(65, MARK)
    bias = np.zeros(65, np.float32)
    nats, dy = run_head(y, weight, bias, np.full(9, -1), d_weight=d_weight, d_bias=d_bias)
    assert nats == 0
    for gradient, before in [(dy, 0), (d_weight, MARK), (d_bias, MARK)]:
        assert (gradient == before).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_extreme_logits_make_no_infinity(storage):
    """Hundreds of nats are summed correctly, and a certain character has none."""
    rng = np.random.default_rng(1)
    (y, exact_y), (weight, exact_weight) = random_stored(rng, storage, 4, 3), random_stored(rng, storage, 5, 3)
    bias = np.array([1000, 500, 999, -1e4, 0], np.float32)
    targets = np.array([0, 1, 3, 2])
    d_weight, d_bias = np.zeros((5, padded(3)), np.float32), np.zeros(5, np.float32)
    found, dy = run_head(y, weight, bias, targets, d_weight=d_weight, d_bias=d_bias)
    nats, exact_dy, _, exact_d_bias = cross_entropy(exact_y, exact_weight, bias, targets)
    assert nats > 11_000
    assert found == pytest.approx(nats, rel=1e-6)
    tolerance = 1e-4 if storage == "float32" else 2**-8  # logits near 1000 have 14 bits left
    assert relative_error(dy, exact_dy) < tolerance
    assert relative_error(d_bias, exact_d_bias) < 1e-4
