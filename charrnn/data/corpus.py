"""The corpus: texts as ids, read in bounded memory and split in training, held-out and test text.

The texts named on the command line are joined in that order. A first pass counts their
characters; a second one writes their ids to the cache, from where they are mapped. Texts that
the cache already holds are not read again. The split is contiguous: the end is held out.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import BLANK_LINES, LINES, MAX_VALID_CHARS, MIN_CHARS, CorpusConfig, SourceConfig
from charrnn.data.cache import Cache, DamagedEntry, Entry, is_consistent
from charrnn.data.characters import END, LABEL_END, UNKNOWN, one_line
from charrnn.data.documents import shuffle, split_documents
from charrnn.data.sources import STDIN, ReadLimit, find_copy, find_sources
from charrnn.data.texts import Texts
from charrnn.data.vocab import Ids, Vocab, bytes_as_chars, count_points
from charrnn.errors import InputError, UsageError

_LARGE_VOCABULARY, _USUAL_VOCABULARY = 20_000, 5_000
_LABELS_SHOWN = 8
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
    notes = found.notes + valid.notes
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
    labels, label_chars = texts.records.labels, "".join(texts.records.labels)
    known = texts.config.known + (
        bytes_as_chars(label_chars) if texts.config.bytes else label_chars
    )  # a label stays what it is
    vocab = Vocab.from_counts(counts, min_count=texts.config.min_count, known=known)
    char_counts = counts[[ord(char) for char in vocab.chars]]
    if UNKNOWN in vocab.chars:
        char_counts[vocab.id_of(UNKNOWN)] = num_chars - char_counts.sum()
    num_joined = sum(texts.lengths[: texts.num_joined])
    if num_joined < MIN_CHARS:
        raise InputError(
            f"{texts.name}: {num_joined} characters are too few to learn from; at least {MIN_CHARS} are needed"
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
        "sha256": sha256,
        "vocab": vocab.chars,
        "counts": char_counts.tolist(),
        "dtype": np.dtype(vocab.dtype).name,
        "num_chars": num_chars,
        "num_joined": num_joined,
        "num_bytes": sum(texts.sizes),
        "num_texts": len(texts.sources),
        "num_added": texts.num_added,
        "num_marks": texts.num_marks,
        "labels": dict(labels.most_common()),
        "num_skipped": texts.records.num_skipped,
        "first_skipped": texts.records.first_skipped,
    }
    return cache.add(key, facts, ids)


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
    num_train, num_valid = _split_entry(entry, vocab, config, name)
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
    if facts["num_marks"]:
        marks = (
            "1 byte-order mark inside the text was"
            if facts["num_marks"] == 1
            else (f"{facts['num_marks']:,} byte-order marks inside the text were")
        )
        notes = [*notes, f"{marks} dropped"]
    if facts["num_added"]:
        texts = "1 text ends" if facts["num_added"] == 1 else f"{facts['num_added']:,} texts end"
        notes = [*notes, f"{texts} without a newline; one was added before the next text"]
    notes = [*notes, *_document_notes(corpus, facts, config), *_content_notes(vocab, np.array(facts["counts"]), config)]
    if len(corpus.valid_ids) < _SHORT:
        notes.append(f"only {len(corpus.valid_ids)} characters are held out, so scores are rough")
    return replace(corpus, notes=tuple(notes))


def split(num_chars: int, config: CorpusConfig) -> tuple[int, int]:
    """Return the numbers of training and of held-out characters, at least one of each; the rest is the test text."""
    num_test = min(int(num_chars * config.test_fraction), MAX_VALID_CHARS)
    num_rest = num_chars - num_test
    num_train = int(num_chars * (1 - config.valid_fraction)) - num_test
    num_train = min(num_rest - 1, max(num_train, num_rest - MAX_VALID_CHARS, 2))
    return num_train, num_rest - num_train


def _split_entry(entry: Entry, vocab: Vocab, config: CorpusConfig, name: str) -> tuple[int, int]:
    """Split as `split` does, but between documents, and exactly between training texts and a separate held-out text."""
    facts, ids = entry
    num_joined = facts["num_joined"]
    if config.valid is not None:
        if len(ids) - num_joined < 2:
            raise InputError(f"{config.valid}: too short to be held out; at least two characters are needed")
        return num_joined, len(ids) - num_joined
    num_train, num_valid = split(num_joined, config)
    end = vocab.id_of(END)
    if end is None:
        return num_train, num_valid
    starts = split_documents(ids, end, valid_start=num_train, test_start=num_train + num_valid)
    if starts is None:
        num_documents = facts["counts"][end]
        raise InputError(
            f"{name}: too few documents: {num_documents} {_how_separated(config)}; "
            f"at least {3 if config.test_fraction else 2} are needed to hold some out"
        )
    valid_start, test_start = starts
    if 2 * valid_start < num_train:
        raise InputError(
            f"{name}: {valid_start:,} of {num_joined:,} characters would be left to train on, because a long document "
            "falls into the held-out text; split it (--documents), or hold out another text (--valid FILE)"
        )
    return valid_start, test_start - valid_start


def _document_notes(corpus: Corpus, facts: dict[str, Any], config: CorpusConfig) -> list[str]:
    """Say how many documents a text has, what separates them, and whether their lengths change the split."""
    end = corpus.vocab.id_of(END)
    if end is None:
        return []
    num_documents, labels = facts["counts"][end], facts["labels"]
    num_label_chars = sum(count * (1 + len(corpus.vocab.to_chars(label))) for label, count in labels.items())
    mean = (facts["num_chars"] - num_documents - num_label_chars) / num_documents
    notes = [f"{num_documents:,} documents {_how_separated(config)}, {mean:,.0f} characters on average"]
    if labels:
        notes.append(_describe_labels(labels))
    if facts["num_skipped"]:
        count = "1 record is" if facts["num_skipped"] == 1 else f"{facts['num_skipped']:,} records are"
        notes.append(f"{count} skipped; the first one is {facts['first_skipped']}")
    if config.documents not in ("", LINES, BLANK_LINES) and num_documents <= facts["num_texts"]:
        notes.append(f"'{config.documents}' separates nothing: each text is one document")
    if config.valid is None:
        num_train, num_valid = split(facts["num_joined"], config)
        shares = {"held-out": (corpus.num_valid, num_valid)}
        shares["test"] = (len(corpus.test_ids), facts["num_joined"] - num_train - num_valid)
        notes += [
            f"the {part} text has {found:,} characters instead of {asked:,}, because documents are never split"
            for part, (found, asked) in shares.items()
            if not asked <= 2 * found <= 4 * asked
        ]
    return notes


def _describe_labels(labels: Mapping[str, int]) -> str:
    """Name the most frequent labels with their numbers of documents."""
    shown = [f"{one_line(label)} {count:,}" for label, count in list(labels.items())[:_LABELS_SHOWN]]
    more = f" and {len(labels) - _LABELS_SHOWN:,} more" if len(labels) > _LABELS_SHOWN else ""
    return f"{len(labels):,} label{'' if len(labels) == 1 else 's'}: {', '.join(shown)}{more}"


def _how_separated(config: CorpusConfig) -> str:
    """Describe what separates documents."""
    if config.column:
        return f"from column '{one_line(config.column)}'"
    if config.documents in (LINES, BLANK_LINES):
        return "of one line each" if config.documents == LINES else "separated by blank lines"
    return f"{'that begin with' if config.keep_separator else 'separated by'} '{config.documents}'"


def _content_notes(vocab: Vocab, counts: NDArray[np.int64], config: CorpusConfig) -> list[str]:
    """List what the user should know about a text before training. counts: of each character of the vocabulary."""
    char_counts = dict(zip(vocab.chars, counts.tolist(), strict=True))
    notes, num_chars = [], sum(char_counts.values())
    if num_returns := char_counts.get("\r"):
        advice = "tr -d '\\r' < TEXT > NEW removes them"
        if 2 * char_counts.get("\n", 0) < num_returns:  # they end lines, as on old Macs
            advice = "tr '\\r' '\\n' < TEXT > NEW turns them into newlines"
        notes.append(
            f"the text has {num_returns:,} carriage returns, which are learned like any other character; {advice}"
        )
    num_replaced = char_counts.get("\ufffd") if config.errors == "replace" else None
    if num_replaced:
        notes.append(f"the text now has {num_replaced:,} U+FFFD in place of bytes that are invalid in its encoding")
    if num_rare := char_counts.get(UNKNOWN):
        notes.append(
            f"{num_rare:,} characters, {num_rare / num_chars:.3%}, occur less than {config.min_count} times: one symbol"
        )
    if len(vocab) > _LARGE_VOCABULARY:
        note = f"{len(vocab):,} distinct characters make up most of the work"
        min_count = int(np.sort(counts)[-_USUAL_VOCABULARY]) + 1
        is_kept = counts >= min_count
        if is_kept.any():
            rare_share = counts[~is_kept].sum() / num_chars
            note += (
                f"; --min-count {min_count} would keep {is_kept.sum():,} of them "
                f"and turn {rare_share:.3%} of the text into one symbol"
            )
        notes.append(note)
    return notes
