"""A network on a device writes what our kernels write; a CPU plays the device here."""

import numpy as np
import pytest
import torch

from charrnn import crew, device_crew
from charrnn.config import CELLS, ModelConfig
from charrnn.device_crew import DeviceCrew
from charrnn.kernels.mixing import nothing
from charrnn.ngram import build
from charrnn.sampling import Sampler
from tests.conftest import make_model_file

SETTINGS = {"seed": 5, "length": 150, "num_samples": 5}


def make_file(cell, *, mixed=False):
    """A model with strong opinions, perhaps with n-grams of a text in which some follow others."""
    config = ModelConfig(cell=cell, vocab_size=9, embedding_dim=4, hidden_size=33, num_layers=2)
    file = make_model_file(config, scale=2.0, chars="\nabcdefgh")
    if mixed:
        text = np.cumsum(np.random.default_rng(1).integers(0, 3, 3000)).astype(np.uint8) % 9
        weights = np.tile([0.6, 0.4], (4, 1))
        file.ngram.update({**build(text, 4, vocab_size=9), "ngram.weights": weights})
    return file


def samplers(file, *, threads=2, precision="float32"):
    """One that draws by our kernels, and one that leaves the network to PyTorch."""
    ours, there = Sampler(file, threads=threads), Sampler(file, threads=threads)
    mixture = file.mixture or nothing()
    there.crew = DeviceCrew(file.config, file.tensors, threads, precision, mixture, torch.device("cpu"))
    return ours, there


def told(sampler, prompt, **settings):
    """The texts, and what they cost."""
    return [("".join(stream), stream.nats) for stream in sampler.streams(prompt, **{**SETTINGS, **settings})]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.9, "min_p": 0.05}, {"no_repeat_ngram": 4}, {"lines": 2}],
    ids=str,
)
def test_texts_are_those_of_our_kernels(monkeypatch, cell, mixed, settings):
    """From a prompt longer than a piece of it, with each filter, with and without n-grams."""
    monkeypatch.setattr(device_crew, "_FED_AT_ONCE", 7)
    ours, there = samplers(make_file(cell, mixed=mixed))
    expected, found = told(ours, "abcdefgh" * 3, **settings), told(there, "abcdefgh" * 3, **settings)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [nats for _, nats in found] == pytest.approx([nats for _, nats in expected], rel=1e-4)
    assert mixed == (len(ours.crew.mixture.weights) > 0)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_a_text_depends_on_neither_threads_nor_neighbours(monkeypatch, threads):
    """More samples than are drawn side by side, fewer than threads."""
    expected = told(samplers(make_file("gru", mixed=True), threads=1)[1], "abc")
    monkeypatch.setattr(DeviceCrew, "side_by_side", 2)
    found = told(samplers(make_file("gru", mixed=True), threads=threads)[1], "abc")
    assert [text for text, _ in found] == [text for text, _ in expected]


def test_rounded_products_write_another_text_at_a_similar_price():
    """As --precision bfloat16 does on a CPU."""
    exact = told(samplers(make_file("gru"))[1], "abc", length=600)
    rounded = told(samplers(make_file("gru"), precision="bfloat16")[1], "abc", length=600)
    assert [nats for _, nats in rounded] == pytest.approx([nats for _, nats in exact], rel=0.3)
    assert any(a != b for (a, _), (b, _) in zip(exact, rounded, strict=True))


def test_more_streams_share_a_step_than_on_a_cpu():
    """A GPU has room for them."""
    assert DeviceCrew.side_by_side > crew.Crew.side_by_side
