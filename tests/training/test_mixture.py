"""n-grams beside the network: what they say, how much each counts, where they are kept."""

import dataclasses
import itertools

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.data.batches import TrainText, make_train_text
from charrnn.errors import ModelFileError
from charrnn.evaluation.adaptation import evaluate_adapting
from charrnn.evaluation.scoring import evaluate, predict
from charrnn.kernels.ngrams import Mixture, fill_distribution
from charrnn.model import ngrams as ngram
from charrnn.model.file import load_model, save_model
from charrnn.model.network import CharRNN
from charrnn.model.ngrams import count_ngrams, find_contexts, make_mixture, make_trie
from charrnn.sampling.sampler import Sampler
from charrnn.training import mixture
from charrnn.training.mixture import LEAST_GAIN, fit, make
from tests import reference
from tests.conftest import make_model_file

CHARS = "abcdef"
WEIGHTS = np.array([[0.7, 0.2], [0.5, 0.4], [0.6, 0.3], [0.3, 0.7]])


def make_text(count, seed=0):
    """Ids in which what follows depends on the last two characters."""
    generator = np.random.default_rng(seed)
    ids = [0, 1]
    for _ in range(count - 2):
        follower = (2 * ids[-1] + ids[-2] + 1) % 6
        ids.append(follower if generator.random() < 0.8 else int(generator.integers(0, 6)))
    return np.array(ids, np.uint8)


def make_file(order=4, *, scale=3.0, cell="gru"):
    """A network that has opinions, and n-grams beside it."""
    config = ModelConfig(cell=cell, vocab_size=6, embedding_dim=4, hidden_size=8, num_layers=1)
    arrays = {**count_ngrams(make_text(3000), order, vocab_size=6), "ngram.weights": WEIGHTS[:order].copy()}
    return dataclasses.replace(make_model_file(config, scale=scale, chars=CHARS), ngram=arrays)


def naive_distribution(file, twin, network, state, history):
    """The product of both experts, by the equations; the length of the longest context that is known decides."""
    logits, state = network.step(history[-1], state)
    alone = logits - np.logaddexp.reduce(logits)
    order = len(file.ngram["ngram.weights"])
    counted = np.log([twin.probability(history, char) for char in range(6)])
    known = [0]
    for length in range(1, order):
        context = tuple(history[len(history) - length :])
        if len(context) == length and any((*context, char) in twin.counts[length] for char in range(6)):
            known.append(length)
    weights = file.ngram["ngram.weights"][max(known)]
    scores = weights[0] * alone + weights[1] * counted
    return scores - np.logaddexp.reduce(scores), alone, counted, state


# n-grams in a file


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_n_grams_out_of_a_file_say_what_the_dictionaries_do(order, monkeypatch):
    """After contexts that occurred and others; each distribution sums to one."""
    monkeypatch.setattr(ngram, "MAX_SINGLETON_LENGTH", 99)
    train = make_text(400)
    found = make_trie(count_ngrams(train, order, vocab_size=8, bytes_per_char=1e9), vocab_size=8)
    twin, text = reference.KneserNey(train.tolist(), order, 8), np.array([1, 2, 7, 3, 4, 0, 1, 2, 3], np.uint8)
    contexts = find_contexts(Mixture(found, np.ones((order, 2))), text, context=train)
    history, room = train.tolist(), np.empty(8)
    for place, char in enumerate(text.tolist()):
        fill_distribution(found, contexts[place], room)
        assert room.sum() == pytest.approx(1.0, abs=1e-9)
        assert room == pytest.approx([twin.probability(history, other) for other in range(8)], abs=2e-6)
        history.append(char)


def test_what_occurs_once_is_left_out_until_the_rest_fits(monkeypatch):
    """The longest first; what is left is still a distribution, and what went is with the shorter contexts."""
    monkeypatch.setattr(ngram, "MAX_SINGLETON_LENGTH", 99)
    train = np.random.default_rng(0).integers(0, 6, 5000).astype(np.uint8)
    sizes = []
    for limit in (1e9, 20.0, 5.0, 1.0):
        arrays = count_ngrams(train, 5, vocab_size=6, bytes_per_char=limit)
        sizes.append(sum(array.nbytes for array in arrays.values()))
        found, room = make_trie(arrays, vocab_size=6), np.empty(6)
        contexts = find_contexts(Mixture(found, np.ones((5, 2))), train[:500], context=train[-9:])
        for row in contexts:
            fill_distribution(found, row, room)
            assert room.sum() == pytest.approx(1.0, abs=1e-9)
            assert room.min() > 0
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * sizes[0]
    assert sizes[1] <= 20 * len(train)


def test_long_ones_that_occur_once_are_never_kept(monkeypatch):
    """However much room there is."""
    train = make_text(2000)
    monkeypatch.setattr(ngram, "MAX_SINGLETON_LENGTH", 99)
    everything = count_ngrams(train, 8, vocab_size=6, bytes_per_char=1e9)
    monkeypatch.undo()
    usual = count_ngrams(train, 8, vocab_size=6, bytes_per_char=1e9)
    assert len(usual["ngram.char"]) < len(everything["ngram.char"])


def damage(arrays, name, change):
    """The arrays with one of them changed."""
    changed = arrays[name].copy()
    return {**arrays, name: change(changed)}


def put(place, value):
    """A change of one number."""

    def change(array):
        array.flat[place] = value
        return array

    return change


DAMAGES = {
    "a character too many": ("ngram.char", lambda array: np.append(array, array[-1:])),
    "a character that isn't one": ("ngram.char", put(2, 6)),
    "two children alike": ("ngram.char", put(1, 0)),
    "more than certain": ("ngram.kept", put(0, 1.0)),
    "less than impossible": ("ngram.kept", put(0, -0.1)),
    "no number": ("ngram.kept", put(0, np.nan)),
    "a wide type": ("ngram.kept", lambda array: array.astype(np.float64)),
    "too many children": ("ngram.children", put(0, 60_000)),
    "a negative weight": ("ngram.weights", put(0, -1.0)),
    "a weight without a number": ("ngram.weights", put(0, np.nan)),
    "no weights": ("ngram.weights", lambda array: array[:0]),
    "weights of another shape": ("ngram.weights", lambda array: array.ravel()),
    "no children": ("ngram.children", lambda array: array[:0]),
    "two dimensions": ("ngram.char", lambda array: array[None]),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_arrays_that_contradict_themselves_are_refused(tmp_path, what):
    """Before anything is looked up in them; a file of them is a damaged one."""
    file, (name, change) = make_file(), DAMAGES[what]
    damaged = damage(file.ngram, name, change)
    with pytest.raises((ValueError, IndexError)):
        make_mixture(damaged, vocab_size=6)
    save_model(tmp_path / "model.safetensors", dataclasses.replace(file, ngram=damaged))
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        load_model(tmp_path / "model.safetensors")


def test_a_file_gives_back_what_was_put_in(tmp_path):
    """With n-grams and without."""
    file = make_file()
    for one in (file, dataclasses.replace(file, ngram={})):
        save_model(tmp_path / "model.safetensors", one)
        found = load_model(tmp_path / "model.safetensors")
        assert found.ngram.keys() == one.ngram.keys()
        assert all((found.ngram[name] == one.ngram[name]).all() for name in one.ngram)
        assert found.tensors.keys() == file.tensors.keys()
        assert (found.mixture is None) == (not one.ngram)


# what a mixture predicts


@pytest.mark.parametrize("fused", [True, False])
def test_a_mixture_is_the_product_of_its_experts(fused, monkeypatch):
    """Costs, ranks and the likeliest as the equations say; what each expert alone pays beside it."""
    file, ids = make_file(), make_text(80, seed=5)
    monkeypatch.setattr("charrnn.evaluation.scoring.is_fused", lambda _: fused)
    model = CharRNN.from_arrays(file.config, file.tensors)
    found = predict(model, ids[20:], context=ids[:20], num_top=3, mixture=file.mixture)
    network, twin = reference.Network("gru", file.tensors), reference.KneserNey(make_text(3000).tolist(), 4, 6)
    state = network.zeros()
    for place in range(1, len(ids)):
        expected, alone, counted, state = naive_distribution(file, twin, network, state, ids[:place].tolist())
        if place < 20:
            continue
        row, target = place - 20, int(ids[place])
        assert found.nats[row] == pytest.approx(-expected[target], abs=1e-4)
        assert found.experts[row] == pytest.approx([-alone[target], -counted[target]], abs=1e-4)
        assert found.probabilities[row] == pytest.approx(np.sort(np.exp(expected))[::-1][:3], abs=1e-4)
    score = evaluate(model, ids[20:], context=ids[:20], mixture=file.mixture)
    assert score.nats == pytest.approx(found.nats.sum())
    assert score.experts == pytest.approx(found.experts.sum(0))
    assert evaluate(model, ids[20:], context=ids[:20]).nats == pytest.approx(found.experts[:, 0].sum(), rel=1e-6)


def test_lanes_and_parts_know_what_is_before_them(monkeypatch):
    """The n-grams of each character reach back over the borders."""
    file, ids = make_file(scale=1.0), make_text(9000, seed=2)
    model = CharRNN.from_arrays(file.config, file.tensors)
    one = predict(model, ids[1000:], context=ids[:1000], mixture=file.mixture, max_lanes=1)
    many = predict(model, ids[1000:], context=ids[:1000], mixture=file.mixture)
    assert (one.experts[:, 1] == many.experts[:, 1]).all()
    np.testing.assert_allclose(one.nats, many.nats, atol=1e-4)
    monkeypatch.setattr("charrnn.evaluation.scoring._AT_ONCE", 1500)
    parts = evaluate(model, ids[1000:], context=ids[:1000], mixture=file.mixture)
    assert parts.nats == pytest.approx(one.nats.sum(), rel=1e-5)
    assert parts.experts[1] == pytest.approx(one.experts[:, 1].sum(), rel=1e-12)


def test_adapting_at_a_rate_of_zero_is_the_mixtures_score():
    """The n-grams stay as they are; rare characters are left out of both."""
    file, ids = make_file(), make_text(1500, seed=3)
    model, options = CharRNN.from_arrays(file.config, file.tensors), {"context": ids[:500], "mixture": file.mixture}
    for rare in (None, 4):
        still = evaluate_adapting(model, ids[500:], train=ids[:500], rate=0.0, rare=rare, **options)
        score = evaluate(model, ids[500:], rare=rare, **options)
        assert still.num_chars == score.num_chars
        assert still.nats == pytest.approx(score.nats, rel=1e-5)
    moved = evaluate_adapting(model, ids[500:], train=ids[:500], rate=0.02, **options)
    assert moved.nats < evaluate(model, ids[500:], **options).nats


# what a mixture writes


def test_greedy_text_is_the_products_likeliest():
    """Character after character, from the naive networks."""
    file = make_file()
    written = "".join(Sampler(file, threads=1).stream("abc", length=40, temperature=0.0))
    network, twin = reference.Network("gru", file.tensors), reference.KneserNey(make_text(3000).tolist(), 4, 6)
    history, state = [0, 1, 2], network.zeros()
    for char in history[:-1]:
        _, state = network.step(char, state)
    for _ in range(40):
        expected, _, _, state = naive_distribution(file, twin, network, state, history)
        history.append(int(np.argmax(expected)))
    assert written == file.vocab.decode(history[3:])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_seed_gives_the_same_text_beside_others(threads, monkeypatch):
    """Alone or one of many, in blocks of any size, by any number of threads; and not the network's text."""
    monkeypatch.setattr("charrnn.sampling.engine._WEIGHTS_PER_THREAD", 1)
    file = dataclasses.replace(
        make_model_file(ModelConfig("gru", 6, 4, 64, 1), scale=3.0, chars=CHARS), ngram=make_file().ngram
    )
    sampler = Sampler(file, threads=threads)
    many = ["".join(stream) for stream in sampler.streams("ab", length=300, seed=7, num_samples=9)]
    alone = ["".join(Sampler(file, threads=1).stream("ab", length=300, seed=7, stream=number)) for number in range(9)]
    assert many == alone
    network = Sampler(dataclasses.replace(file, ngram={}), threads=threads)
    assert "".join(network.stream("ab", length=300, seed=7)) != many[0]


def test_what_is_drawn_costs_what_evaluation_says():
    """By both, to rounding."""
    file = make_file()
    stream = Sampler(file, threads=1).stream("ab", length=500, seed=3, temperature=0.9)
    written = file.vocab.encode("ab" + "".join(stream))
    model = CharRNN.from_arrays(file.config, file.tensors)
    score = evaluate(model, written[2:], context=written[:2], mixture=file.mixture)
    assert stream.nats == pytest.approx(score.nats, rel=1e-4)


# how much each counts


def make_experts(count=4000, seed=0):
    """Logits and log probabilities of two forecasters that each know a part of what comes."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 5, count)
    sure = np.eye(5)[targets]
    logits = 2.0 * sure * generator.random((count, 1)) + generator.normal(size=(count, 5))
    counted = 3.0 * sure * (generator.random((count, 1)) < 0.5) + generator.normal(size=(count, 5))
    counted -= np.logaddexp.reduce(counted, axis=1, keepdims=True)
    return logits, counted, generator.integers(0, 3, count), targets


def cost(logits, counted, targets, weights):
    """Nats a character of a weighted product."""
    alone = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    scores = weights[0] * alone + weights[1] * counted
    scores -= np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return -scores[np.arange(len(targets)), targets].mean()


def test_the_weights_are_the_best_there_are():
    """No others, a little away, cost less; before they are made to sum to one."""
    logits, counted, _, targets = make_experts()
    experts = np.stack([logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), counted])
    weights = mixture._newton(experts, targets, start=np.array([0.7, 0.3]), doubt=0.0)
    best = cost(logits, counted, targets, weights)
    for step in itertools.product((-0.02, 0.0, 0.02), repeat=2):
        assert cost(logits, counted, targets, weights + step) >= best


def test_an_expert_that_knows_nothing_keeps_a_little_weight(tmp_path):
    """So that a file of the weights is a good one."""
    logits, counted, lengths, targets = make_experts()
    weights, _ = fit(0 * logits, np.exp(5 * counted), lengths, targets, order=4)
    file = make_file()
    save_model(
        tmp_path / "model.safetensors", dataclasses.replace(file, ngram={**file.ngram, "ngram.weights": weights})
    )
    assert load_model(tmp_path / "model.safetensors").mixture is not None


def test_the_gain_is_what_the_weights_bring():
    """By length of what is known; weights sum to one at most."""
    logits, counted, lengths, targets = make_experts()
    weights, gain = fit(logits, np.exp(counted), lengths, targets, order=4)
    assert weights.shape == (4, 2)
    assert (weights.sum(1) <= 1 + 1e-12).all()
    parts = [
        cost(logits[here], counted[here], targets[here], weights[k]) * here.sum()
        for k in range(3)
        for here in [lengths == k]
    ]
    alone = cost(logits, counted, targets, (1.0, 0.0))
    assert gain == pytest.approx(alone - sum(parts) / len(targets), rel=1e-5)
    assert gain > 0.1


def test_n_grams_are_mixed_in_where_they_know_more():
    """A network of random weights beside a text with a pattern; the same arrays each time, of all of the text."""
    config = ModelConfig("gru", vocab_size=6, embedding_dim=4, hidden_size=8, num_layers=1)
    model, ids = CharRNN(config), make_text(90_000)
    text = make_train_text(ids, 6)
    assert len(text.starts) == 2
    arrays = make(model, text)
    score = evaluate(model, ids[-2000:], context=ids[:-2000], mixture=make_mixture(arrays, vocab_size=6))
    assert score.nats < score.experts[0] - LEAST_GAIN * score.num_chars
    assert all((array == make(model, text)[name]).all() for name, array in arrays.items())
    order = len(arrays["ngram.weights"])
    assert (arrays["ngram.char"] == count_ngrams(ids, order, vocab_size=6)["ngram.char"]).all()


def test_n_grams_that_bring_nothing_are_left_out(monkeypatch):
    """And so are those of a text that is too short to weigh them."""
    config = ModelConfig("gru", vocab_size=6, embedding_dim=4, hidden_size=8, num_layers=1)
    model, noise = CharRNN(config), np.random.default_rng(0).integers(0, 6, 50_000).astype(np.uint8)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    model.load_arrays(zeros)  # it knows that nothing is known
    assert make(model, make_train_text(noise, 6)) == {}
    assert make(model, make_train_text(noise[:30_000], 6)) == {}
    assert make(model, TrainText(noise, np.empty(0, np.int64))) == {}
