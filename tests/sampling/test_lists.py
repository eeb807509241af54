"""Lists of samples against a slow twin: streams drawn one by one, and compared as Python's strings."""

from dataclasses import replace

import numpy as np
import pytest

from charrnn.config import CELLS, ListConfig, ModelConfig
from charrnn.data.documents import hash_documents, short_hashes
from charrnn.data.vocab import Vocab
from charrnn.errors import UsageError
from charrnn.sampling.lists import (
    KnownDocuments,
    KnownRuns,
    Selection,
    configure_lists,
    make_known,
    needs_training_text,
)
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import END
from tests import labelled
from tests.conftest import make_model_file
from tests.sampling.test_sampler import counting_file, make_file

BYTES = "".join(sorted("ab\udcc3\udca9" + END))
WORDS = ["a", "b", "ab", "ba", "cab", "abc", "aa", "c"]


def documents_file(chars="abc" + END, *, cell="gru", known=WORDS):
    """A model of short documents with random weights, which knows these."""
    end = chars.index(END)
    config = ModelConfig(cell=cell, vocab_size=len(chars), embedding_dim=4, hidden_size=8, num_layers=1, reset_id=end)
    file = make_model_file(config, chars=chars)
    ids = file.vocab.encode("".join(file.vocab.to_chars(word) + END for word in known))
    return replace(file, known_documents=np.unique(short_hashes(hash_documents(ids, end))))


def select(file, *, threads=1, train_ids=None, prompt="", **settings):
    """The texts of a list, with the prompt, and their selection."""
    sampler = Sampler(file, threads=threads)
    given = {"seed": 1, "prompt": prompt, **settings}
    config = sampler.configure(given)
    lists = configure_lists(given, config, sampler)
    selection = Selection(sampler, config, lists, make_known(lists, file, train_ids))
    return [prompt + text for text, _ in selection], selection


def naive_list(file, asked, is_known, *, unique, prompt="", limit=None, **settings):
    """The same list from streams that are drawn one after the other, and the counts of its summary."""
    sampler = Sampler(file, threads=1)
    config = sampler.configure({"seed": 1, "prompt": prompt, **settings})
    found, seen, complete, distinct, number = [], set(), 0, 0, -1
    while len(found) < asked and number + 1 < (limit or 100 * asked):
        number += 1
        stream = sampler.stream(config, number=number)
        text = prompt + "".join(stream)
        if not stream.is_whole or not text:
            continue
        complete += 1
        if unique and text in seen:
            continue
        seen.add(text)
        distinct += 1
        if not is_known(text):
            found.append(text)
    return found, (number + 1, complete, distinct, len(found))


def counts(selection):
    """The counts of a summary."""
    return selection.drawn, selection.complete, selection.unique, selection.found


# documents


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("settings", [{}, {"length": 6}, {"prompt": "a"}], ids=str)
def test_a_list_of_documents_is_the_slow_twins(cell, unique, settings):
    """Without those that are known, cut off by the length or, with --unique, seen before."""
    file = documents_file(cell=cell)
    expected, expected_counts = naive_list(file, 70, WORDS.__contains__, unique=unique, **settings)
    texts, selection = select(file, num_samples=70, new=True, unique=unique, **settings)
    assert texts == expected
    assert counts(selection) == expected_counts
    assert not set(texts) & set(WORDS)
    assert (len(set(texts)) == 70) == unique
    assert selection.shortage is None


def test_documents_of_bytes_are_compared_byte_for_byte():
    """Also those that are not UTF-8."""
    known = ["é", "a", "\udca9"]
    file = documents_file(BYTES, known=known)
    texts, _ = select(file, num_samples=60, new=True, unique=True)
    assert texts == naive_list(file, 60, known.__contains__, unique=True)[0]
    assert any("é" in text for text in texts)
    assert any("\udca9" in text for text in texts)


@pytest.mark.parametrize("threads", [2, 3])
def test_a_list_does_not_depend_on_threads(threads):
    """Nor do the counts."""
    file = documents_file()
    expected, alone = select(file, num_samples=200, new=True, unique=True)
    texts, selection = select(file, threads=threads, num_samples=200, new=True, unique=True)
    assert (texts, counts(selection)) == (expected, counts(alone))


def test_a_short_list_is_the_beginning_of_a_long_one():
    """As with samples."""
    file = documents_file()
    long = select(file, num_samples=130, new=True, unique=True)[0]
    assert select(file, num_samples=7, new=True, unique=True)[0] == long[:7]


def test_drawing_ends_at_the_limit():
    """What was found is there, and the shortage says how many of how many."""
    file = documents_file(chars="a" + END, known=["a", "aa"])
    expected, expected_counts = naive_list(file, 50, ["a", "aa"].__contains__, unique=True, limit=70)
    texts, selection = select(file, num_samples=50, new=True, unique=True, max_draws=70)
    assert (texts, counts(selection)) == (expected, expected_counts)
    assert 0 < len(texts) < 50
    assert selection.shortage.startswith(f"found {len(texts)} of 50 samples: 70 drawn, ")


def test_the_limit_is_a_hundred_draws_for_each_sample():
    """Unless another one is given."""
    texts, selection = select(documents_file(chars="a" + END, known=["a" * size for size in range(99)]), new=True)
    assert (texts, selection.limit, selection.drawn) == ([], 100, 100)


def test_the_training_text_tells_new_documents_from_known_ones():
    """If the model has no hashes, or if it is given."""
    file = replace(documents_file(), known_documents=None)
    ids = file.vocab.encode("".join(word + END for word in WORDS))
    assert needs_training_text(ListConfig(new=True), file)
    assert not needs_training_text(ListConfig(unique=True), file)
    texts, _ = select(file, train_ids=ids, num_samples=80, new=True, unique=True)
    assert texts == select(documents_file(), num_samples=80, new=True, unique=True)[0]


def test_hashes_find_every_known_document_and_few_others():
    """Of 200,000 others about as many as D / 2^32 says."""
    generator = np.random.default_rng(1)
    texts = ["".join(word) for word in generator.choice([*"abc"], (3000, 12))]
    known, vocab = texts[:1000], Vocab("abc" + END)
    hashes = np.unique(short_hashes(hash_documents(vocab.encode("".join(text + END for text in known)), 3)))
    is_known = KnownDocuments(hashes, vocab).contains("", texts)
    assert is_known.tolist() == [text in set(known) for text in texts]
    assert not KnownDocuments(hashes[:0], vocab).contains("", texts[:3]).any()


# continuous text


@pytest.mark.parametrize("prompt", ["", "abcd", "abcdefghabcdefgh"])
@pytest.mark.parametrize("length", [2, 3, 5])
def test_new_continuous_text_has_no_run_of_the_training_text(prompt, length):
    """Runs that end in what was drawn count, those within the prompt don't."""
    file = make_file(scale=1.0)
    source = "abcdefgh\nabchgfedcba" * 3
    ids = file.vocab.encode(source)
    settings = {"length": 8, "temperature": 1.0}
    texts, selection = select(file, train_ids=ids, prompt=prompt, num_samples=40, new=True, new_run=length, **settings)
    sampler, expected = Sampler(file, threads=1), []
    config = sampler.configure({"prompt": prompt, "seed": 1, **settings})
    for number in range(selection.drawn):
        text = prompt + "".join(sampler.stream(config, number=number))
        ends = range(max(length, len(prompt) + 1), len(text) + 1)
        if not any(text[end - length : end] in source for end in ends):
            expected.append(text)
    assert texts == expected
    assert len(texts) == 40
    assert length > 2 or selection.drawn > 40


def test_runs_of_bytes_are_runs_of_bytes():
    """A character is several of them."""
    vocab = Vocab("".join(sorted("ab\udcc3\udca9\udca8")))
    known = KnownRuns(vocab.encode("ab\udcc3\udca9"), vocab, 3)
    assert known.contains("", ["bé", "bè", "aé", "abé", "é"]).tolist() == [True, False, False, True, False]
    assert known.contains("b", ["é", "è"]).tolist() == [True, False]


def test_unique_lines_of_continuous_text_are_whole_lines():
    """A line that the length cuts off is passed over."""
    file = make_file(scale=1.0)
    texts, selection = select(file, num_samples=30, unique=True, lines=1, length=12, temperature=1.0)
    assert all(text.endswith("\n") and len(text) <= 12 for text in texts)
    assert len(set(texts)) == 30
    assert selection.drawn > selection.complete >= 30
    assert "complete" in selection.summary()
    assert "complete" not in select(file, num_samples=3, unique=True, length=12)[1].summary()


# the best


@pytest.mark.parametrize("by", ["char", "total"])
def test_the_best_are_those_that_cost_fewest_bits(by):
    """In that order; of equal ones the first that was drawn."""
    file = documents_file()
    sampler = Sampler(file, threads=1)
    config = sampler.configure({"seed": 1, "num_samples": 100})
    costs = []
    for stream in sampler.streams(config):
        text = "".join(stream)
        costs.append((stream.nats / (stream.num_drawn if by == "char" else 1), stream.number, text))
    assert select(file, num_samples=100, best=10, best_by=by)[0] == [text for *_, text in sorted(costs)[:10]]


def test_the_best_of_a_list_are_in_the_list():
    """--best chooses among the samples that --unique and --new leave."""
    file = documents_file()
    found, _ = select(file, num_samples=60, new=True, unique=True)
    best, selection = select(file, num_samples=60, new=True, unique=True, best=20)
    assert len(best) == 20
    assert set(best) < set(found)
    assert (selection.found, selection.shortage) == (60, None)


# options that can't take effect


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unique": True}, "-N"),
        ({"unique": True, "num_samples": 3, "temperature": 0.0}, "--temp"),
        ({"max_draws": 5}, "--max-draws"),
        ({"new": True, "num_samples": 5, "max_draws": 4}, "--max-draws 4"),
        ({"new": True, "new_run": 9}, "compared whole"),
        ({"new_run": 9}, "without --new"),
        ({"num_samples": 5, "best": 6}, "--best 6"),
        ({"best_by": "total"}, "--best-by"),
    ],
    ids=str,
)
def test_options_that_cannot_take_effect_are_refused(settings, words):
    """Each in a line that names it."""
    sampler = Sampler(documents_file(), threads=1)
    with pytest.raises(UsageError, match=words):
        configure_lists(settings, sampler.configure(settings), sampler)


def test_the_likeliest_texts_of_drawn_labels_make_a_list():
    """At temperature 0 each label has a text of its own; a named label has only one."""
    sampler = Sampler(labelled.make_file(mixed=False), threads=1)
    settings = {"unique": True, "num_samples": 3, "temperature": 0.0}
    assert configure_lists(settings, sampler.configure(settings), sampler).unique
    settings["label"] = "ab"
    with pytest.raises(UsageError, match="--temp 0"):
        configure_lists(settings, sampler.configure(settings), sampler)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"new": True, "length": 29}, "--new-run 30"),
        ({"new": True, "length": -1}, "--new needs texts that end"),
        ({"unique": True, "length": -1, "num_samples": 2}, "--unique needs texts that end"),
        ({"best": 1, "length": -1}, "--best needs texts that end"),
    ],
    ids=str,
)
def test_continuous_text_needs_an_end_and_room_for_a_run(settings, words):
    """Else every text would be new, or none would ever be compared."""
    sampler = Sampler(counting_file(), threads=1)
    with pytest.raises(UsageError, match=words):
        configure_lists(settings, sampler.configure(settings), sampler)
