"""Guided drawing: every text satisfies its constraints, and the law is the model's own, given them."""

import itertools
import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from charrnn.config import CELLS, RESAMPLE, ModelConfig, SampleConfig
from charrnn.counters import uniforms
from charrnn.errors import UsageError
from charrnn.sampling import engine, streams
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import END, bytes_as_chars
from tests import reference
from tests.conftest import make_model_file


def make_file(chars="\nabcdefgh", cell="gru", hidden_size=7, scale=2.0):
    """A model with large random weights."""
    config = ModelConfig(cell, vocab_size=len(chars), embedding_dim=4, hidden_size=hidden_size, num_layers=1)
    return make_model_file(config, scale=scale, chars=chars)


def draw(file, **settings):
    """The texts of a model. settings: of SampleConfig."""
    model = file if isinstance(file, Sampler) else Sampler(file, threads=1)
    return ["".join(stream) for stream in model.streams(SampleConfig(**{"seed": 1, "num_samples": 20, **settings}))]


# which texts


@pytest.mark.parametrize(
    ("match", "length"),
    [("a[b-d]{2,5}h", 10), ("a[b-d]*", 10), ("(abc)*", 10), ("(ab|c)+h?", 7), ("[^a]{3}|a+", 6), (".*", 9), ("a?", 1)],
)
def test_a_continuous_text_matches_and_ends_where_nothing_can_follow(match, length):
    """Or at its length, where it matches as well."""
    texts = draw(make_file(), match=match, length=length)
    assert all(re.fullmatch(match, text) for text in texts)
    for text in texts:
        assert (
            not reference.can_match(match, text, "abcdh", min(1, length - len(text)))
            or len(text) == length
            or any(not reference.can_match(match, text + char, "abch", length - len(text) - 1) for char in "abch")
        )


@pytest.mark.parametrize("chars", ["abcdefgh" + END, "\nabcdefg" + END])
def test_a_document_matches(chars):
    """It ends by itself where it matches, or at its length, where it matches too."""
    file = make_file(chars)
    texts = draw(file, match="a([b-d]{2})+", length=-1)
    assert all(re.fullmatch("a([b-d]{2})+", text) for text in texts)
    assert len({len(text) for text in texts}) > 1
    assert all(re.fullmatch("a([b-d]{2})*", text) for text in draw(file, match="a([b-d]{2})*", length=4))


def test_each_line_matches():
    """The newline ends a line where it matches; at the length, so does the last line."""
    for text in draw(make_file(), match="[a-d]{2,4}", lines=3):
        assert re.fullmatch("([a-d]{2,4}\n){3}", text)
    for text in draw(make_file(), match="abc", lines=3, length=9):
        assert text == "abc\nabc\n"
    for text in draw(make_file(), match="[a-c]*", lines=3, length=5):
        assert re.fullmatch("([a-c]*\n?)*", text)


def test_the_prompt_is_the_beginning_of_the_match():
    """Of lines, its last line is; what was drawn completes it."""
    assert set(draw(make_file(), match="abcd", prompt="ab")) == {"cd"}
    assert set(draw(make_file(), match="abcd", prompt="xab", unknown="skip")) == {"cd"}
    assert set(draw(make_file(), match="abcd", prompt="abcd")) == {""}
    assert set(draw(make_file(), match="abcd", lines=2, prompt="hh\nab")) == {"cd\nabcd\n"}
    with pytest.raises(UsageError, match="prompt"):
        draw(make_file(), match="abcd", prompt="b")


def test_characters_can_be_allowed_and_forbidden():
    """In what is drawn; the prompt may have them. All constraints combine."""
    assert set("".join(draw(make_file(), allow="abx\n", length=50))) == set("ab\n")
    assert set("".join(draw(make_file(), forbid="ab", length=50, prompt="a"))) == set("\ncdefgh")
    assert set("".join(draw(make_file(), forbid="ab", allow="bcd", length=50))) == set("cd")
    assert set("".join(draw(make_file(), allow="ab", lines=2, length=50))) == set("ab\n")
    texts = draw(make_file(), match="[a-d]+h", forbid="c", min_length=5, length=9, prompt="a")
    assert all(re.fullmatch("[abd]{4,8}h", text) for text in texts)


def test_no_document_or_line_ends_before_its_least_length():
    """Nor does a match; it counts the characters that are drawn."""
    assert all(len(text) >= 6 for text in draw(make_file("abcdefgh" + END), min_length=6, length=-1))
    for text in draw(make_file(), min_length=6, lines=2):
        assert all(len(line) >= 6 for line in text.splitlines())
    for text in draw(make_file(), match="(ab|[cd]{2,9})", min_length=3):
        assert re.fullmatch("[cd]{3,9}", text)


def test_a_model_of_bytes_matches_characters():
    """Whole ones, as many bytes as asked; without constraints it would write any bytes."""
    file = make_file("".join(sorted(set(bytes_as_chars("abé€\n")))))
    for text in draw(file, match="(?s)a.*é", length=12):
        assert re.fullmatch("(?s)a.*é", text)
        assert len(text.encode()) in (11, 12)  # with one byte left, no other text that ends in é can follow
    for text in draw(file, forbid="é", length=20):
        assert "é" not in text
        assert len(text.encode("utf-8")) == 20
    assert set("".join(draw(file, allow="é€", length=10))) == set("é€")


@pytest.mark.parametrize("cell", CELLS)
def test_a_guided_text_follows_the_naive_law(cell):
    """Every character is the one that the naive masked distribution gives, then filtered; so are nats and weight."""
    file, match, length = make_file("abc", cell), "(ab|c){2,4}a?", 7
    naive = reference.Network(cell, file.tensors)
    for settings in ({"temperature": 0.7}, {"temperature": 1.4, "top_k": 2}):
        stream = Sampler(file, threads=1).stream(
            SampleConfig(match=match, length=length, seed=5, resample=1, **settings), number=3
        )
        text, log_weight, nats = "".join(stream), 0.0, 0.0
        logits, states = naive.step(0, naive.zeros())
        for place, uniform in enumerate(uniforms(len(text), seed=5, stream=3, position=0)):
            before = text[:place]
            allowed = {
                i
                for i, char in enumerate("abc")
                if reference.can_match(match, before + char, "abc", length - place - 1)
            }
            share, _ = reference.masked(logits.tolist(), allowed, settings["temperature"])
            log_weight += math.log(share)
            law = reference.filtered(logits.tolist(), forbidden={0, 1, 2} - allowed, **settings)
            char = int(np.searchsorted(np.cumsum(law), uniform, side="right"))
            assert "abc"[char] == text[place]
            nats += math.log(sum(math.exp(v - logits[char]) for v in logits))
            logits, states = naive.step(char, states)
        assert stream.log_weight == pytest.approx(log_weight, abs=1e-4)
        assert stream.nats == pytest.approx(nats, abs=1e-4)
        assert log_weight < -0.1


def test_a_text_is_never_copied():
    """No run of the training text is drawn, prompt included, as long as there is a choice."""
    model = Sampler(make_file(), threads=1)
    with pytest.raises(UsageError, match="--no-copy"):
        draw(model, no_copy=3)
    source = "".join(draw(model, length=60, num_samples=1))
    model.training_text = model.vocab.encode(source)
    known = {source[i : i + 3] for i in range(len(source) - 2)}
    texts = draw(model, no_copy=3, length=60, prompt="ab", resample=1)
    assert not known.intersection(("ab" + text)[i : i + 3] for text in texts for i in range(len(text)))
    assert known.intersection(text[i : i + 3] for text in draw(model, length=60) for i in range(58))
    both = draw(model, no_copy=3, length=9, match="[abc]{9}")
    assert all(re.fullmatch("[abc]{9}", text) for text in both)


def test_a_constraint_that_nothing_satisfies_is_refused():
    """Before the first character, in one line that names the options."""
    for settings, part in [
        ({"match": "x"}, "no text of the model's characters satisfies --match 'x'"),
        ({"match": "ab", "forbid": "b"}, "--match 'ab' --forbid 'b'"),
        ({"match": "abcdef", "length": 3}, "takes at least 6 characters, but --length is 3"),
        ({"allow": "xyz"}, "leaves nothing"),
        ({"allow": "a", "forbid": "a"}, "--allow 'a' --forbid 'a' leaves nothing"),
        ({"forbid": "\nabcdefgh"}, "leaves nothing"),
        ({"forbid": "xyz"}, "no effect"),
        ({"min_length": 9, "length": 5, "lines": 1}, "--min-length 9 is more than --length 5"),
        ({"min_length": 9}, "no effect"),
        ({"match": "a*", "length": -1, "resample": 3}, "--resample"),
    ]:
        with pytest.raises(UsageError, match=re.escape(part)):
            Sampler(make_file(), threads=1).streams(SampleConfig(**settings))


# the law


def exact_law(file, match, length, temperature):
    """The probability of each text that matches, of at most so many characters, given that one of them was written."""
    naive, found = reference.Network("gru", file.tensors), {}

    def extend(text, logits, states, p):
        law = reference.masked(logits.tolist(), {0, 1, 2}, temperature)[1]
        for char, q in enumerate(law):
            longer = text + "abc"[char]
            if not reference.can_match(match, longer, "abc", length - len(longer)):
                continue
            if any(reference.can_match(match, longer + c, "abc", length - len(longer) - 1) for c in "abc"):
                extend(longer, *naive.step(char, states), p * q)
            else:
                found[longer] = p * q

    extend("", *naive.step(0, naive.zeros()), 1.0)
    total = sum(found.values())
    return {text: p / total for text, p in found.items()}


@pytest.mark.parametrize(
    ("num_samples", "scale", "resample"), [(1_000, 4.0, 8), pytest.param(100_000, 1.5, 16, marks=pytest.mark.slow)]
)
def test_resampled_texts_follow_the_models_law_and_masked_ones_do_not(num_samples, scale, resample):
    """By chi-square against the exact law: the texts that match, in proportion to their probability."""
    file, settings = make_file("abc", scale=scale), {"match": ".[ab].[bc]", "length": 4, "temperature": 0.9, "seed": 7}
    law = exact_law(file, settings["match"], settings["length"], settings["temperature"])
    assert len(law) == 36
    chi_squares = []
    for number in (1, resample):
        counts = Counter(draw(file, num_samples=num_samples, resample=number, **settings))
        assert counts.keys() <= law.keys()
        chi_squares.append(sum((counts[text] - p * num_samples) ** 2 / (p * num_samples) for text, p in law.items()))
    most = 35 + 4 * math.sqrt(2 * 35)  # four standard deviations
    assert chi_squares[0] > 5 * most
    assert chi_squares[1] < most


def test_samples_are_the_same_whatever_the_threads_and_blocks(monkeypatch):
    """Texts and weights, bit by bit; more samples and a single stream give the same ones."""
    monkeypatch.setattr(engine, "_WEIGHTS_PER_THREAD", 1)
    config = SampleConfig(match="[a-d]{3,20}[e-h]", length=30, seed=3, num_samples=5)
    one = Sampler(make_file(hidden_size=40), threads=1)
    expected = [("".join(stream), stream.log_weight) for stream in one.streams(config)]
    assert len({text for text, _ in expected}) > 2
    for threads, together, block in [(2, 64, 16), (3, 5, 3), (1, 1, 300)]:
        monkeypatch.setattr(engine.Engine, "max_streams", together)
        monkeypatch.setattr(streams, "_FIRST_BLOCK", block)
        model = Sampler(make_file(hidden_size=40), threads=threads)
        assert [("".join(stream), stream.log_weight) for stream in model.streams(config)] == expected
        assert "".join(model.stream(config, number=3)) == expected[3][0]


def test_the_number_of_candidates():
    """RESAMPLE under constraints, 1 where all would be alike or endless; the first candidate is the plain stream."""
    model = Sampler(make_file(), threads=1)
    for settings, number in [
        ({}, 1),
        ({"forbid": "a"}, RESAMPLE),
        ({"forbid": "a", "resample": 3}, 3),
        ({"forbid": "a", "temperature": 0.0}, 1),
        ({"forbid": "a", "length": -1}, 1),
    ]:
        assert model.open(SampleConfig(**settings)).num_candidates == number
    config = SampleConfig(forbid="a", seed=4, length=30, temperature=3.0)
    chosen = {"".join(model.stream(replace(config, resample=k))) for k in (1, 2, 50)}
    assert len(chosen) > 1


def test_an_open_pattern_may_be_endless():
    """Without a length it goes on for as long as it is read."""
    stream = Sampler(make_file(), threads=1).stream(SampleConfig(match="[ab]*", length=-1, seed=1))
    text = "".join(itertools.islice(stream, 10))
    assert set(text) == {"a", "b"}


def test_a_greedy_text_takes_the_likeliest_character_that_is_allowed():
    """The weight counts at temperature 1."""
    file = make_file("abc")
    stream = Sampler(file, threads=1).stream(SampleConfig(match="[bc]{5}", temperature=0, length=9))
    text = "".join(stream)
    naive = reference.Network("gru", file.tensors)
    logits, states = naive.step(0, naive.zeros())
    log_weight = 0.0
    for char in text:
        assert "abc".index(char) == 1 + int(np.argmax(logits[1:]))
        log_weight += math.log(reference.masked(logits.tolist(), {1, 2}, 1.0)[0])
        logits, states = naive.step("abc".index(char), states)
    assert stream.log_weight == pytest.approx(log_weight, abs=1e-4)
    assert stream.is_whole


def test_streams_say_what_the_model_predicted():
    """Before constraints and filters, at temperature 1, the likeliest five first."""
    file = make_file()
    model = Sampler(file, threads=1)
    model.num_top = 5
    stream = model.stream(SampleConfig(prompt="ab", match="ab[^a]*", length=12, seed=2, top_k=3))
    text, naive = "".join(stream), reference.Network("gru", file.tensors)
    states = naive.zeros()
    for char in file.vocab.encode("ab").tolist():
        logits, states = naive.step(char, states)
    assert "".join(one.char for one in stream.predictions) == text
    for one in stream.predictions:
        law = reference.masked(logits.tolist(), set(range(9)), 1.0)[1]
        best = sorted(range(9), key=lambda char: -law[char])[:5]
        assert [char for char, _ in one.top] == [file.vocab.chars[char] for char in best]
        assert [p for _, p in one.top] == pytest.approx([law[char] for char in best], rel=1e-4)
        char = file.vocab.chars.index(one.char)
        assert one.p == pytest.approx(law[char], rel=1e-4)
        logits, states = naive.step(char, states)
