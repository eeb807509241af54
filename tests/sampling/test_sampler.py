"""The sampler against the network, the naive sampler, and a model whose text is known."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from charrnn.config import CELLS, ModelConfig, SampleConfig
from charrnn.counters import uniforms
from charrnn.data.vocab import Vocab
from charrnn.errors import UnknownCharacterError, UsageError
from charrnn.model.network import CharRNN
from charrnn.numerics.processor import cpu_has
from charrnn.sampling import engine
from charrnn.sampling import streams as module
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import END, UNKNOWN, bytes_as_chars
from tests import reference
from tests.conftest import draw_text, make_model_file


def make_file(cell="gru", num_layers=2, hidden_size=7, scale=2.0):
    """A model with large random weights."""
    config = ModelConfig(cell=cell, vocab_size=9, embedding_dim=4, hidden_size=hidden_size, num_layers=num_layers)
    return make_model_file(config, scale=scale, chars="\nabcdefgh")


def make_follower_file(chars, followers):
    """A model in which each character is followed by the one of the same place in `followers`.

    The state is the character, and the head maps it to the next one.
    """
    size = len(chars)
    config = ModelConfig(cell="rnn", vocab_size=size, embedding_dim=size, hidden_size=size, num_layers=1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    tensors["embedding.weight"] = np.eye(size, dtype=np.float32)
    tensors["layers.0.weight_ih_l0"] = 20 * np.eye(size, dtype=np.float32)
    for char, follower in zip(chars, followers, strict=True):
        tensors["head.weight"][chars.index(follower), chars.index(char)] = 1000
    return replace(make_model_file(config, chars=chars), tensors=tensors)


def counting_file(chars="\nabcd"):
    """A model that writes its characters in order, over and over."""
    return make_follower_file(chars, chars[1:] + chars[:1])


def streams(model, prompt="", **settings):
    """The streams of several samples, drawn together."""
    return Sampler(model, threads=1).streams(SampleConfig(prompt=prompt, **settings))


# one text


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("num_layers", "hidden_size"), [(1, 1), (2, 7), (3, 33)])
def test_text_equals_the_naive_samplers(cell, num_layers, hidden_size):
    """Character by character, after a prompt."""
    file = make_file(cell, num_layers, hidden_size)
    text = draw_text(file, "abba", temperature=0.7, length=300, seed=11)
    naive = reference.Network(cell, file.tensors)
    expected = naive.sample(file.vocab.encode("abba").tolist(), uniforms(300, seed=11, stream=0, position=0), 0.7)
    assert text == file.vocab.decode(expected)


@pytest.mark.parametrize("cell", CELLS)
def test_greedy_text_is_the_networks_likeliest(cell):
    """Temperature 0 takes the largest logit of the network's forward at each step."""
    file = make_file(cell, hidden_size=16)
    text = draw_text(file, "a", temperature=0, length=50, seed=0)
    model = CharRNN.from_arrays(file.config, file.tensors)
    ids = torch.from_numpy(file.vocab.encode("a" + text).astype(np.int64))[:, None]
    logits, _ = model(ids[:-1], model.initial_state(1))
    assert (logits[:, 0].argmax(-1) == ids[1:, 0]).all()


def test_text_continues_the_prompt():
    """Its last character decides what comes next, whatever the seed."""
    assert draw_text(counting_file(), "a", length=7, seed=1) == "bcd\nabc"
    assert draw_text(counting_file(), "abcab", length=3, seed=2) == "cd\n"


def test_without_a_prompt_text_starts_a_line():
    """As if after a newline; a model that knows none starts after its first character."""
    assert draw_text(counting_file(), length=2, seed=1) == "ab"
    assert draw_text(replace(counting_file(), vocab=Vocab("abcde")), length=2, seed=1) == "bc"


def test_unknown_characters_of_the_prompt_can_be_skipped():
    """The prompt is read as if they weren't there."""
    assert draw_text(counting_file(), "xbyz", length=2, unknown="skip") == "cd"
    assert draw_text(counting_file(), "xyz", length=2, unknown="skip") == "ab"


def test_a_seed_gives_the_same_text_at_any_length():
    """A shorter text is the beginning of a longer one; an endless one continues after any block."""
    model = Sampler(make_file(), threads=1)
    long = draw_text(model, length=1000, seed=4)
    assert draw_text(model, length=300, seed=4) == long[:300]
    endless, text = model.stream(SampleConfig(length=-1, seed=4)), ""
    while len(text) < 1000:
        text += next(endless)
    assert text[:1000] == long
    assert draw_text(model, length=1000, seed=5) != long
    assert draw_text(model, length=1000, seed=4, number=1) != long
    assert draw_text(model, length=0, seed=4) == ""


def test_without_a_seed_each_text_differs():
    """A random seed is chosen each time."""
    model = Sampler(make_file(scale=1.0), threads=1)
    assert draw_text(model, length=200) != draw_text(model, length=200)
    assert model.configure({}).seed != model.configure({}).seed


def test_bad_requests_are_refused_before_the_first_character():
    """The error comes from the call, not from the first step of the iterator."""
    model = Sampler(make_file(), threads=1)
    with pytest.raises(UnknownCharacterError, match=r"U\+007A 'z'"):
        model.stream(SampleConfig(prompt="abz"))
    with pytest.raises(UsageError, match="stream"):
        model.stream(SampleConfig(), number=-1)
    for bad in (
        {"temperature": float("nan")},
        {"length": -2},
        {"seed": -1},
        {"stop": "ab"},
        {"stop": ("x", 1)},
        {"stop": ("",)},
    ):
        with pytest.raises(UsageError, match="--"):
            model.configure(bad)


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e308])
def test_extreme_temperatures_still_draw(temperature):
    """No temperature makes a NaN."""
    assert len(draw_text(make_file(), temperature=temperature, length=20, seed=1)) == 20


def test_a_stream_knows_the_nats_of_its_text():
    """They are those of the model without filters, which scores the text after the prompt."""
    file = make_file()
    stream = Sampler(file, threads=1).stream(SampleConfig(prompt="ab", length=50, seed=3, top_k=2, temperature=0.5))
    text = "".join(stream)
    naive = reference.Network("gru", file.tensors)
    expected = sum(naive.nats(file.vocab.encode(text).tolist(), file.vocab.encode("ab").tolist()))
    assert stream.num_drawn == 50
    assert stream.nats == pytest.approx(expected, rel=1e-4)
    assert math.isfinite(stream.nats)


def test_a_small_vocabulary_has_fewer_likeliest_characters():
    """The model knows two, and five are asked for."""
    model = Sampler(make_follower_file("ab", "ba"), threads=1)
    model.num_top = 5
    stream = model.stream(SampleConfig(length=3, seed=0, prompt="a"))
    assert "".join(stream) == "bab"
    assert [one.top for one in stream.predictions] == [[("b", 1), ("a", 0)], [("a", 1), ("b", 0)], [("b", 1), ("a", 0)]]


@pytest.mark.skipif(not cpu_has("avx512bf16"), reason="no AVX512-BF16 here")
def test_bfloat16_gives_nearly_the_same_nats():
    """From weights rounded to eight bits, they differ by a percent or so."""
    file, config = make_file(hidden_size=64, scale=1.0), SampleConfig(prompt="ab", length=500, seed=1)
    exact, rounded = (Sampler(file, precision=name).stream(config) for name in ("float32", "bfloat16"))
    list(exact), list(rounded)
    assert rounded.nats != exact.nats
    assert rounded.nats == pytest.approx(exact.nats, rel=0.05)


@pytest.mark.parametrize("seconds_per_char", [1e-7, 1e-4, 3e-3, 0.2])
def test_text_flows_at_any_speed(monkeypatch, seconds_per_char):
    """After the first blocks, each takes between a fifth and all of 50 ms, or is as long or short as possible."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    real, took = engine.Engine.draw, []

    def draw(self, filters, block, state, **options):
        took.append(block.uniforms.shape[1] * seconds_per_char)
        clock.seconds += took[-1]
        real(self, filters, block, state, **options)

    monkeypatch.setattr(engine.Engine, "draw", draw)
    stream = Sampler(make_file(), threads=1).stream(SampleConfig(length=-1, seed=1))
    for _ in range(30):
        next(stream)
    for seconds in took[15:]:
        assert seconds <= max(0.05, seconds_per_char)
        assert seconds >= min(0.01, 4096 * seconds_per_char)
    assert stream.seconds == pytest.approx(sum(took))


# filters


@pytest.mark.parametrize("strongest", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}], ids=str)
def test_the_strongest_filter_makes_text_greedy(strongest):
    """So each filter reaches the draw."""
    greedy = draw_text(make_file(), "a", temperature=0, length=60, seed=1)
    assert draw_text(make_file(), "a", temperature=2.0, length=60, seed=9, **strongest) == greedy


def test_the_repeat_guard_comes_before_the_filters():
    """Otherwise top-k 1 would leave nothing to choose."""
    assert draw_text(counting_file(), "a", length=6, top_k=1, no_repeat_ngram=2) != "bcd\nab"


@pytest.mark.parametrize(
    ("n", "settings"),
    [(0, {"top_k": 6, "top_p": 0.9, "min_p": 0.05, "temperature": 1.3}), (3, {"top_k": 4, "temperature": 1.5})],
)
def test_a_filtered_text_follows_the_naive_distribution(n, settings):
    """Every drawn character is the one that the naive distribution gives for its random number."""
    file = make_file(scale=1.0)
    known = file.vocab.encode("abcabd").tolist()
    text = draw_text(file, "abcabd", length=200, seed=9, no_repeat_ngram=n, **settings)
    naive = reference.Network("gru", file.tensors)
    states = naive.zeros()
    for char in known:
        logits, states = naive.step(char, states)
    for char, uniform in zip(
        file.vocab.encode(text).tolist(), uniforms(200, seed=9, stream=0, position=0), strict=True
    ):
        grams = [tuple(known[i : i + n]) for i in range(len(known) - n + 1)] if n else []
        forbidden = {gram[-1] for gram in grams if gram[:-1] == tuple(known[-n + 1 :])}
        cumulative = np.cumsum(reference.filtered(logits.tolist(), forbidden=forbidden, **settings))
        assert char == int(np.searchsorted(cumulative, uniform, side="right"))
        known.append(char)
        logits, states = naive.step(char, states)


@pytest.mark.parametrize(("n", "num_fresh"), [(1, 9 - 4), (2, 12), (3, 100), (5, 190)])
def test_no_ngram_comes_twice(n, num_fresh):
    """Prompt included, as long as there is a choice: until some context has been followed by every character."""
    text = "abcabd" + draw_text(make_file(scale=3.0), "abcabd", length=200 if n > 2 else 20, seed=2, no_repeat_ngram=n)
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    start = 6 - n + 1
    for place in range(start, start + num_fresh):
        assert grams[place] not in grams[:place]


def test_a_guard_that_would_forbid_everything_forbids_nothing():
    """After every character was used once, --no-repeat-ngram 1 still draws."""
    assert len(draw_text(make_file(), "abcdefgh\n", length=30, seed=1, no_repeat_ngram=1)) == 30


@pytest.mark.parametrize("num_draws", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.02, "temperature": 1.5},
    ],
    ids=str,
)
def test_many_draws_follow_the_distribution(filters, num_draws):
    """By chi-square against the exact one, through the whole loop; filtered characters are never drawn."""
    settings = {"temperature": 1.0, **filters}
    logits = np.array([2.0, -1.0, 0.5, 0.0, -30.0, 1.0, 1.9, -4.0, 0.5], np.float32)
    file = make_file(hidden_size=4, num_layers=1)
    file.tensors["head.weight"][:], file.tensors["head.bias"][:] = 0, logits
    expected = np.array(reference.filtered(logits.astype(float).tolist(), **settings)) * num_draws
    counts = np.zeros(9)
    for stream in streams(file, length=num_draws // 50, num_samples=50, seed=2, **settings):
        counts += np.bincount(file.vocab.encode("".join(stream)), minlength=9)
    assert counts.sum() == num_draws
    assert (counts[expected == 0] == 0).all()
    assert counts[(expected > 0) & (expected < 1)].sum() <= 5
    likely = expected >= 1
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 30  # at most seven degrees of freedom: p < 1e-4


# where a text ends


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("d",), "bc"),
        (("cd\n",), "b"),
        (("b",), ""),
        (("d\nab",), "bc"),
        (("aa", "\na"), "bcd"),
        (("bcb", "cda"), "bcd\nabcd\na"),
        (("c", "bcd"), "b"),
    ],
)
def test_a_stop_text_ends_the_text_and_is_not_in_it(stops, expected):
    """The first one that is complete ends it; incomplete ones are written."""
    assert draw_text(counting_file(), "a", length=10, stop=stops) == expected


def test_lines_are_counted():
    """The text ends with its n-th newline, or at its length if that comes first."""
    assert draw_text(counting_file(), "a", length=100, lines=2) == "bcd\nabcd\n"
    assert draw_text(counting_file(), "a", length=5, lines=2) == "bcd\na"


@pytest.mark.parametrize(
    ("stops", "expected"), [(("d",), "bcd"), (("d\nab",), "bcd\nab"), (("c", "bcd"), "bc"), (("d", "bcd"), "bcd")]
)
def test_a_stop_text_can_be_kept(stops, expected):
    """Then it ends the text; the end of a document is never written."""
    assert draw_text(counting_file(), "a", length=10, stop=stops, keep_stop=True) == expected
    assert draw_text(counting_file("abcd" + END), temperature=0, stop=("ca",), keep_stop=True) == "abcd"


@pytest.mark.parametrize(("ends", "named"), [({"stop": ("é",)}, "U\\+00E9"), ({"lines": 2}, "--lines 2")])
def test_an_end_that_cannot_come_is_refused(ends, named):
    """Before anything is drawn."""
    model = Sampler(counting_file("abcd"), threads=1)
    with pytest.raises(UsageError, match=named):
        model.streams(SampleConfig(**ends))


# many texts together


PRECISIONS = [
    "float32",
    pytest.param("bfloat16", marks=pytest.mark.skipif(not cpu_has("avx512bf16"), reason="no AVX512-BF16 here")),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("cell", "hidden_size"), [("gru", 7), ("rnn", 33), ("lstm", 33), ("gru", 100)])
def test_a_text_depends_neither_on_threads_nor_on_other_texts(monkeypatch, precision, cell, hidden_size):
    """Bit by bit, with other threads, more samples, fewer of them together, and other blocks."""
    monkeypatch.setattr(engine, "_WEIGHTS_PER_THREAD", 1)
    file, settings = make_file(cell, hidden_size=hidden_size), {"seed": 5, "length": 100, "top_p": 0.95}
    alone = Sampler(file, threads=1, precision=precision)
    config = SampleConfig(prompt="abc", **settings)
    streams_alone = [alone.stream(config, number=k) for k in range(5)]
    expected = [("".join(stream), stream.nats) for stream in streams_alone]
    assert len({text for text, _ in expected}) == 5
    for threads, together, block in [(1, 64, 16), (2, 64, 16), (3, 2, 7), (7, 3, 300)]:
        monkeypatch.setattr(engine.Engine, "max_streams", together)
        monkeypatch.setattr(module, "_FIRST_BLOCK", block)
        many = Sampler(file, threads=threads, precision=precision).streams(replace(config, num_samples=5))
        assert [("".join(stream), stream.nats) for stream in many] == expected


@pytest.mark.parametrize(
    "ends",
    [{"stop": ("ab", "c")}, {"lines": 2}, {"stop": ("a",), "lines": 1}, {"length": -1, "stop": ("e", "\n")}],
    ids=str,
)
def test_samples_may_end_at_different_places(ends):
    """Each ends at its own stop text or line, and each stream counts what was drawn for it alone."""
    config = SampleConfig(prompt="a", num_samples=9, **{"seed": 3, "length": 60, "temperature": 2.0, **ends})
    model = Sampler(make_file(hidden_size=16), threads=1)
    alone = [model.stream(config, number=k) for k in range(9)]
    expected = [("".join(stream), stream.num_drawn, stream.nats) for stream in alone]
    assert [("".join(stream), stream.num_drawn, stream.nats) for stream in model.streams(config)] == expected
    assert len({num_drawn for _, num_drawn, _ in expected}) > 2


def test_streams_may_be_read_later_and_in_any_order():
    """A stream that was not read yet is drawn when it is read; some need never be read."""
    settings = {"seed": 3, "length": 50, "num_samples": 4}
    texts = ["".join(stream) for stream in streams(make_file(), "a", **settings)]
    later = list(streams(make_file(), "a", **settings))
    assert "".join(later[3]) == texts[3]
    assert "".join(later[0]) == texts[0]
    for stream in streams(make_file(), "a", **settings):
        if stream.number == 2:
            assert "".join(stream) == texts[2]


def test_streams_are_not_drawn_far_ahead_of_their_reader(monkeypatch):
    """Samples that may never end pause when enough is unread; endless ones are drawn alone."""
    monkeypatch.setattr(module, "_MAX_UNREAD", 100)
    monkeypatch.setattr(module, "_MAX_BLOCK", 16)
    batch = streams(counting_file(), "a", length=-1, stop=("dd",), num_samples=3, seed=1)
    first = next(iter(batch))
    for _ in range(200):
        next(first)
    others = [stream for stream in batch._streams if stream is not first]
    assert len(others) == 2
    assert all(100 <= stream.num_drawn < 120 for stream in others)
    endless = streams(counting_file(), "a", length=-1, num_samples=3, seed=1)
    next(next(iter(endless)))
    assert len(endless._streams) == 1


def test_the_prompt_is_read_once_for_all_samples(monkeypatch):
    """However many samples there are."""
    fed, real = [], engine.Engine.read
    monkeypatch.setattr(engine.Engine, "read", lambda self, ids, state: fed.append(ids.shape) or real(self, ids, state))
    for stream in streams(make_file(), "abcde" * 100, num_samples=100, length=3, seed=1):
        list(stream)
    assert fed == [(1, 499)]


# documents, rare characters, bytes


def test_each_of_many_texts_of_bytes_finishes_its_last_character():
    """Also in the middle of a block that other texts draw whole."""
    file = replace(make_file(), vocab=Vocab("\nab" + "".join(sorted(bytes_as_chars("é€")[:3] + "\udcac\udc82\udcff"))))
    settings = {"length": 21, "seed": 0, "num_samples": 70, "stop": ("aa",), "temperature": 3.0}
    texts = ["".join(stream) for stream in streams(file, **settings)]
    alone = Sampler(file, threads=1)
    assert texts == [draw_text(alone, number=number, **settings) for number in range(70)]
    lengths = {len(text.encode("utf-8", "surrogateescape")) for text in texts}
    assert {21, 22} < lengths <= set(range(25))


def test_bytes_that_are_not_utf8_are_surrogate_escapes():
    """So that encoding the text gives back every byte; the length is exact, as no character can be finished."""
    file = counting_file("ab\udcc1\udcd5\udce9\udcff")
    text = draw_text(file, "a", temperature=0, length=9, seed=0)
    assert text.encode("utf-8", "surrogateescape") == b"b\xc1\xd5\xe9\xffab\xc1\xd5"
    assert draw_text(file, text, temperature=0, length=2, seed=0) == "\udce9\udcff"


def test_a_model_of_documents_writes_whole_documents():
    """Text starts after the end of another document, and ends before the next end, which is not written."""
    file = counting_file("abcd" + END)  # END follows d, a follows END
    model, settings = Sampler(file, threads=1), {"temperature": 0, "length": -1, "seed": 0}
    assert model.writes_documents
    assert model.configure({"temperature": 0}).length == -1
    assert model.configure({"length": 7}).length == 7
    first = model.stream(SampleConfig(**settings))
    assert ("".join(first), first.num_drawn) == ("abcd", 5)
    assert draw_text(model, "b", **settings) == "cd"
    assert draw_text(model, **settings | {"length": 2}) == "ab"
    assert draw_text(model, stop=("bc",), **settings) == "a"
    assert ["".join(stream) for stream in model.streams(SampleConfig(num_samples=3, **settings))] == ["abcd"] * 3
    assert not Sampler(counting_file(), threads=1).writes_documents


@pytest.mark.parametrize("n", [1, 2])
def test_the_repeat_guard_never_forbids_the_end_of_a_document(n):
    """Although every text begins after one."""
    file = make_follower_file("abcde" + END, "bcd" + END + "aa")
    assert draw_text(file, temperature=0, length=20, no_repeat_ngram=n) == "abcd"


@pytest.mark.parametrize("settings", [{"temperature": 1e300}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.999}])
def test_the_symbol_for_rare_characters_is_never_drawn(settings):
    """However likely it is and however flat the distribution becomes; a prompt may contain rare characters."""
    file = counting_file("abcd" + UNKNOWN)  # it follows d
    text = draw_text(file, "aéd", length=400, seed=1, **settings)
    assert len(text) == 400
    assert set(text) <= set("abcd")


def test_bytes_are_written_as_whole_characters():
    """Neither a piece nor a text ends inside a character; one that a stop text cuts off stays bytes."""
    spelled = bytes_as_chars("né€")
    file = make_follower_file("".join(sorted(spelled)), [spelled[(spelled.index(c) + 1) % 6] for c in sorted(spelled)])
    assert file.vocab.has_bytes
    pieces = list(Sampler(file, threads=1).stream(SampleConfig(prompt="n", temperature=0, length=60, seed=0)))
    assert "".join(pieces) == ("é€n" * 10)
    assert all("\ufffd" not in piece for piece in pieces)
    for length, text in enumerate(["", "é", "é", "é€", "é€", "é€", "é€n"]):
        assert draw_text(file, "n", temperature=0, length=length, seed=0) == text
    assert draw_text(file, "n", temperature=0, length=3, seed=0, stop=("€",)) == "é"
    assert draw_text(file, "n", temperature=0, length=9, seed=0, stop=("\udcac",)) == "é\udce2\udc82"
    assert draw_text(file, "né", temperature=0, length=3, seed=0) == "€"
    assert draw_text(file, "n", temperature=0, length=60, seed=0, stop=("€",)) == "é"


@pytest.mark.parametrize("length", [-1, 40])
def test_little_is_drawn_that_no_text_needs(monkeypatch, length):
    """Where texts end by themselves, blocks are shorter than they are, and ended texts make room for new ones."""
    monkeypatch.setattr(module, "_SECONDS_PER_BLOCK", 1e9)  # so that blocks don't depend on the machine's speed
    real, drawn, together = engine.Engine.draw, [], []

    def draw(self, filters, block, state, **options):
        drawn.append(block.uniforms.size)
        together.append(len(block.uniforms))
        real(self, filters, block, state, **options)

    monkeypatch.setattr(engine.Engine, "draw", draw)
    used = 0
    for stream in streams(make_file(scale=1.0), length=length, stop=("a", "b"), seed=1, num_samples=2000):
        list(stream)
        used += stream.num_drawn
    assert sum(drawn) < 2.2 * used
    assert together[: len(together) // 2] == [64] * (len(together) // 2)
