"""Drawing text: the numpy path against the network, the naive sampler, and a model with a known answer."""

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
from charrnn.sampling import Sampler
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
