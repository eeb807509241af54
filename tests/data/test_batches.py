"""Batches: every character is read once per pass, in order, from any cursor; withheld pieces are never read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.data import batches
from charrnn.data.batches import (
    IGNORE_INDEX,
    PIECE_SIZE,
    Cursor,
    TrainText,
    cut_lanes,
    make_train_text,
    next_step,
    read_window,
)


def read(ids, cursor, **config):
    """Return the step at the cursor and its window."""
    step = next_step(len(ids), cursor, **config)
    return step, read_window(ids, step)


def read_pass(ids, cursor, **config):
    """Return all steps of the cursor's pass, and their windows."""
    steps, windows, index = [], [], cursor.pass_index
    while cursor.pass_index == index:
        step, window = read(ids, cursor, **config)
        steps.append(step)
        windows.append(window)
        cursor = step.next_cursor
    return steps, windows


@settings(max_examples=60)
@given(
    num_chars=st.integers(1, 200), batch_size=st.integers(1, 40), seq_len=st.integers(1, 30), seed=st.integers(0, 99)
)
def test_a_pass_predicts_every_character_once(num_chars, batch_size, seq_len, seed):
    """The targets of a pass are all positions of the text, each exactly once, and so are the inputs that count."""
    batch_size = min(batch_size, num_chars)
    ids = np.arange(num_chars, dtype=np.uint16)  # a character's id is its position
    steps, windows = read_pass(ids, Cursor(3, 0), batch_size=batch_size, seq_len=seq_len, seed=seed)
    scored = np.concatenate([targets[targets != IGNORE_INDEX] for _, targets in windows])
    assert sorted(scored.tolist()) == list(range(num_chars))
    assert sum(step.num_targets for step in steps) == num_chars
    for x, targets in windows:
        is_scored = targets != IGNORE_INDEX
        assert ((x[is_scored] + 1) % num_chars == targets[is_scored]).all()
        assert len(x) <= seq_len
    assert [step.starts_pass for step in steps] == [True] + [False] * (len(steps) - 1)


def test_each_lane_reads_consecutive_characters():
    """A window continues where the previous one ended."""
    ids = np.arange(100, dtype=np.uint8)
    _, windows = read_pass(ids, Cursor(), batch_size=4, seq_len=7, seed=1)
    x = np.concatenate([x for x, _ in windows])
    assert x.shape == (25, 4)
    assert (np.diff(x, axis=0) % 100 == 1).all()


def test_each_pass_starts_at_another_offset():
    """The offset depends on the seed and the pass alone."""
    ids = np.arange(1000, dtype=np.uint16)
    starts, again = (
        [int(read(ids, Cursor(index, 0), batch_size=2, seq_len=3, seed=5)[1][0][0, 0]) for index in range(20)]
        for _ in range(2)
    )
    assert len(set(starts)) > 15
    assert starts == again


def test_a_window_depends_only_on_its_cursor():
    """Reading it again gives the same window."""
    ids = np.arange(50, dtype=np.uint8)
    cursor = Cursor()
    for _ in range(9):
        (step, first), (same, again) = (read(ids, cursor, batch_size=3, seq_len=4, seed=2) for _ in range(2))
        assert (first[0] == again[0]).all()
        assert step.next_cursor == same.next_cursor
        cursor = step.next_cursor


@settings(max_examples=40)
@given(num_chars=st.integers(4, 99), lanes=st.tuples(st.integers(0, 3), st.integers(1, 4)), seed=st.integers(0, 9))
def test_a_slice_of_lanes_matches_the_whole(num_chars, lanes, seed):
    """Only the characters of these lanes are read, and one after each."""

    class Watched(np.ndarray):
        def __getitem__(self, positions):
            positions_read.update(np.asarray(positions).ravel().tolist())
            return np.asarray(self)[positions]

    lanes, positions_read, cursor = slice(*sorted(lanes)), set(), Cursor(2, 0)
    ids, config = np.arange(num_chars, dtype=np.uint8), {"batch_size": 4, "seq_len": 3, "seed": seed}
    while cursor.pass_index == 2:
        whole_step, (whole_x, whole_targets) = read(ids, cursor, **config)
        step, (x, targets) = read(ids.view(Watched), cursor, lanes=lanes, **config)
        assert np.array_equal(x, whole_x[:, lanes])
        assert np.array_equal(targets, whole_targets[:, lanes])
        assert step.num_targets == whole_step.num_targets
        assert step.starts_pass == whole_step.starts_pass
        assert step.next_cursor == whole_step.next_cursor
        cursor = step.next_cursor
    longest = -(-num_chars // 4)
    assert len(positions_read) <= (longest + 1) * (lanes.stop - lanes.start)


@pytest.mark.parametrize(("num_chars", "num_lanes"), [(10, 3), (9, 3), (3, 3), (64, 1)])
def test_lanes_are_contiguous_and_even(num_chars, num_lanes):
    """There are no gaps between lanes, and their lengths differ by at most one."""
    starts, lengths = cut_lanes(num_chars, num_lanes)
    assert starts[0] == 0
    assert (starts[:-1] + lengths[:-1] == starts[1:]).all()
    assert lengths.sum() == num_chars
    assert lengths.max() - lengths.min() <= 1


# withheld pieces


@pytest.mark.parametrize("starts", [[], [0], [3000], [500, 2500, 4000], [1000, 2000, 3000]])
def test_train_text_is_the_text_without_the_pieces(starts):
    """Indexed with positions of any shape, and as a copy."""
    ids = np.random.default_rng(0).integers(0, 250, 5000).astype(np.uint8)
    text = TrainText(ids, np.array(starts, np.int64))
    pieces = [position for start in starts for position in range(start, start + PIECE_SIZE)]
    expected = np.delete(ids, pieces)
    assert len(text) == len(expected)
    assert (text[np.arange(len(text))] == expected).all()
    positions = np.random.default_rng(1).integers(0, len(text), (7, 11))
    assert (text[positions] == expected[positions]).all()
    assert (text.remaining_ids(0) == expected).all()
    later = np.delete(ids, pieces + list(range(2200)))
    if all(start >= 2200 or start + PIECE_SIZE <= 2200 for start in starts):
        assert (text.remaining_ids(2200) == later).all()


@pytest.mark.parametrize(
    ("num_chars", "vocab_size", "num_pieces"),
    [
        (39_999, 65, 0),
        (40_000, 65, 1),
        (1_000_000, 65, 25),
        (2_000_000, 65, 30),
        (2_000_000, 30, 50),
        (1_000_000, 4000, 1),
    ],
)
def test_one_character_in_forty_is_withheld(num_chars, vocab_size, num_pieces):
    """At most fifty pieces, and fewer for large vocabularies; evenly spread, each with text before it."""
    text = make_train_text(np.zeros(num_chars, np.uint8), vocab_size)
    assert len(text.withheld_starts) == num_pieces
    assert len(text) == num_chars - num_pieces * PIECE_SIZE
    if num_pieces:
        assert text.withheld_starts[0] >= num_chars // (2 * num_pieces) - PIECE_SIZE
        assert text.withheld_starts[-1] + PIECE_SIZE <= num_chars
        assert (np.abs(np.diff(text.withheld_starts, 2)) <= 1).all()


def test_pieces_of_a_long_text_lie_where_ngrams_are_counted(monkeypatch):
    """That is its end."""
    monkeypatch.setattr(batches, "LAST_PART", 100_000)
    text = make_train_text(np.zeros(1_000_000, np.uint8), 65)
    assert len(text.withheld_starts) == 2
    assert text.withheld_starts.min() >= 900_000
