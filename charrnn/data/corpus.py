"""The corpus: texts as ids, read in bounded memory and split in training, held-out and test text.

The texts named on the command line are joined in that order. A first pass counts their
characters; a second one writes their ids to the cache, from where they are mapped. Texts that
the cache already holds are not read again. The split is contiguous: the end is held out.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from charrnn.config import MIN_CHARS, CorpusConfig, SourceConfig
from charrnn.data.cache import Cache, DamagedEntry, Entry, is_consistent
from charrnn.data.notes import note_about_records, notes_about
from charrnn.data.shuffling import shuffle
from charrnn.data.splitting import split_entry
from charrnn.data.texts import Texts
from charrnn.data.vocab import Ids, Vocab, count_points
from charrnn.errors import InputError, UsageError
from charrnn.text.characters import END, LABEL_END, UNKNOWN, bytes_as_chars
from charrnn.text.folders import find_copy, find_sources
from charrnn.text.sources import STDIN, ReadLimit

_SHORT = 100  # characters; scores of shorter held-out texts are rough


@dataclass(frozen=True)
class Corpus:
    """A text as ids, (N,) of the vocabulary's dtype.

    The first num_train characters are the training text, the next num_valid the held-out text,
    which selects the best weights, and the rest the test text. names: paths of the training texts.
    key: of the cache entry. has_valid_file: whether the held-out text is a separate file
    (--valid). labels: how many documents have each label, the most frequent first. notes: what the user
    should know about the text.
    """

    ids: Ids
    vocab: Vocab
    num_train: int
    num_valid: int
    names: tuple[str, ...]
    sha256: str
    key: str = ""
    has_valid_file: bool = False
    labels: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def train_ids(self) -> Ids:
        return self.ids[: self.num_train]

    @property
    def valid_ids(self) -> Ids:
        """The held-out characters that are scored."""
        return self.ids[self.num_train + self._num_unscored : self.num_train + self.num_valid]

    @property
    def valid_context(self) -> Ids:
        """The characters to read before valid_ids: the training text, or a separate text's first character."""
        start = self.num_train if self._num_unscored else 0
        return self.ids[start : self.num_train + self._num_unscored]

    @property
    def _num_unscored(self) -> int:
        """1 for a separate held-out text, whose first character nothing predicts; 0 if an END precedes it."""
        return int(self.has_valid_file and END not in self.vocab.chars)

    @property
    def test_ids(self) -> Ids:
        return self.ids[self.num_train + self.num_valid :]


def load_corpus(
    names: Sequence[str], config: CorpusConfig, source_config: SourceConfig, cache: Cache, *, sha256: str | None = None
) -> Corpus:
    """Read texts, or find them in the cache, and split them. sha256: of the text that a model was trained on.

    Raises InputError that names the text and the position of what is wrong, or if it is another text.
    """
    all_names = [*names, config.valid or STDIN]
    if source_config.glob != SourceConfig.glob and not any(map(os.path.isdir, all_names)):
        raise UsageError(
            f"--glob {source_config.glob} selects files of a folder, and {names[0]} is not one; leave it out"
        )
    found = find_sources(names, source_config, mixed=config.valid is None and not config.has_documents)
    valid = find_sources([] if config.valid is None else [config.valid], source_config)
    if copy := find_copy(valid.sources, found.sources):
        raise InputError(
            f"{copy.name}: held out by --valid but also a training text, or a copy of one; hold out another text"
        )
    paths = [source.path for source in found.sources]
    notes = [*found.notes, *valid.notes, *note_about_records(names, config)]
    if cache.problem:
        notes.append(cache.problem)
    with ReadLimit(source_config, cache.folder) as limit:
        texts = Texts(found.sources + valid.sources, len(found.sources), config, limit)
        signature = texts.signature()
        key = cache.find_key(signature) if signature else None
        entry = _look_up(cache, key, config, notes) if key else None
        if entry is None:
            entry = _read(texts, cache, notes, sha256)
            if signature:
                cache.store_key(signature, entry.facts["key"])
        elif source_config.max_bytes is not None:
            limit.count(texts.name, entry.facts["num_bytes"])
    _check_sha256(texts.name, entry.facts["sha256"], sha256)
    return _make_corpus(entry, config, name=texts.name, paths=paths, notes=notes)


def find_corpus(key: str, config: CorpusConfig, cache: Cache) -> Corpus | None:
    """Return a corpus that was read earlier, or None if the cache no longer holds it."""
    entry = _look_up(cache, key, config, [])
    return None if entry is None else _make_corpus(entry, config, name="the text", paths=[], notes=[])


def _look_up(cache: Cache, key: str, config: CorpusConfig, notes: list[str]) -> Entry | None:
    try:
        entry = cache.find(key)
        if entry is not None and not is_consistent(entry, config.known):
            raise cache.damaged(key)
    except DamagedEntry as error:
        note = f"{error}; it is created again"
        if note not in notes:  # the same entry is looked up by signature and then by content
            notes.append(note)
        return None
    return entry


def _check_sha256(name: str, found: str, wanted: str | None) -> None:
    """Raise InputError if a text is not the wanted one."""
    if wanted not in (None, found):
        raise InputError(f"{name}: not the text the model was trained on")


def _read(texts: Texts, cache: Cache, notes: list[str], wanted_sha256: str | None) -> Entry:
    """Count the characters, then encode them unless the cache already holds the same texts.

    A text that is not wanted is not copied to the cache.
    """
    counts = count_points(texts.pieces())
    num_chars, sha256, key = sum(texts.lengths), texts.sha256, texts.key()
    _check_sha256(texts.name, sha256, wanted_sha256)
    if num_chars == 0:
        raise InputError(f"{texts.name}: the text is empty")
    entry = _look_up(cache, key, texts.config, notes)
    if entry:
        return entry
    vocab = _make_vocab(texts, counts)
    char_counts = counts[[ord(char) for char in vocab.chars]]
    if UNKNOWN in vocab.chars:
        char_counts[vocab.id_of(UNKNOWN)] = num_chars - char_counts.sum()
    num_joined = sum(texts.lengths[: texts.num_joined])
    if num_joined < MIN_CHARS:
        raise InputError(
            f"{texts.name}: too few characters to learn from: {num_joined}; at least {MIN_CHARS} are needed"
        )
    ids, end = texts.ids(vocab, sha256), vocab.id_of(END)
    if end is not None:  # documents of a separate held-out text keep their order
        joined = shuffle(
            _take(ids, num_joined),
            end,
            num_ids=num_joined,
            folder=cache.folder,
            label_end=vocab.id_of(LABEL_END),
        )
        ids = itertools.chain(joined, ids)
    facts = {
        **texts.facts(),
        "vocab": vocab.chars,
        "counts": char_counts.tolist(),
        "dtype": np.dtype(vocab.dtype).name,
        "num_chars": num_chars,
        "num_joined": num_joined,
    }
    return cache.add(key, facts, ids)


def _make_vocab(texts: Texts, counts: NDArray[np.int64]) -> Vocab:
    """Select the characters that get an id. Those of labels always do, however rare: a label stays what it is."""
    config, label_chars = texts.config, "".join(texts.records.labels)
    known = config.known + (bytes_as_chars(label_chars) if config.bytes else label_chars)
    return Vocab.from_counts(counts, min_count=config.min_count, known=known)


def _take(pieces: Iterator[Ids], num_ids: int) -> Iterator[Ids]:
    """Yield the pieces that hold the first num_ids ids; a piece must end there."""
    while num_ids > 0:
        piece = next(pieces)
        num_ids -= len(piece)
        yield piece


def _make_corpus(
    entry: Entry, config: CorpusConfig, *, name: str, paths: Sequence[str], notes: Sequence[str]
) -> Corpus:
    """Split a text and collect the notes about it."""
    facts, vocab = entry.facts, Vocab(entry.facts["vocab"])
    num_train, num_valid = split_entry(entry, vocab, config, name)
    corpus = Corpus(
        ids=entry.ids,
        vocab=vocab,
        num_train=num_train,
        num_valid=num_valid,
        names=tuple(paths),
        sha256=facts["sha256"],
        key=facts["key"],
        has_valid_file=config.valid is not None,
        labels=facts["labels"],
    )
    notes = [*notes, *notes_about(vocab, facts, config, num_valid=num_valid, num_test=len(corpus.test_ids))]
    if len(corpus.valid_ids) < _SHORT:
        notes.append(f"only {len(corpus.valid_ids)} characters are held out, so scores are rough")
    return replace(corpus, notes=tuple(notes))
