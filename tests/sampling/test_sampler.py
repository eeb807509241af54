"""Drawing text: the numpy path against the network, the naive sampler, and a model with a known answer."""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, ModelConfig
from charrnn.data.vocab import END, UNKNOWN, Vocab
from charrnn.errors import ResourceError, UnknownCharacterError, UsageError
from charrnn.kernels.counters import uniforms
from charrnn.kernels.generation import Filters
from charrnn.kernels.products import WIDTH, cpu_has
from charrnn.model.file import save_model
from charrnn.model.network import CharRNN
from charrnn.sampling import engine as crew
from charrnn.sampling import sampler as sampling
from charrnn.sampling.sampler import Ending, Sampler
from tests import reference
from tests.conftest import make_model_file


def make_file(cell="gru", num_layers=2, hidden_size=7, scale=2.0):
    """A model with strong random opinions."""
    config = ModelConfig(cell=cell, vocab_size=9, embedding_dim=4, hidden_size=hidden_size, num_layers=num_layers)
    return make_model_file(config, scale=scale, chars="\nabcdefgh")


def counting_file():
    """A model that always says "next is current + 1": the state is the character, the head shifts it."""
    config = ModelConfig(cell="rnn", vocab_size=5, embedding_dim=5, hidden_size=5, num_layers=1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    tensors["embedding.weight"] = np.eye(5, dtype=np.float32)
    tensors["layers.0.weight_ih_l0"] = 20 * np.eye(5, dtype=np.float32)
    tensors["head.weight"] = 1000 * np.roll(np.eye(5, dtype=np.float32), 1, axis=0)
    return replace(make_model_file(config, chars="\nabcd"), tensors=tensors)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("num_layers", "hidden_size"), [(1, 1), (2, 7), (3, 33)])
def test_text_equals_the_naive_samplers(cell, num_layers, hidden_size):
    """Character by character, after a prompt."""
    file = make_file(cell, num_layers, hidden_size)
    text = "".join(Sampler(file, threads=1).stream("abba", temperature=0.7, length=300, seed=11))
    naive = reference.Network(cell, file.tensors)
    expected = naive.sample(file.vocab.encode("abba").tolist(), uniforms(300, seed=11, stream=0, position=0), 0.7)
    assert text == file.vocab.decode(expected)


@pytest.mark.parametrize("cell", CELLS)
def test_greedy_text_is_the_networks_own_choice(cell):
    """Temperature 0 takes the largest logit of model.py's forward at each step."""
    file = make_file(cell, hidden_size=16)
    text = "".join(Sampler(file).stream("a", temperature=0, length=50, seed=0))
    model = CharRNN.from_arrays(file.config, file.tensors)
    ids = torch.from_numpy(file.vocab.encode("a" + text).astype(np.int64))[:, None]
    logits, _ = model(ids[:-1], model.initial_state(1))
    assert (logits[:, 0].argmax(-1) == ids[1:, 0]).all()


def test_a_model_that_counts_goes_on_counting():
    """The prompt's last character decides what comes next, whatever the seed."""
    sampler = Sampler(counting_file())
    assert "".join(sampler.stream("a", length=7, seed=1)) == "bcd\nabc"
    assert "".join(sampler.stream("abcab", length=3, seed=2)) == "cd\n"


def test_without_a_prompt_text_starts_a_line():
    """As if a newline had come before; where the model knows none, its first character."""
    assert "".join(Sampler(counting_file()).stream(length=2, seed=1)) == "ab"
    file = replace(counting_file(), vocab=Vocab("abcde"))
    assert "".join(Sampler(file).stream(length=2, seed=1)) == "bc"


def test_a_seed_gives_the_same_text_whatever_its_length():
    """Shorter text is the beginning of longer text; an endless one goes on past any block."""
    sampler = Sampler(make_file())
    long = "".join(sampler.stream(length=1000, seed=4))
    assert "".join(sampler.stream(length=300, seed=4)) == long[:300]
    endless, text = sampler.stream(length=-1, seed=4), ""
    while len(text) < 1000:
        text += next(endless)
    assert text[:1000] == long
    assert "".join(sampler.stream(length=1000, seed=5)) != long
    assert "".join(sampler.stream(length=1000, seed=4, stream=1)) != long
    assert list(sampler.stream(length=0, seed=4)) == []


def test_without_a_seed_each_text_is_another():
    """Nobody gets the same text twice by accident."""
    sampler = Sampler(make_file(scale=1.0))
    assert "".join(sampler.stream(length=200)) != "".join(sampler.stream(length=200))


def test_bad_requests_are_refused_before_the_first_character():
    """The error comes from the call, not from the first step of the iterator."""
    sampler = Sampler(make_file())
    with pytest.raises(UnknownCharacterError, match=r"U\+007A 'z'"):
        sampler.stream("abz")
    for bad in (
        {"temperature": float("nan")},
        {"temperature": -1.0},
        {"length": -2},
        {"seed": -1},
        {"stop": "ab"},
        {"stop": ("x", 1)},
        {"stop": ("",)},
    ):
        with pytest.raises(UsageError, match="--"):
            sampler.stream("ab", **bad)
    with pytest.raises(UsageError, match="stream"):
        sampler.stream("ab", stream=-1)


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e308])
def test_extreme_temperatures_still_draw(temperature):
    """No temperature makes a NaN."""
    assert len("".join(Sampler(make_file()).stream(temperature=temperature, length=20, seed=1))) == 20


def test_a_sampler_loads_from_a_path(tmp_path):
    """The Python interface: load a file, stream text."""
    save_model(tmp_path / "m.safetensors", counting_file())
    assert "".join(Sampler.load(tmp_path / "m.safetensors").stream("c", length=2, seed=0)) == "d\n"


def draw_text(file, prompt="", **settings):
    """The whole text of one sample."""
    return "".join(Sampler(file).stream(prompt, **settings))


def test_filters_reach_the_draw():
    """Each filter alone makes the text greedy at its strongest, and the guard comes before them."""
    greedy = draw_text(make_file(), "a", temperature=0, length=60, seed=1)
    for strongest in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert draw_text(make_file(), "a", temperature=2.0, length=60, seed=9, **strongest) == greedy
    assert draw_text(counting_file(), "a", length=6, top_k=1, no_repeat_ngram=2) != "bcd\nab"


def test_a_filtered_text_follows_the_naive_distribution():
    """Every drawn character is the one that the naive distribution gives for its uniform."""
    file, settings = make_file(scale=1.0), {"top_k": 6, "top_p": 0.9, "min_p": 0.05}
    text = draw_text(file, "ab", temperature=1.3, length=200, seed=8, **settings)
    naive, states = reference.Network("gru", file.tensors), None
    states = naive.zeros()
    for char in file.vocab.encode("ab").tolist():
        logits, states = naive.step(char, states)
    for char, uniform in zip(
        file.vocab.encode(text).tolist(), uniforms(200, seed=8, stream=0, position=0), strict=True
    ):
        cumulative = np.cumsum(reference.filtered(logits.tolist(), temperature=1.3, **settings))
        assert char == int(np.searchsorted(cumulative, uniform, side="right"))
        logits, states = naive.step(char, states)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_ngram_comes_twice(n):
    """Prompt included, as long as there is a choice."""
    text = "abcabd" + draw_text(make_file(scale=3.0), "abcabd", length=200 if n > 2 else 20, seed=2, no_repeat_ngram=n)
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    fresh = {1: 9 - 4, 2: 12, 3: 100, 5: 190}[n]  # drawn before all followers of some context are used up
    start = 6 - n + 1
    for place in range(start, start + fresh):
        assert grams[place] not in grams[:place]


def test_a_guard_that_forbids_everything_forbids_nothing():
    """With every character used once, --no-repeat-ngram 1 still draws."""
    assert len(draw_text(make_file(), "abcdefgh\n", length=30, seed=1, no_repeat_ngram=1)) == 30


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("d",), "bc"),
        (("cd\n",), "b"),
        (("b",), ""),
        (("d\nab",), "bc"),
        (("x", "\na"), "bcd"),
        (("bcx", "cda"), "bcd\nabcd\na"),
        (("c", "bcd"), "b"),
    ],
)
def test_a_stop_ends_the_text_and_is_not_in_it(stops, expected):
    """The first that is completed ends it; beginnings that come to nothing are written."""
    assert draw_text(counting_file(), "a", length=10, stop=stops) == expected


def test_what_might_be_a_stop_is_held_back_and_nothing_else():
    """A character is passed on as soon as no stop can begin with it, however the text comes in pieces."""
    ending = Ending(stops=["abx"])
    assert [ending.push(char) for char in "abcab"] == [(1, ""), (1, ""), (1, "abc"), (1, ""), (1, "")]
    assert ending.push("xyz") == (1, "")
    assert ending.reached
    assert ending.rest() == ""
    ending = Ending(stops=["abx"])
    assert ending.push("zabcab") == (6, "zabc")
    assert not ending.reached
    assert ending.rest() == "ab"


def test_a_stop_and_the_last_line_together():
    """What comes first ends the text; a newline that completes a stop isn't written."""
    for lines, stops, expected in [
        (1, ["b\n"], "a"),
        (2, ["\nc"], "ab"),
        (1, ["\nc"], "ab\n"),
        (1, ["cd"], "ab\n"),
        (2, ["d"], "ab\nc"),
    ]:
        ending = Ending(lines, stops)
        _, text = ending.push("ab\ncd\n")
        assert ending.reached
        assert text + ending.rest() == expected


def test_lines_are_counted():
    """The text ends with its n-th newline."""
    assert draw_text(counting_file(), "a", length=100, lines=2) == "bcd\nabcd\n"
    assert draw_text(counting_file(), "a", length=5, lines=2) == "bcd\na"
    assert Ending(1).push("a\nb") == (2, "a\n")


def test_unknown_characters_can_be_skipped():
    """The prompt is read as if they weren't there."""
    assert draw_text(counting_file(), "xbyz", length=2, unknown="skip") == "cd"
    assert draw_text(counting_file(), "xyz", length=2, unknown="skip") == "ab"


def test_a_stream_knows_what_its_text_costs():
    """Nats of the unfiltered model, as it would score the text after the prompt."""
    file = make_file()
    stream = Sampler(file).stream("ab", length=50, seed=3, top_k=2, temperature=0.5)
    text = "".join(stream)
    naive = reference.Network("gru", file.tensors)
    expected = sum(naive.nats(file.vocab.encode(text).tolist(), file.vocab.encode("ab").tolist()))
    assert stream.num_drawn == 50
    assert stream.nats == pytest.approx(expected, rel=1e-4)
    assert math.isfinite(stream.nats)


@pytest.fixture
def busy(monkeypatch):
    """However small a network, it keeps every thread busy that has units for it."""
    monkeypatch.setattr(crew, "_WEIGHTS_PER_THREAD", 1)


PRECISIONS = [
    "float32",
    pytest.param("bfloat16", marks=pytest.mark.skipif(not cpu_has("avx512bf16"), reason="no AVX512-BF16 here")),
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("num_layers", "hidden_size"), [(1, 1), (2, 7), (3, 33), (2, 100), (1, 256)])
@pytest.mark.parametrize("vocab_size", [9, 300])
def test_states_and_costs_are_the_networks_own(busy, cell, num_layers, hidden_size, vocab_size):
    """After a text and while drawing, to 1e-5 of model.py's forward in float32, by several threads."""
    config = ModelConfig(cell, vocab_size, embedding_dim=5, hidden_size=hidden_size, num_layers=num_layers)
    file = make_model_file(config, scale=2.0)
    model = CharRNN.from_arrays(file.config, file.tensors)
    team = Sampler(file, threads=3).crew
    assert len(team.parts) == min(3, -(-hidden_size // WIDTH))
    ids = np.random.default_rng(1).integers(0, vocab_size, 41)
    state = team.new_state()
    team.read(ids[:30], state)
    _, expected = model(torch.from_numpy(ids[:30])[:, None], model.initial_state(1))
    for found, part in zip(state[:2], expected, strict=cell == "lstm"):
        np.testing.assert_allclose(found, part.detach().numpy(), atol=1e-5, rtol=1e-5)
    drawn = np.append(ids[30:31], np.zeros(10, np.int64))[None]
    nats = team.draw(Filters(2.0), drawn, np.array([1]), np.random.default_rng(2).random((1, 10)), state)
    logits, _ = model(torch.from_numpy(drawn[0, :-1])[:, None], expected)
    costs = torch.nn.functional.cross_entropy(logits[:, 0], torch.from_numpy(drawn[0, 1:]), reduction="none")
    np.testing.assert_allclose(nats[0], costs.detach().numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden_size", [7, 33, 100])
def test_a_text_depends_on_neither_threads_nor_its_neighbours(busy, monkeypatch, precision, cell, hidden_size):
    """Character by character and bit by bit: with other threads, more samples, fewer side by side, other blocks."""
    file, settings = make_file(cell, hidden_size=hidden_size), {"seed": 5, "length": 200, "top_p": 0.95}
    alone = Sampler(file, threads=1, precision=precision)
    texts = ["".join(alone.stream("abc", stream=k, **settings)) for k in range(5)]
    assert len(set(texts)) == 5
    nats = [stream.nats for stream in alone.streams("abc", num_samples=5, **settings) if "".join(stream)]
    for threads, beside, block in [(1, 64, 16), (2, 64, 16), (3, 2, 7), (7, 3, 300)]:
        monkeypatch.setattr(crew.Engine, "max_streams", beside)
        monkeypatch.setattr(sampling, "_FIRST_BLOCK", block)
        streams = Sampler(file, threads=threads, precision=precision).streams("abc", num_samples=5, **settings)
        found = [("".join(stream), stream.nats) for stream in streams]
        assert found == list(zip(texts, nats, strict=True))


@pytest.mark.skipif(not cpu_has("avx512bf16"), reason="no AVX512-BF16 here")
def test_bfloat16_costs_nearly_the_same():
    """The same greedy text from weights rounded to eight bits, at costs within a percent or so."""
    file = make_file(hidden_size=64, scale=1.0)
    exact, rounded = (
        Sampler(file, precision=name).stream("ab", length=500, seed=1) for name in ("float32", "bfloat16")
    )
    list(exact), list(rounded)
    assert rounded.nats != exact.nats
    assert rounded.nats == pytest.approx(exact.nats, rel=0.05)


def test_samples_may_end_at_different_places():
    """Each by its own stop or line, and each stream knows what was drawn for it alone."""
    file = make_file(hidden_size=16)
    sampler = Sampler(file)
    for ends in (
        {"stop": ("ab", "c")},
        {"lines": 2},
        {"stop": ("a",), "lines": 1},
        {"length": -1, "stop": ("e", "\n")},
    ):
        settings = {"seed": 3, "length": 60, "temperature": 2.0, **ends}
        alone = [sampler.stream("a", stream=k, **settings) for k in range(9)]
        expected = [("".join(stream), stream.num_drawn, stream.nats) for stream in alone]
        together = sampler.streams("a", num_samples=9, **settings)
        assert [("".join(stream), stream.num_drawn, stream.nats) for stream in together] == expected
        assert len({num_drawn for _, num_drawn, _ in expected}) > 2


def test_a_stream_that_nobody_read_is_drawn_when_somebody_does():
    """Streams may be kept and read later, in any order, partly or not at all."""
    sampler, settings = Sampler(make_file()), {"seed": 3, "length": 50, "num_samples": 4}
    texts = ["".join(stream) for stream in sampler.streams("a", **settings)]
    kept = list(sampler.streams("a", **settings))
    assert "".join(kept[3]) == texts[3]
    assert "".join(kept[0]) == texts[0]
    for stream in sampler.streams("a", **settings):
        if stream.number == 2:
            assert "".join(stream) == texts[2]


def test_nothing_is_drawn_far_ahead_of_its_reader(monkeypatch):
    """Samples that may never end wait while they have this much; endless ones are drawn alone."""
    monkeypatch.setattr(sampling, "_MOST_WAITING", 100)
    monkeypatch.setattr(sampling, "_LAST_BLOCK", 16)
    sampler = Sampler(counting_file())
    streams = sampler.streams("a", length=-1, stop=("dd",), num_samples=3, seed=1)
    first = next(iter(streams))
    for _ in range(200):
        next(first)
    beside = [stream for stream in streams._streams if stream is not first]
    assert len(beside) == 2
    assert all(100 <= stream.num_drawn < 120 for stream in beside)
    endless = sampler.streams("a", length=-1, num_samples=3, seed=1)
    next(next(iter(endless)))
    assert len(endless._streams) == 1


def test_the_prompt_is_read_once_for_all_samples(monkeypatch):
    """However many there are."""
    fed = []
    real = crew.Engine.read
    monkeypatch.setattr(crew.Engine, "read", lambda self, ids, state: fed.append(len(ids)) or real(self, ids, state))
    for stream in Sampler(make_file()).streams("abcde" * 100, num_samples=100, length=3, seed=1):
        list(stream)
    assert fed == [499]


def test_a_long_prompt_is_read_in_pieces(monkeypatch):
    """With the same result as at once."""
    whole = draw_text(make_file(), "abcdefgh" * 50, length=50, seed=1)
    for size in (1, 2, 7, 100):
        monkeypatch.setattr(crew, "_WEIGHTS_A_PIECE", size * make_file().config.num_parameters)
        assert draw_text(make_file(), "abcdefgh" * 50, length=50, seed=1) == whole


@pytest.mark.parametrize("rank", [0, 1])
def test_a_thread_that_fails_stops_the_others(busy, monkeypatch, rank):
    """The error arrives, nobody waits for ever, and the sampler still works."""
    sampler, real = Sampler(make_file(hidden_size=64), threads=2), crew.generate

    def failing(part, number, *rest):
        if number == rank:
            raise MemoryError("no room")
        real(part, number, *rest)

    stream = sampler.stream("ab", length=20, seed=1)
    monkeypatch.setattr(crew, "generate", failing)
    with pytest.raises(MemoryError, match="no room"):
        next(stream)
    monkeypatch.setattr(crew, "generate", real)
    assert len("".join(stream)) == 20


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no call for it")
def test_threads_keep_off_the_core_of_the_one_that_draws(busy, monkeypatch):
    """Woken beside it, they would share its core for milliseconds of every block."""
    everywhere, seen, real = os.sched_getaffinity(0), {}, crew.generate

    def watched(part, rank, *rest):
        seen[rank] = os.sched_getaffinity(0)
        real(part, rank, *rest)

    monkeypatch.setattr(crew, "generate", watched)
    "".join(Sampler(make_file(hidden_size=64), threads=2).stream(length=20, seed=1))
    assert seen[0] == everywhere == os.sched_getaffinity(0)
    assert len(seen[1]) == max(1, len(everywhere) - 1)
    for count in range(1, 5):
        shares = crew.other_cores(count)
        assert len(shares) == count
        assert len(set().union(*shares)) == sum(map(len, shares)) == len(everywhere) - 1


def test_threads_run_anywhere_where_no_core_can_be_named(busy, monkeypatch):
    """As with a C library that has no sched_getcpu; the text is the same."""
    expected = "".join(Sampler(make_file(hidden_size=64), threads=2).stream(length=20, seed=1))
    monkeypatch.setattr(crew.ctypes, "CDLL", lambda name: object())
    assert crew.other_cores(2) == [set(), set()]
    assert "".join(Sampler(make_file(hidden_size=64), threads=2).stream(length=20, seed=1)) == expected


FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"top_k": 5, "top_p": 0.9, "min_p": 0.02, "temperature": 1.5},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_a_million_draws_follow_the_distribution(filters):
    """Chi-square against the exact one, through the whole loop; what was filtered out is never drawn."""
    settings = {"temperature": 1.0, **filters}
    logits = np.array([2.0, -1.0, 0.5, 0.0, -30.0, 1.0, 1.9, -4.0, 0.5], np.float32)
    file = make_file(hidden_size=4)
    file.tensors["head.weight"][:], file.tensors["head.bias"][:] = 0, logits
    expected = np.array(reference.filtered(logits.astype(float).tolist(), **settings)) * 1_000_000
    counts = np.zeros(9)
    for stream in Sampler(file).streams(length=15_625, num_samples=64, seed=2, **settings):
        counts += np.bincount(file.vocab.encode("".join(stream)), minlength=9)
    assert counts.sum() == 1_000_000
    assert (counts[expected == 0] == 0).all()
    assert counts[(expected > 0) & (expected < 1)].sum() <= 5
    likely = expected >= 1
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 30  # at most seven degrees of freedom: p < 1e-4


def test_a_guarded_text_follows_the_naive_distribution():
    """The repeat guard first, then the filters: every character is what the naive way draws for its uniform."""
    file, n, settings = make_file(scale=1.0), 3, {"top_k": 4, "temperature": 1.5}
    prompt = file.vocab.encode("abcabd").tolist()
    text = draw_text(file, "abcabd", length=150, seed=9, no_repeat_ngram=n, **settings)
    naive, known = reference.Network("gru", file.tensors), list(prompt)
    states = naive.zeros()
    for char in prompt:
        logits, states = naive.step(char, states)
    for char, uniform in zip(
        file.vocab.encode(text).tolist(), uniforms(150, seed=9, stream=0, position=0), strict=True
    ):
        grams = [tuple(known[i : i + n]) for i in range(len(known) - n + 1)]
        forbidden = {gram[-1] for gram in grams if gram[:-1] == tuple(known[-n + 1 :])}
        cumulative = np.cumsum(reference.filtered(logits.tolist(), forbidden=forbidden, **settings))
        assert char == int(np.searchsorted(cumulative, uniform, side="right"))
        known.append(char)
        logits, states = naive.step(char, states)


@pytest.mark.parametrize("seconds_per_char", [1e-7, 1e-4, 3e-3, 0.2])
def test_text_flows_at_any_speed(monkeypatch, seconds_per_char):
    """After the first blocks each takes between a fifth and all of 50 ms, or is as long or short as can be."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(sampling, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    sampler, real, took = Sampler(make_file()), crew.Engine.draw, []

    def draw(self, filters, ids, starts, numbers, state):
        took.append(numbers.shape[1] * seconds_per_char)
        clock.seconds += took[-1]
        return real(self, filters, ids, starts, numbers, state)

    monkeypatch.setattr(crew.Engine, "draw", draw)
    stream = sampler.stream(length=-1, seed=1)
    for _ in range(30):
        next(stream)
    for seconds in took[15:]:
        assert seconds <= max(0.05, seconds_per_char)
        assert seconds >= min(0.01, 4096 * seconds_per_char)
    assert stream.seconds == pytest.approx(sum(took))


def test_an_iteration_that_was_broken_off_starts_anew():
    """A batch gives all its streams, whole, each time it is asked."""
    batch = Sampler(make_file()).streams("a", num_samples=4, length=30, seed=1)
    first = next(iter(batch))
    text = "".join(first)
    texts = ["".join(stream) for stream in batch]
    assert len(texts) == 4
    assert texts[0] == text


def test_threads_may_share_a_sampler(busy):
    """Each draws what it would alone, and none waits for ever."""
    sampler = Sampler(make_file(hidden_size=100), threads=5)
    settings = {"length": 300, "seed": 1}
    expected = ["".join(sampler.stream("a", stream=k, **settings)) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        drawing = [pool.submit(lambda k: "".join(sampler.stream("a", stream=k, **settings)), k) for k in range(4)]
        assert [future.result(timeout=60) for future in drawing] == expected


def test_too_many_threads_are_told(busy, monkeypatch):
    """Where the system has no more of them it is an error with the flag that helps."""

    def start(self):
        raise RuntimeError("can't start new thread")

    sampler = Sampler(make_file(hidden_size=64), threads=2)
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ResourceError, match="--threads"):
        next(sampler.stream("a", seed=1))


@pytest.mark.parametrize("hidden_size", [16, 33, 128])
def test_weights_begin_on_cache_lines(busy, hidden_size):
    """A vector that lies on two costs a third of the speed."""
    for part in Sampler(make_file(num_layers=3, hidden_size=hidden_size), threads=2).crew.parts:
        for weights in (*part.input, *part.recurrent, part.head):
            assert weights.size == 0 or weights.ctypes.data % 64 == 0


# documents, rare characters, bytes


def test_a_model_of_documents_starts_one_and_ends_with_it():
    """Without a prompt it goes on from the end of another; that end is a stop, and nothing of it is written."""
    file = replace(counting_file(), vocab=Vocab("abcd" + END))  # END follows d, a follows END
    sampler = Sampler(file)
    assert sampler.writes_documents
    first = sampler.stream(temperature=0, length=-1, seed=0)
    assert ("".join(first), first.num_drawn) == ("abcd", 5)
    assert "".join(sampler.stream("b", temperature=0, length=-1, seed=0)) == "cd"
    assert "".join(sampler.stream(temperature=0, length=2, seed=0)) == "ab"
    assert "".join(sampler.stream(temperature=0, length=-1, seed=0, stop=("bc",))) == "a"
    whole = sampler.streams(temperature=0, length=-1, seed=0, num_samples=3)
    assert ["".join(stream) for stream in whole] == ["abcd"] * 3


@pytest.mark.parametrize("settings", [{"temperature": 1e300}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.999}])
def test_the_symbol_of_rare_characters_is_never_drawn(settings):
    """However likely it is, and whatever flattens the distribution; a prompt may have such characters."""
    file = counting_file()
    file = replace(file, vocab=Vocab("abcd" + UNKNOWN))  # it always follows d
    text = "".join(Sampler(file).stream("aéd", length=400, seed=1, **settings))
    assert len(text) == 400
    assert set(text) <= set("abcd")


def test_bytes_are_written_as_whole_characters():
    """What is drawn is bytes: a piece never ends in half a character, and what is no UTF-8 is replaced."""
    text = "né€"
    spelt = "".join(chr(b) if b < 128 else chr(0xDC00 + b) for b in text.encode())
    config = ModelConfig(cell="rnn", vocab_size=6, embedding_dim=6, hidden_size=6, num_layers=1)
    chars = "".join(sorted(spelt))
    follows = np.zeros((6, 6), np.float32)  # each byte of the text predicts the next one, around
    for one, other in zip(spelt, spelt[1:] + spelt[:1], strict=True):
        follows[chars.index(other), chars.index(one)] = 1000
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    tensors["embedding.weight"] = np.eye(6, dtype=np.float32)
    tensors["layers.0.weight_ih_l0"] = 20 * np.eye(6, dtype=np.float32)
    tensors["head.weight"] = follows
    file = replace(make_model_file(config, chars=chars), tensors=tensors)
    assert file.vocab.has_bytes
    pieces = list(Sampler(file).stream("n", temperature=0, length=60, seed=0))
    assert "".join(pieces) == ("é€n" * 10)
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(Sampler(file).stream("n", temperature=0, length=4, seed=0)) == "é\ufffd"  # cut in the middle
    assert "".join(Sampler(file).stream("né", temperature=0, length=3, seed=0)) == "€"
    assert "".join(Sampler(file).stream("n", temperature=0, length=60, seed=0, stop=("€",))) == "é"
