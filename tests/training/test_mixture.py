"""The mixture of network and n-grams: in a model file, in scores, in samples, and how its weights are fitted."""

import dataclasses
import itertools

import numpy as np
import pytest

from charrnn.config import ModelConfig, SampleConfig
from charrnn.data.batches import make_train_text
from charrnn.errors import ModelFileError
from charrnn.evaluation import scoring
from charrnn.evaluation.adaptation import evaluate_adapting
from charrnn.evaluation.scoring import evaluate
from charrnn.kernels.ngrams import Mixture, fill_distribution
from charrnn.model import ngrams
from charrnn.model.container import FORMAT_VERSION
from charrnn.model.file import load_model, save_model
from charrnn.model.network import CharRNN, StockNetwork
from charrnn.model.ngrams import count_ngrams, find_contexts, make_mixture, make_trie
from charrnn.sampling.sampler import Sampler
from charrnn.training.mixture import MIN_GAIN, _expect_gain, _minimise_nats, fit_mixture, fit_weights
from tests import reference
from tests.conftest import draw_text, make_model_file, make_reader, predict_text, sequential_nats
from tests.model.model_files import meta_of, naive_write

CHARS = "abcdef"
WEIGHTS = np.array([[0.7, 0.2], [0.5, 0.4], [0.6, 0.3], [0.3, 0.7]])


def make_ids(count, seed=0):
    """Ids that usually follow from the last two."""
    generator = np.random.default_rng(seed)
    ids = [0, 1]
    for _ in range(count - 2):
        follower = (2 * ids[-1] + ids[-2] + 1) % 6
        ids.append(follower if generator.random() < 0.8 else int(generator.integers(0, 6)))
    return np.array(ids, np.uint8)


def make_file(order=4, *, scale=3.0, cell="gru"):
    """A network with large random weights, and n-grams."""
    config = ModelConfig(cell=cell, vocab_size=6, embedding_dim=4, hidden_size=8, num_layers=1)
    arrays = {**count_ngrams(make_ids(3000), order, vocab_size=6), "ngram.weights": WEIGHTS[:order].copy()}
    return dataclasses.replace(make_model_file(config, scale=scale, chars=CHARS), ngram=arrays)


def naive_distribution(file, twin, network, state, history):
    """The product of both experts by the equations; the longest known context selects the weights."""
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


@pytest.fixture
def unpruned(monkeypatch):
    """All n-grams are kept, whatever their size."""
    monkeypatch.setattr(ngrams, "MAX_SINGLETON_LENGTH", 99)
    monkeypatch.setattr(ngrams, "BYTES_PER_CHAR", 1e9)


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_n_grams_agree_with_dictionaries(unpruned, order):
    """After known contexts and others; each distribution sums to one."""
    train = make_ids(400)
    trie = make_trie(count_ngrams(train, order, vocab_size=8), vocab_size=8)
    twin, text = reference.KneserNey(train.tolist(), order, 8), np.array([1, 2, 7, 3, 4, 0, 1, 2, 3], np.uint8)
    contexts = find_contexts(Mixture(trie, np.ones((order, 2))), text, context=train)
    history, probabilities = train.tolist(), np.empty(8)
    for place, char in enumerate(text.tolist()):
        fill_distribution(trie, contexts[place], probabilities)
        assert probabilities.sum() == pytest.approx(1.0, abs=1e-9)
        assert probabilities == pytest.approx([twin.probability(history, other) for other in range(8)], abs=2e-6)
        history.append(char)


def test_n_grams_that_occur_once_are_pruned_until_the_rest_fits(unpruned, monkeypatch):
    """The longest first. What is left is still a distribution: the shares of pruned ones go to shorter contexts."""
    train = np.random.default_rng(0).integers(0, 6, 5000).astype(np.uint8)
    sizes = []
    for limit in (1e9, 20.0, 5.0, 1.0):
        monkeypatch.setattr(ngrams, "BYTES_PER_CHAR", limit)
        arrays = count_ngrams(train, 5, vocab_size=6)
        sizes.append(sum(array.nbytes for array in arrays.values()))
        trie, probabilities = make_trie(arrays, vocab_size=6), np.empty(6)
        for row in find_contexts(Mixture(trie, np.ones((5, 2))), train[:500], context=train[-9:]):
            fill_distribution(trie, row, probabilities)
            assert probabilities.sum() == pytest.approx(1.0, abs=1e-9)
            assert probabilities.min() > 0
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * sizes[0]
    assert sizes[1] <= 20 * len(train)


def test_long_n_grams_that_occur_once_are_always_pruned(unpruned, monkeypatch):
    """Even if there is enough space."""
    train = make_ids(2000)
    everything = count_ngrams(train, 8, vocab_size=6)
    monkeypatch.undo()
    monkeypatch.setattr(ngrams, "BYTES_PER_CHAR", 1e9)
    assert len(count_ngrams(train, 8, vocab_size=6)["ngram.char"]) < len(everything["ngram.char"])


def put(place, value):
    """A function that changes one number of an array."""

    def change(array):
        changed = array.copy()
        changed.flat[place] = value
        return changed

    return change


DAMAGES = {
    "a character too many": ("ngram.char", lambda array: np.append(array, array[-1:])),
    "a character outside the vocabulary": ("ngram.char", put(2, 6)),
    "two equal children": ("ngram.char", put(1, 0)),
    "shares of more than one": ("ngram.kept", put(0, 1.0)),
    "a negative share": ("ngram.kept", put(0, -0.1)),
    "a share that is not a number": ("ngram.kept", put(0, np.nan)),
    "another type": ("ngram.kept", lambda array: array.astype(np.float64)),
    "too many children": ("ngram.children", put(0, 60_000)),
    "a negative weight": ("ngram.weights", put(0, -1.0)),
    "a weight that is not a number": ("ngram.weights", put(0, np.nan)),
    "no weights": ("ngram.weights", lambda array: array[:0]),
    "weights of another shape": ("ngram.weights", lambda array: array.ravel()),
    "no children": ("ngram.children", lambda array: array[:0]),
    "two dimensions": ("ngram.char", lambda array: array[None]),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_inconsistent_arrays_are_refused(tmp_path, what):
    """Before anything is looked up in them; a file with them is damaged."""
    file, (name, change) = make_file(), DAMAGES[what]
    damaged = {**file.ngram, name: change(file.ngram[name])}
    with pytest.raises((ValueError, IndexError)):
        make_mixture(damaged, vocab_size=6)
    path, model = tmp_path / "model.safetensors", dataclasses.replace(file, ngram=damaged)
    document = {"format": FORMAT_VERSION, "kind": "model", **meta_of(model)}
    path.write_bytes(naive_write({**model.tensors, **damaged}, document))
    with pytest.raises(ModelFileError, match=r"model\.safetensors: damaged or not a charrnn model"):
        load_model(path)
    with pytest.raises(ModelFileError, match="not written"):
        save_model(path, model)


def test_a_file_returns_what_was_saved(tmp_path):
    """With n-grams and without."""
    file = make_file()
    for one in (file, dataclasses.replace(file, ngram={})):
        save_model(tmp_path / "model.safetensors", one)
        found = load_model(tmp_path / "model.safetensors")
        assert found.ngram.keys() == one.ngram.keys()
        assert all((found.ngram[name] == one.ngram[name]).all() for name in one.ngram)
        assert found.tensors.keys() == file.tensors.keys()
        assert (found.mixture is None) == (not one.ngram)


# scores


@pytest.mark.parametrize("stock", [True, False])
def test_a_mixture_is_the_product_of_its_experts(stock):
    """Nats, ranks and the likeliest characters follow the equations, and so do the nats of each expert alone."""
    file, ids = make_file(), make_ids(80, seed=5)
    model = CharRNN.from_arrays(file.config, file.tensors)
    model = StockNetwork(model) if stock else model.reader(threads=2)
    found = predict_text(model, ids[20:], context=ids[:20], num_top=3, mixture=file.mixture)
    network, twin = reference.Network("gru", file.tensors), reference.KneserNey(make_ids(3000).tolist(), 4, 6)
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


def test_n_grams_see_the_characters_before_a_lane_or_part(monkeypatch):
    """So they predict the same however the text is cut."""
    file, ids = make_file(scale=1.0), make_ids(9000, seed=2)
    model = make_reader(file.config, file.tensors)
    options = {"context": ids[:1000], "mixture": file.mixture}
    lanes = predict_text(model, ids[1000:], **options)
    monkeypatch.setattr(scoring, "MAX_LANES", 1)
    sequence = predict_text(model, ids[1000:], **options)
    assert (sequence.experts[:, 1] == lanes.experts[:, 1]).all()
    np.testing.assert_allclose(sequence.nats, lanes.nats, atol=1e-4)
    np.testing.assert_allclose(sequence.experts[:, 0], sequential_nats(file, ids[1000:], ids[:1000]), atol=1e-4)
    monkeypatch.undo()
    monkeypatch.setattr(scoring, "_PART_SIZE", 1500)
    parts = evaluate(model, ids[1000:], **options)
    assert parts.nats == pytest.approx(sequence.nats.sum(), rel=1e-5)
    assert parts.experts[1] == pytest.approx(sequence.experts[:, 1].sum(), rel=1e-12)


def test_only_the_network_of_a_mixture_adapts():
    """At a rate of zero the score is the mixture's; rare characters are not scored."""
    file, ids = make_file(), make_ids(1500, seed=3)
    model, options = CharRNN.from_arrays(file.config, file.tensors), {"context": ids[:500], "mixture": file.mixture}
    for rare_id in (None, 4):
        still = evaluate_adapting(model, ids[500:], train=ids[:500], rate=0.0, rare_id=rare_id, **options)
        score = evaluate(model.reader(threads=2), ids[500:], rare_id=rare_id, **options)
        assert still.num_chars == score.num_chars
        assert still.nats == pytest.approx(score.nats, rel=1e-5)
    moved = evaluate_adapting(model, ids[500:], train=ids[:500], rate=0.02, **options)
    assert moved.nats < evaluate(model.reader(threads=2), ids[500:], **options).nats


# samples


def test_greedy_text_takes_the_products_likeliest_character():
    """At each step, by the naive experts."""
    file = make_file()
    written = draw_text(file, "abc", length=40, temperature=0.0)
    network, twin = reference.Network("gru", file.tensors), reference.KneserNey(make_ids(3000).tolist(), 4, 6)
    history, state = [0, 1, 2], network.zeros()
    for char in history[:-1]:
        _, state = network.step(char, state)
    for _ in range(40):
        expected, _, _, state = naive_distribution(file, twin, network, state, history)
        history.append(int(np.argmax(expected)))
    assert written == file.vocab.decode(history[3:])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_text_depends_neither_on_threads_nor_on_other_texts(threads, monkeypatch):
    """Alone or one of many, it is the same text; without n-grams it differs."""
    monkeypatch.setattr("charrnn.sampling.engine._WEIGHTS_PER_THREAD", 1)
    file = dataclasses.replace(
        make_model_file(ModelConfig("gru", 6, 4, 64, 1), scale=3.0, chars=CHARS), ngram=make_file().ngram
    )
    settings = {"length": 300, "seed": 7}
    many = Sampler(file, threads=threads).streams(SampleConfig(prompt="ab", num_samples=9, **settings))
    texts = ["".join(stream) for stream in many]
    assert texts == [draw_text(file, "ab", number=number, **settings) for number in range(9)]
    network = Sampler(dataclasses.replace(file, ngram={}), threads=threads)
    assert draw_text(network, "ab", **settings) != texts[0]


def test_a_samples_nats_are_those_of_evaluation():
    """Up to rounding."""
    file = make_file()
    stream = Sampler(file, threads=1).stream(SampleConfig(prompt="ab", length=500, seed=3, temperature=0.9))
    written = file.vocab.encode("ab" + "".join(stream))
    model = make_reader(file.config, file.tensors)
    score = evaluate(model, written[2:], context=written[:2], mixture=file.mixture)
    assert stream.nats == pytest.approx(score.nats, rel=1e-4)


# the weights


def make_experts(count=4000, seed=0):
    """Logits and log probabilities of two experts that each know a part of what comes; known lengths; targets."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 5, count)
    certain = np.eye(5)[targets]
    logits = 2.0 * certain * generator.random((count, 1)) + generator.normal(size=(count, 5))
    counted = 3.0 * certain * (generator.random((count, 1)) < 0.5) + generator.normal(size=(count, 5))
    counted -= np.logaddexp.reduce(counted, axis=1, keepdims=True)
    return logits, counted, generator.integers(0, 3, count), targets


def mean_nats(logits, counted, targets, weights):
    """Nats per character of a weighted product."""
    alone = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    scores = weights[0] * alone + weights[1] * counted
    scores -= np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return -scores[np.arange(len(targets)), targets].mean()


def test_newtons_method_finds_the_minimum():
    """No weights a little away have fewer nats."""
    logits, counted, _, targets = make_experts()
    experts = np.stack([logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), counted])
    weights = _minimise_nats(experts, targets, prior=np.array([0.7, 0.3]), strength=0.0)
    best = mean_nats(logits, counted, targets, weights)
    for step in itertools.product((-0.02, 0.0, 0.02), repeat=2):
        assert mean_nats(logits, counted, targets, weights + step) >= best


def test_an_expert_that_knows_nothing_keeps_a_small_weight(tmp_path):
    """A file accepts these weights."""
    logits, counted, lengths, targets = make_experts()
    weights, _ = fit_weights(0 * logits, np.exp(5 * counted), lengths, targets, order=4)
    file = make_file()
    save_model(
        tmp_path / "model.safetensors", dataclasses.replace(file, ngram={**file.ngram, "ngram.weights": weights})
    )
    assert load_model(tmp_path / "model.safetensors").mixture is not None


def test_the_gain_is_what_the_weights_save():
    """Over the network alone, by known length; weights sum to at most one."""
    logits, counted, lengths, targets = make_experts()
    weights, gain = fit_weights(logits, np.exp(counted), lengths, targets, order=4)
    assert weights.shape == (4, 2)
    assert (weights.sum(1) <= 1 + 1e-12).all()
    total = 0.0
    for length in range(3):
        here = lengths == length
        total += mean_nats(logits[here], counted[here], targets[here], weights[length]) * here.sum()
    alone = mean_nats(logits, counted, targets, (1.0, 0.0))
    assert gain == pytest.approx(alone - total / len(targets), rel=1e-5)
    assert gain > 0.1


def test_a_single_piece_decides_little():
    """The weights stay near the usual ones, and n-grams that lose a little on it are mixed in; fifty pieces decide."""
    logits, _, lengths, targets = make_experts()
    misleading = np.full((len(targets), 5), 0.125)
    misleading[np.arange(len(targets)), (targets + 1) % 5] = 0.5

    def fit_ngram_weight(count):
        parts = (array[:count] for array in (logits, misleading, lengths, targets))
        return fit_weights(*parts, order=4)[0][-1, 1]  # for contexts of a length that doesn't occur

    assert fit_ngram_weight(300) > 1.5 * fit_ngram_weight(1000) > 20 * fit_ngram_weight(4000)
    assert _expect_gain(-0.02, 1000) > MIN_GAIN > _expect_gain(0.0, 50_000)
    assert _expect_gain(0.02, 50_000) == pytest.approx(0.02, rel=0.05)


def test_n_grams_are_mixed_in_if_they_gain_enough():
    """As with a network of random weights; the arrays are the same each time, and count all of the text."""
    config = ModelConfig("gru", vocab_size=6, embedding_dim=4, hidden_size=8, num_layers=1)
    model, ids = CharRNN(config).reader(threads=2), make_ids(90_000)
    text = make_train_text(ids, 6)
    assert len(text.withheld_starts) == 2
    arrays = fit_mixture(model, text, num_counted=len(text.ids))
    score = evaluate(model, ids[-2000:], context=ids[:-2000], mixture=make_mixture(arrays, vocab_size=6))
    assert score.nats < score.experts[0] - MIN_GAIN * score.num_chars
    again = fit_mixture(model, text, num_counted=len(text.ids))
    assert all((array == again[name]).all() for name, array in arrays.items())
    order = len(arrays["ngram.weights"])
    assert (arrays["ngram.char"] == count_ngrams(ids, order, vocab_size=6)["ngram.char"]).all()
    part = fit_mixture(model, text, num_counted=50_000)
    order = len(part["ngram.weights"])
    assert (part["ngram.kept"] == count_ngrams(ids[-50_000:], order, vocab_size=6)["ngram.kept"]).all()


@pytest.mark.parametrize(("num_chars", "order"), [(30_000, 7), (3, 3)])
def test_experts_of_a_short_text_have_equal_weights(num_chars, order):
    """Nothing is withheld to fit them on. All of the text is counted."""
    config = ModelConfig("gru", vocab_size=6, embedding_dim=4, hidden_size=8, num_layers=1)
    ids = make_ids(num_chars)
    arrays = fit_mixture(CharRNN(config).reader(threads=1), make_train_text(ids, 6), num_counted=num_chars)
    assert (arrays["ngram.weights"] == np.full((order, 2), 0.5)).all()
    counted = count_ngrams(ids, order, vocab_size=6)
    assert all((arrays[name] == array).all() for name, array in counted.items())
    assert make_mixture(arrays, vocab_size=6) is not None


def test_n_grams_that_gain_nothing_are_left_out():
    """As with a uniform network, which is right about noise."""
    config = ModelConfig("gru", vocab_size=6, embedding_dim=4, hidden_size=8, num_layers=1)
    noise = np.random.default_rng(0).integers(0, 6, 500_000).astype(np.uint8)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    assert fit_mixture(make_reader(config, zeros), make_train_text(noise, 6), num_counted=len(noise)) == {}
