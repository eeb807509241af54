"""Drawing text: the numpy path against the network, the naive sampler, and a model with a known answer."""

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from charrnn.checkpoint import save_model
from charrnn.config import CELLS, ModelConfig
from charrnn.errors import UnknownCharacterError, UsageError
from charrnn.kernels.counters import uniforms
from charrnn.model import CharRNN
from charrnn.sampling import Sampler, first_lines, until
from charrnn.vocab import Vocab
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
    text = "".join(Sampler(file).stream("abba", temperature=0.7, length=300, seed=11))
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
    assert "".join(islice(sampler.stream(length=-1, seed=4), 1000)) == long
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
    for bad in ({"temperature": float("nan")}, {"temperature": -1.0}, {"length": -2}, {"seed": -1}):
        with pytest.raises(UsageError, match="--"):
            sampler.stream("ab", **bad)


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
    """A character is passed on as soon as no stop can begin with it."""
    pieces = until(iter("abcabx"), ["abx"])
    assert next(pieces) == "abc"
    assert list(pieces) == []
    assert list(until(iter("zab"), ["abx"])) == ["z", "ab"]


def test_lines_are_counted():
    """The text ends with its n-th newline."""
    assert draw_text(counting_file(), "a", length=100, lines=2) == "bcd\nabcd\n"
    assert draw_text(counting_file(), "a", length=5, lines=2) == "bcd\na"
    assert list(first_lines(iter("a\nb"), 1)) == ["a", "\n"]


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
