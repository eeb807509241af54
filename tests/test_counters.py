"""Counter-based random numbers."""

import math

import numpy as np
import pytest

from charrnn.counters import dropout_mask, lane_resets, pass_offset, stream_uniforms, uniforms, weight_mask


def test_uniforms_depend_on_seed_stream_and_position_alone():
    """Any block of a stream, from any position, holds the same numbers."""
    whole = uniforms(100, seed=5, stream=2, position=0)
    for start, count in [(0, 1), (1, 7), (3, 5), (50, 50), (99, 1)]:
        assert (uniforms(count, seed=5, stream=2, position=start) == whole[start : start + count]).all()
    for other in (uniforms(100, seed=6, stream=2, position=0), uniforms(100, seed=5, stream=3, position=0)):
        assert not np.isin(other, whole).any()


def test_many_streams_have_the_numbers_of_each_alone():
    """For any seeds, streams, positions and candidates, up to the largest."""
    rng = np.random.default_rng(0)
    for size, count in [(1, 5), (2, 1), (7, 9), (40, 4)]:
        seeds, streams, positions = rng.integers(0, 2**63, (3, size)).tolist()
        candidates = rng.integers(0, 10_000, size).tolist()
        found = stream_uniforms(count, seeds=seeds, streams=streams, positions=positions, candidates=candidates)
        for row, seed, stream, position, candidate in zip(found, seeds, streams, positions, candidates, strict=True):
            alone = uniforms(count, seed=seed, stream=stream, position=position, candidate=candidate)
            assert row.tolist() == alone.tolist()


def test_uniforms_are_uniform():
    """Mean, variance and range of a long stream are those of U[0, 1), and neighbours are uncorrelated."""
    numbers = uniforms(200_000, seed=1, stream=0, position=0)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 200_000))
    assert numbers.var() == pytest.approx(1 / 12, abs=1e-3)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / math.sqrt(200_000)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.95])
def test_dropout_masks_drop_the_given_share_and_preserve_the_mean(dropout):
    """Units that stay are scaled by one over their share."""
    mask = dropout_mask(dropout, seed=1, step=2, layer=0, lanes=range(64), hidden_size=1000)
    assert mask.shape == (64, 1000)
    assert mask.dtype == np.float32
    assert (mask == 0).mean() == pytest.approx(dropout, abs=0.01)
    assert np.allclose(mask[mask > 0], 1 / (1 - dropout), rtol=1e-4)


def test_dropout_masks_are_keyed_by_seed_step_layer_and_global_lane():
    """A worker that owns some lanes makes exactly their rows; any other key makes other rows."""
    key = {"seed": 1, "step": 7, "layer": 1, "lanes": range(8), "hidden_size": 33}
    mask = dropout_mask(0.5, **key)
    assert (dropout_mask(0.5, **{**key, "lanes": range(5, 8)}) == mask[5:]).all()
    for change in ({"seed": 2}, {"step": 8}, {"layer": 0}, {"lanes": range(8, 16)}):
        assert (dropout_mask(0.5, **{**key, **change}) != mask).any()
    assert len({row.tobytes() for row in mask}) == 8


def test_weight_masks_drop_their_share_and_differ_by_window_and_layer():
    """The mean is one to within the sample's error; the same window has the same mask."""
    key = {"seed": 1, "step": 2, "layer": 0, "shape": (300, 101)}
    mask, scale = weight_mask(0.25, **key)
    assert mask.shape == (300, 101)
    assert mask.dtype == np.bool_
    assert scale == np.float32(4 / 3)
    assert mask.mean() == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / mask.size))
    assert (weight_mask(0.25, **key).kept == mask).all()
    for change in ({"seed": 2}, {"step": 3}, {"layer": 1}):
        assert (weight_mask(0.25, **{**key, **change}).kept != mask).any()


def test_lanes_are_reset_with_the_given_probability():
    """Each by its seed, step and global number."""
    found = np.array([lane_resets(0.1, seed=1, step=step, lanes=range(50)) for step in range(400)])
    assert found.mean() == pytest.approx(0.1, abs=5 * math.sqrt(0.1 * 0.9 / found.size))
    assert (lane_resets(0.1, seed=1, step=7, lanes=range(20, 30)) == found[7, 20:30]).all()
    assert (lane_resets(0.1, seed=2, step=7, lanes=range(50)) != found[7]).any()
    assert len({row.tobytes() for row in found}) > 300


def test_offsets_lie_in_the_text_and_differ():
    """A pass starts at a position that depends on the seed and the pass."""
    offsets = [pass_offset(1000, seed=1, pass_index=p) for p in range(200)]
    assert all(0 <= offset < 1000 for offset in offsets)
    assert len(set(offsets)) > 150
    assert offsets != [pass_offset(1000, seed=2, pass_index=p) for p in range(200)]
