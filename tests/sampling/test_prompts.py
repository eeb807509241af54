"""Texts after different prompts, drawn side by side, against each drawn alone."""

from dataclasses import replace

import pytest

from charrnn.config import CELLS, SampleConfig
from charrnn.sampling.sampler import Sampler
from tests.conftest import draw_text
from tests.sampling.test_sampler import make_file

PROMPTS = ["", "a", "abba", "b\nc", "abcdefgh" * 9, "hg", "a"] * 12


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("threads", [1, 2])
def test_texts_after_several_prompts_are_those_after_each_alone(cell, threads):
    """Whatever their lengths; stream k continues prompt k."""
    sampler = Sampler(make_file(cell), threads=threads)
    config = SampleConfig(length=20, seed=5)
    batch = sampler.batch(((sampler.open(replace(config, prompt=one)), k) for k, one in enumerate(PROMPTS)))
    alone = Sampler(make_file(cell), threads=1)
    expected = [draw_text(alone, one, number=k, length=20, seed=5) for k, one in enumerate(PROMPTS)]
    assert ["".join(stream) for stream in batch] == expected


def test_each_prompt_may_have_settings_of_its_own():
    """Filters that differ are not mixed up, nor lengths, seeds and ends."""
    sampler = Sampler(make_file(scale=1.0), threads=1)
    settings = [
        {"temperature": 0.5, "length": 30},
        {"temperature": 0.5, "top_k": 2, "length": 10},
        {"length": 50, "stop": ("ab", "h")},
        {"length": 7, "no_repeat_ngram": 2},
        {"length": 0},
        {"lines": 1, "length": -1},
    ] * 9
    openings = [sampler.open(SampleConfig(prompt="ab", **one, seed=k // 2)) for k, one in enumerate(settings)]
    texts = ["".join(stream) for stream in sampler.batch(zip(openings, range(99), strict=False))]
    assert texts == [draw_text(sampler, "ab", number=k, seed=k // 2, **one) for k, one in enumerate(settings)]


def test_prompts_are_read_side_by_side(monkeypatch):
    """A pass over the weights serves all prompts that have characters left, and each is read once."""
    sampler = Sampler(make_file(), threads=1)
    fed, real = [], sampler.engine.read
    monkeypatch.setattr(sampler.engine, "read", lambda ids, state: fed.append(ids.shape) or real(ids, state))
    openings = [sampler.open(SampleConfig(prompt="abc"[:size] * 3, length=9, seed=1)) for size in (1, 3, 2, 3)]
    for stream in sampler.batch((one, 0) for one in openings):
        list(stream)
    assert fed == [(4, 2), (3, 3), (2, 3)]
