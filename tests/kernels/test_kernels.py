"""The kernels that draw text: counter-based numbers, one step of the recurrences, the filters and the draw."""

import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from charrnn.config import CELLS
from charrnn.kernels import recurrent, vectors
from charrnn.kernels.barrier import abandon, meet, new_barrier
from charrnn.kernels.compilation import compiled
from charrnn.kernels.counters import dropout_mask, pass_offset, uniforms, weight_mask
from charrnn.kernels.generation import draw, filter_logits
from charrnn.kernels.head import surprisal
from charrnn.model.file import load_model
from tests import reference
from tests.conftest import make_text


def test_uniforms_depend_on_seed_stream_and_position_alone():
    """Any block of a stream, from any position, holds the same numbers."""
    whole = uniforms(100, seed=5, stream=2, position=0)
    for start, count in [(0, 1), (1, 7), (3, 5), (50, 50), (99, 1)]:
        assert (uniforms(count, seed=5, stream=2, position=start) == whole[start : start + count]).all()
    for other in (uniforms(100, seed=6, stream=2, position=0), uniforms(100, seed=5, stream=3, position=0)):
        assert not np.isin(other, whole).any()


def test_uniforms_are_uniform():
    """Mean, variance and range of a long stream are those of U[0, 1)."""
    numbers = uniforms(200_000, seed=1, stream=0, position=0)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 200_000))
    assert numbers.var() == pytest.approx(1 / 12, abs=1e-3)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / math.sqrt(200_000)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.95])
def test_masks_drop_the_share_asked_for_and_keep_the_mean(dropout):
    """SavedActivations units are scaled by one over the share that is kept."""
    mask = dropout_mask(dropout, seed=1, step=2, layer=0, lanes=range(64), hidden_size=1000)
    assert mask.shape == (64, 1000)
    assert mask.dtype == np.float32
    assert (mask == 0).mean() == pytest.approx(dropout, abs=0.01)
    assert np.allclose(mask[mask > 0], 1 / (1 - dropout), rtol=1e-4)


def test_masks_are_keyed_by_seed_step_layer_and_global_lane():
    """A worker that owns some lanes makes exactly their rows; any other key makes others."""
    key = {"seed": 1, "step": 7, "layer": 1, "lanes": range(8), "hidden_size": 33}
    mask = dropout_mask(0.5, **key)
    assert (dropout_mask(0.5, **{**key, "lanes": range(5, 8)}) == mask[5:]).all()
    for change in ({"seed": 2}, {"step": 8}, {"layer": 0}, {"lanes": range(8, 16)}):
        assert (dropout_mask(0.5, **{**key, **change}) != mask).any()
    assert len({row.tobytes() for row in mask}) == 8


def test_weight_masks_drop_their_share_and_differ_by_window_and_layer():
    """The mean is one to within the sample's error; the same window has the same mask."""
    key = {"seed": 1, "step": 2, "layer": 0, "shape": (300, 101)}
    mask = weight_mask(0.25, **key)
    assert mask.shape == (300, 101)
    assert mask.dtype == np.float32
    assert sorted(set(mask.ravel().tolist())) == [0.0, pytest.approx(4 / 3)]
    assert mask.mean() == pytest.approx(1.0, abs=5 * math.sqrt(1 / 3 / mask.size))
    assert (weight_mask(0.25, **key) == mask).all()
    for change in ({"seed": 2}, {"step": 3}, {"layer": 1}):
        assert (weight_mask(0.25, **{**key, **change}) != mask).any()


def test_offsets_lie_in_the_text_and_differ():
    """A pass starts anywhere in the text, by seed and pass."""
    offsets = [pass_offset(1000, seed=1, pass_index=p) for p in range(200)]
    assert all(0 <= offset < 1000 for offset in offsets)
    assert len(set(offsets)) > 150
    assert offsets != [pass_offset(1000, seed=2, pass_index=p) for p in range(200)]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden", [1, 7, 33, 200])
def test_a_step_follows_the_equations(cell, hidden):
    """One layer's step equals the naive cell, large pre-activations included."""
    rng = np.random.default_rng(hidden)
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell] * hidden
    w_ih, w_hh = rng.standard_normal((gates, 5)) * 3, rng.standard_normal((gates, hidden)) * 3
    b_ih, b_hh = rng.standard_normal(gates), rng.standard_normal(gates)
    x, state = rng.standard_normal(5), [rng.standard_normal(hidden) for _ in range(reference.NUM_STATES[cell])]
    single = [part.astype(np.float32) for part in state]
    projected, sums = (w_ih @ x + b_ih).astype(np.float32), (w_hh @ state[0] + b_hh).astype(np.float32)
    given = projected.copy()
    {"rnn": recurrent.rnn_step, "gru": recurrent.gru_step, "lstm": recurrent.lstm_step}[cell](projected, sums, *single)
    assert (projected == given).all()  # it may be a row of the table
    for found, expected in zip(single, reference.CELLS[cell](x, state, [w_ih, w_hh, b_ih, b_hh]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 1e-30])
def test_cold_draws_are_greedy_and_finite(temperature):
    """A tiny temperature never makes a NaN: the likeliest character is drawn."""
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    assert [draw(logits, u, temperature) for u in (0.0, 0.5, 1 - 2**-53)] == [1, 1, 1]


def test_hot_draws_reach_everything():
    """At an enormous temperature all characters are equally likely."""
    logits = np.array([-1000.0, 0.0, 1000.0], np.float32)
    assert [draw(logits, u, 1e308) for u in (0.1, 0.5, 0.9, 1 - 2**-53)] == [0, 1, 2, 2]


@compiled
def work(barrier, seen, rank, wrong):
    """Write a row of numbers, one between any two meetings, and count those of others that are not there."""
    for turn in range(seen.shape[1]):
        seen[rank, turn] = turn + 1
        meet(barrier, len(seen))
        for other in range(len(seen)):
            wrong[rank] += seen[other, turn] != turn + 1


OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.0},
        {"top_p": 0.6},
        {"top_p": 1 - 1e-12},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_k": 6, "top_p": 0.9, "min_p": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(4))
def test_filters_keep_what_the_definitions_keep(filters, seed):
    """The distribution that is left equals the naive one, and something always is."""
    logits = np.random.default_rng(seed).normal(0, 3, 40).astype(np.float32)
    kept = logits.copy()
    filter_logits(kept, *{**OFF, **filters}.values())
    weights = np.exp(kept.astype(float) - kept.max())
    np.testing.assert_allclose(weights / weights.sum(), reference.filtered(logits.astype(float), **filters), rtol=1e-6)
    assert (kept == logits).any()


def test_filters_that_are_off_change_nothing():
    """Not a bit."""
    logits = np.array([1.0, -2.0, 0.5], np.float32)
    kept = logits.copy()
    filter_logits(kept, *OFF.values())
    assert (kept == logits).all()


def test_equal_candidates_are_kept_in_order():
    """top-k keeps exactly k, the first of those that are equal."""
    kept = np.zeros(5, np.float32)
    filter_logits(kept, 2, 1.0, 0.0)
    assert np.isfinite(kept).tolist() == [True, True, False, False, False]


def test_no_uniform_reaches_what_was_filtered_out():
    """Not even the largest one below one."""
    logits = np.array([0.0, 5.0, -np.inf, -np.inf], np.float32)
    assert draw(logits, 1 - 2**-53, 1.0) == 1
    assert draw(logits, 0.0, 1.0) == 0


def test_nats_are_the_negative_log_probability():
    """Of the softmax at temperature 1, whatever is filtered later."""
    logits = np.array([2.0, -1.0, 0.5], np.float32)
    total = sum(math.exp(v) for v in logits.tolist())
    for char in range(3):
        assert surprisal(logits, char) == pytest.approx(-math.log(math.exp(float(logits[char])) / total), rel=1e-12)


def test_kernels_work_where_nothing_can_be_cached(monkeypatch):
    """No writable folder for the cache: compiled anew each time, which is slow and right."""
    real, asked = numba.njit, []

    def njit(*, cache=False, **options):
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", njit)
    step = vectors.compiled(recurrent.rnn_step.py_func)
    h = np.empty(1, np.float32)
    step(np.full(1, 0.5, np.float32), np.full(1, -0.5, np.float32), h)
    assert h[0] == 0
    assert asked == [True, False]


def test_kernels_are_compiled_by_processes_of_their_own_once(tmp_path):
    """Where they succeed; for other kernels, another compiler or another processor again."""
    folder, told = tmp_path / "cache", tmp_path / "told"
    folder.mkdir()
    told.touch()

    def ran(*queues, cache_path=str(folder), target="x86"):
        kernel = SimpleNamespace(
            stats=SimpleNamespace(cache_path=cache_path),
            targetctx=SimpleNamespace(codegen=lambda: SimpleNamespace(magic_tuple=lambda: (target,))),
        )
        told.write_text("")
        told_by = f"import os; print({{}}, os.getpid(), file=open({str(told)!r}, 'a'))"
        vectors.compile_in_children(kernel, *([told_by.format(line) for line in queue] for queue in queues))
        lines = [line.split() for line in told.read_text().splitlines()]
        assert os.getpid() not in {int(process) for _, process in lines}
        return dict(lines)

    assert ran(["1 / 0"]) == ran([], cache_path=None) == {}
    first = ran(["1", "2"], ["3"])
    assert first.keys() == {"1", "2", "3"}
    assert first["1"] == first["2"] != first["3"]
    assert ran(["2"], ["1", "4"]).keys() == {"4"}
    assert ran(["1"], target="arm").keys() == {"1"}
    assert ran(["5"], cache_path=None) == {}


def test_what_two_processes_compile_at_once_is_kept(tmp_path):
    """Two variants of a function, neither in the other's file, though both look what there is before they write."""
    code = """if True:
        import sys, time
        import numpy as np
        from charrnn.kernels.products import step_size
        file = step_size._cache._cache_file
        load = file._load_index
        file._load_index = lambda: (load(), time.sleep(1))[0]
        print(step_size(np.zeros(2, sys.argv[1])), sum(step_size.stats.cache_hits.values()))
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "NUMBA_CACHE_DIR": str(tmp_path)}

    def sizes():
        commands = [[sys.executable, "-c", code, kind] for kind in ("float32", "uint16")]
        started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for command in commands]
        return [process.communicate()[0].split() for process in started]

    assert sizes() == [[b"1", b"0"], [b"2", b"0"]]
    assert sizes() == [[b"1", b"1"], [b"2", b"1"]]


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_the_first_run_ever_is_like_any_other(cell, tmp_path):
    """To the last bit, though it is the one for which the kernels are compiled."""
    (tmp_path / "text.txt").write_text(make_text(6000), encoding="utf-8")
    sizes = ["--hidden-size", "20", "--num-layers", "2", "--batch-size", "8", "--seq-len", "16", "--steps", "60"]
    command = [sys.executable, "-m", "charrnn", "train", "text.txt", "-q", "--precision", "float32", "--cell", cell]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "NUMBA_CACHE_DIR": str(tmp_path)}
    kept = []
    for name in ("first", "second"):
        subprocess.run([*command, *sizes, "--run", name], cwd=tmp_path, env=environment, check=True)
        kept.append(load_model(tmp_path / "checkpoints" / name / "model.safetensors").tensors)
    assert all((kept[0][name] == kept[1][name]).all() for name in kept[0])


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_nobody_leaves_a_barrier_before_all_are_there(num_threads):
    """More threads than cores included: after each meeting everybody sees what each has written before it."""
    barrier, seen = new_barrier(), np.zeros((num_threads, 1000), np.int64)
    wrong = np.zeros(num_threads, np.int64)
    threads = [threading.Thread(target=work, args=(barrier, seen, rank, wrong)) for rank in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert (seen == 1 + np.arange(1000)).all()
    assert not wrong.any()


def test_an_abandoned_barrier_lets_everybody_through():
    """Who waits for a thread that never comes is freed, and nobody waits any more."""
    barrier = new_barrier()
    waiting = threading.Thread(target=meet, args=(barrier, 2))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    abandon(barrier)
    waiting.join(60)
    assert not waiting.is_alive()
    meet(barrier, 3)
