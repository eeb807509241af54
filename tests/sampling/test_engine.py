"""The engine: states and nats of the network itself, whatever the number of threads; errors in threads."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from charrnn.config import ModelConfig
from charrnn.errors import ResourceError
from charrnn.kernels.filters import Filters
from charrnn.model.network import CharRNN
from charrnn.numerics.tile import WIDTH
from charrnn.sampling import engine
from charrnn.sampling.sampler import Sampler
from tests.conftest import draw_text, make_model_file


@pytest.fixture(autouse=True)
def busy(monkeypatch):
    """However small a network is, it uses every thread that has units."""
    monkeypatch.setattr(engine, "_WEIGHTS_PER_THREAD", 1)


def make_file(hidden_size, *, num_layers=2):
    """A GRU with large random weights."""
    config = ModelConfig(cell="gru", vocab_size=9, embedding_dim=4, hidden_size=hidden_size, num_layers=num_layers)
    return make_model_file(config, scale=2.0, chars="\nabcdefgh")


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize(
    ("num_layers", "hidden_size", "vocab_size"), [(1, 1, 9), (2, 7, 300), (3, 33, 9), (2, 100, 300), (1, 256, 9)]
)
def test_states_and_nats_are_the_networks_own(cell, num_layers, hidden_size, vocab_size):
    """After a text and while drawing, several threads agree with the network's forward to 1e-5."""
    config = ModelConfig(cell, vocab_size, embedding_dim=5, hidden_size=hidden_size, num_layers=num_layers)
    file = make_model_file(config, scale=2.0)
    model = CharRNN.from_arrays(file.config, file.tensors)
    three = Sampler(file, threads=3).engine
    assert len(three.shards) == min(3, -(-hidden_size // WIDTH))
    ids = np.random.default_rng(1).integers(0, vocab_size, 41)
    state = three.new_state()
    three.read(ids[:30], state)
    _, expected = model(torch.from_numpy(ids[:30])[:, None], model.initial_state(1))
    for found, part in zip(state[:2], expected, strict=cell == "lstm"):
        np.testing.assert_allclose(found, part.detach().numpy(), atol=1e-5, rtol=1e-5)
    drawn = np.append(ids[30:31], np.zeros(10, np.int64))[None]
    block = engine.new_block(drawn, np.array([1]), np.random.default_rng(2).random((1, 10)))
    three.draw(Filters(2.0), block, state)
    logits, _ = model(torch.from_numpy(drawn[0, :-1])[:, None], expected)
    losses = torch.nn.functional.cross_entropy(logits[:, 0], torch.from_numpy(drawn[0, 1:]), reduction="none")
    np.testing.assert_allclose(block.nats[0], losses.detach().numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_a_long_prompt_is_read_in_pieces(monkeypatch, size):
    """The result is the same as in one call."""
    file = make_file(7)
    whole = draw_text(file, "abcdefgh" * 50, length=50, seed=1)
    monkeypatch.setattr(engine, "_WEIGHTS_PER_PIECE", size * file.config.num_parameters)
    assert draw_text(file, "abcdefgh" * 50, length=50, seed=1) == whole


@pytest.mark.parametrize("rank", [0, 1])
def test_a_thread_that_fails_stops_the_others(monkeypatch, rank):
    """The error is raised, no thread waits forever, and the engine still works afterwards."""
    sampler, real = Sampler(make_file(64), threads=2), engine.generate

    def failing(shard, number, *rest):
        if number == rank:
            raise MemoryError("no memory left")
        real(shard, number, *rest)

    monkeypatch.setattr(engine, "generate", failing)
    with pytest.raises(MemoryError, match="no memory left"):
        draw_text(sampler, "ab", length=20, seed=1)
    monkeypatch.setattr(engine, "generate", real)
    assert len(draw_text(sampler, "ab", length=20, seed=1)) == 20


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no call for it")
def test_threads_keep_off_the_callers_core(monkeypatch):
    """There they would take turns with it for milliseconds of every block."""
    everywhere, seen, real = os.sched_getaffinity(0), {}, engine.generate

    def watched(shard, rank, *rest):
        seen[rank] = os.sched_getaffinity(0)
        real(shard, rank, *rest)

    monkeypatch.setattr(engine, "generate", watched)
    draw_text(Sampler(make_file(64), threads=2), length=20, seed=1)
    assert seen[0] == everywhere == os.sched_getaffinity(0)
    assert len(seen[1]) == max(1, len(everywhere) - 1)
    for count in range(1, 5):
        cores = engine.cores_for_others(count)
        assert len(cores) == count
        assert len(set().union(*cores)) == sum(map(len, cores)) == len(everywhere) - 1


def test_threads_run_anywhere_if_the_callers_core_is_unknown(monkeypatch):
    """As with a C library without sched_getcpu; the text is the same."""
    expected = draw_text(Sampler(make_file(64), threads=2), length=20, seed=1)
    monkeypatch.setattr(engine.ctypes, "CDLL", lambda name: object())
    assert engine.cores_for_others(2) == [set(), set()]
    assert draw_text(Sampler(make_file(64), threads=2), length=20, seed=1) == expected


def test_several_callers_may_share_an_engine():
    """Each draws the text that it would draw alone, and none waits forever."""
    sampler = Sampler(make_file(64), threads=2)
    settings = {"length": 100, "seed": 1}
    expected = [draw_text(sampler, "a", number=k, **settings) for k in range(3)]
    with ThreadPoolExecutor(3) as pool:
        texts = pool.map(lambda k: draw_text(sampler, "a", number=k, **settings), range(3), timeout=600)
        assert list(texts) == expected


def test_too_many_threads_are_an_error_that_names_the_option(monkeypatch):
    """The system may refuse to start another one."""

    def start(self):
        raise RuntimeError("can't start new thread")

    sampler = Sampler(make_file(64), threads=2)
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ResourceError, match="--threads"):
        draw_text(sampler, "a", seed=1)


@pytest.mark.parametrize("hidden_size", [16, 33, 128])
def test_no_vector_of_weights_lies_across_two_cache_lines(hidden_size):
    """Reading one that does takes longer. Packed rows are whole vectors, so only the first one's place matters."""
    for shard in Sampler(make_file(hidden_size, num_layers=3), threads=2).engine.shards:
        for weights in (*shard.input, *shard.recurrent, shard.head):
            assert weights.size == 0 or weights.ctypes.data % min(64, 4 * WIDTH) == 0


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (2, 0, 7)])
def test_arrays_are_copied_to_the_start_of_a_cache_line(shape):
    """Empty ones too."""
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    copy = engine.align_to_cache_lines(array)
    assert (copy == array).all()
    assert copy.shape == shape
    assert copy.size == 0 or copy.ctypes.data % 64 == 0


@pytest.mark.parametrize("num_streams", [1, 3, 4, 6, 13])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_threads_share_many_streams_and_few_share_the_network(monkeypatch, cell, num_streams):
    """Ids, nats and states are the same to the last bit, as if one thread drew each stream alone."""
    config = ModelConfig(cell, vocab_size=9, embedding_dim=4, hidden_size=40, num_layers=2)
    file = make_model_file(config, scale=2.0, chars="\nabcdefgh")
    one, three = (Sampler(file, threads=threads).engine for threads in (1, 3))
    numbers, sharing, real = np.random.default_rng(1).random((num_streams, 20)), [], engine.generate

    def watched(*arguments):
        sharing.append(arguments[-1].num_threads)
        real(*arguments)

    def draw(drawing, rows):
        state = tuple(np.repeat(part, len(numbers[rows]), axis=1) for part in drawing.new_state())
        ids = np.zeros((len(numbers[rows]), 21), np.int64)
        block = engine.new_block(ids, np.ones(len(ids), np.int64), numbers[rows])
        drawing.draw(Filters(2.0, top_k=7), block, state)
        return ids, block.nats, *(np.moveaxis(part, 1, 0) for part in state)

    expected = [draw(one, slice(row, row + 1)) for row in range(num_streams)]
    monkeypatch.setattr(engine, "generate", watched)
    for part, parts in zip(draw(three, slice(None)), zip(*expected, strict=True), strict=True):
        np.testing.assert_array_equal(part, np.concatenate(parts))
    assert sharing == [1 if num_streams >= 6 else 3] * 3
    monkeypatch.setattr(engine, "_MAX_COPIED", 0)
    draw(Sampler(file, threads=3).engine, slice(None))
    assert sharing[3:] == [3] * 3
