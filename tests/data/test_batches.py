"""Windows and lanes: every character once a pass, in order, from any cursor."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.batches import IGNORE_INDEX, Cursor, cut_lanes, next_step, read_window


def read(ids, cursor, **settings):
    """What is read at the cursor, and the window."""
    step = next_step(len(ids), cursor, **settings)
    return step, read_window(ids, step)


def read_pass(ids, cursor, **settings):
    """All steps of the cursor's pass, and their windows."""
    pairs, index = [], cursor.pass_index
    while cursor.pass_index == index:
        pairs.append(read(ids, cursor, **settings))
        cursor = pairs[-1][0].after
    return [step for step, _ in pairs], [window for _, window in pairs]


@given(
    num_chars=st.integers(1, 200), batch_size=st.integers(1, 40), seq_len=st.integers(1, 30), seed=st.integers(0, 99)
)
def test_a_pass_predicts_every_character_once(num_chars, batch_size, seq_len, seed):
    """Targets of a pass are the text's positions, each exactly once; so are the inputs that count."""
    batch_size = min(batch_size, num_chars)
    ids = np.arange(num_chars, dtype=np.uint16)  # a character's id is its position
    steps, windows = read_pass(ids, Cursor(3, 0), batch_size=batch_size, seq_len=seq_len, seed=seed)
    scored = np.concatenate([w.targets[w.targets != IGNORE_INDEX] for w in windows])
    assert sorted(scored.tolist()) == list(range(num_chars))
    assert sum(step.num_targets for step in steps) == num_chars
    for window in windows:
        kept = window.targets != IGNORE_INDEX
        assert ((window.x[kept] + 1) % num_chars == window.targets[kept]).all()
        assert len(window.x) <= seq_len
    assert [step.starts_pass for step in steps] == [True] + [False] * (len(steps) - 1)


def test_lanes_go_on_where_they_stopped():
    """Each lane reads consecutive characters from window to window."""
    ids = np.arange(100, dtype=np.uint8)
    _, windows = read_pass(ids, Cursor(), batch_size=4, seq_len=7, seed=1)
    x = np.concatenate([w.x for w in windows])
    assert x.shape == (25, 4)
    assert (np.diff(x, axis=0) % 100 == 1).all()


def test_each_pass_cuts_the_text_elsewhere():
    """The offset is drawn anew, from the seed and the pass alone."""
    ids = np.arange(1000, dtype=np.uint16)
    starts = [int(read(ids, Cursor(p, 0), batch_size=2, seq_len=3, seed=5)[1].x[0, 0]) for p in range(20)]
    assert len(set(starts)) > 15
    again = [int(read(ids, Cursor(p, 0), batch_size=2, seq_len=3, seed=5)[1].x[0, 0]) for p in range(20)]
    assert starts == again


def test_reading_is_a_function_of_the_cursor():
    """A window read again from its cursor is the same window."""
    ids = np.arange(50, dtype=np.uint8)
    cursor = Cursor()
    for _ in range(9):
        (step, first), (same, again) = (read(ids, cursor, batch_size=3, seq_len=4, seed=2) for _ in range(2))
        assert (first.x == again.x).all()
        assert step.after == same.after
        cursor = step.after


@given(num_chars=st.integers(4, 99), lanes=st.tuples(st.integers(0, 3), st.integers(1, 4)), seed=st.integers(0, 9))
def test_some_lanes_are_those_of_the_whole(num_chars, lanes, seed):
    """And nothing else of the text is read than these lanes, and the character after each."""

    class Watched(np.ndarray):
        def __getitem__(self, places):
            touched.update(np.asarray(places).ravel().tolist())
            return np.asarray(self)[places]

    lanes, touched, cursor = slice(*sorted(lanes)), set(), Cursor(2, 0)
    ids, settings = np.arange(num_chars, dtype=np.uint8), {"batch_size": 4, "seq_len": 3, "seed": seed}
    while cursor.pass_index == 2:
        step, whole = read(ids, cursor, **settings)
        own, part = read(ids.view(Watched), cursor, lanes=lanes, **settings)
        assert np.array_equal(part.x, whole.x[:, lanes])
        assert np.array_equal(part.targets, whole.targets[:, lanes])
        assert (own.num_targets, own.starts_pass, own.after) == (step.num_targets, step.starts_pass, step.after)
        cursor = step.after
    longest = -(-num_chars // 4)
    assert len(touched) <= (longest + 1) * (lanes.stop - lanes.start)


@pytest.mark.parametrize(("num_chars", "num_lanes"), [(10, 3), (9, 3), (3, 3), (64, 1)])
def test_lanes_are_contiguous_and_even(num_chars, num_lanes):
    """Lanes follow one another without gaps, and lengths differ by at most one."""
    starts, lengths = cut_lanes(num_chars, num_lanes)
    assert starts[0] == 0
    assert (starts[:-1] + lengths[:-1] == starts[1:]).all()
    assert lengths.sum() == num_chars
    assert lengths.max() - lengths.min() <= 1
