"""From texts to ids in bounded memory: count, build the vocabulary, encode, split.

The texts named on the command line are joined in that order. One pass counts their
characters, a second one writes them as ids into the cache, from where they are mapped; what
is there already isn't read again. The split is contiguous: the tail is held out.
"""

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import MAX_VALID_CHARS, MIN_CHARS, CorpusConfig, SourceConfig
from charrnn.data.cache import FORMAT_VERSION, Cache, DamagedEntry, Entry
from charrnn.data.decoding import SEPARATORS, decode, end_documents
from charrnn.data.documents import next_document, shuffled
from charrnn.data.sources import Limit, Source, find_sources
from charrnn.data.vocab import END, UNKNOWN, Ids, Vocab, count_points, spell_bytes
from charrnn.errors import InputError, UnknownCharacterError

_READING = ("encoding", "errors", "bytes", "min_count", "documents", "known")  # settings that change the ids
_LARGE_VOCABULARY, _USUAL_VOCABULARY = 20_000, 5_000
_SHORT = 100  # characters that say little when they are held out
_SETTLED = 2.0  # seconds after which an edit can't leave a file's time as it is


@dataclass(frozen=True)
class Corpus:
    """A text as ids, (N,) of the vocabulary's dtype.

    The first num_train are trained on, the next num_valid choose the weights, the rest is the
    test. key: the cache's. is_apart: what is held out is a text of its own, not the rest of
    the first. notes: what the user should know about it.
    """

    ids: Ids
    vocab: Vocab
    num_train: int
    num_valid: int
    names: tuple[str, ...]
    sha256: str
    key: str = ""
    is_apart: bool = False
    notes: tuple[str, ...] = ()

    @property
    def train_ids(self) -> Ids:
        return self.ids[: self.num_train]

    @property
    def valid_ids(self) -> Ids:
        """What is held out, without what of it is only read."""
        return self.ids[self.num_train + self._num_read : self.num_train + self.num_valid]

    @property
    def valid_context(self) -> Ids:
        """What comes before it: a text of its own begins with a character that nothing predicts."""
        start = self.num_train if self._num_read else 0
        return self.ids[start : self.num_train + self._num_read]

    @property
    def _num_read(self) -> int:
        return int(self.is_apart and END not in self.vocab.chars)

    @property
    def test_ids(self) -> Ids:
        return self.ids[self.num_train + self.num_valid :]


def load_corpus(names: Sequence[str], config: CorpusConfig, source_config: SourceConfig, cache: Cache) -> Corpus:
    """Read texts, or find what an earlier reading left in the cache, and hold a part out.

    Raises InputError that says which text, and where in it.
    """
    found = find_sources(names, source_config)
    apart = find_sources([] if config.valid is None else [config.valid], source_config)
    if {source.identity for source in found.sources} & {source.identity for source in apart.sources}:
        raise InputError(f"{config.valid}: held out by --valid, and to be trained on; name another text")
    paths = [source.path for source in found.sources]
    notes = found.notes + apart.notes + [cache.lack] * bool(cache.lack)
    with Limit(source_config, cache.folder) as limit:
        texts = _Texts(found.sources + apart.sources, len(found.sources), config, limit)
        signature = texts.signature()
        key = cache.key_of(signature) if signature else None
        entry = _look_up(cache, key, notes) if key else None
        if entry is None:
            entry = _read(texts, cache, notes)
            if signature:
                cache.remember(signature, entry.facts["key"])
    return _corpus(entry, config, name=texts.name, paths=paths, notes=notes)


def find_corpus(key: str, config: CorpusConfig, cache: Cache) -> Corpus | None:
    """A text that was read before; None where the cache has it no more."""
    entry = _look_up(cache, key, [])
    return None if entry is None else _corpus(entry, config, name="the text", paths=[], notes=[])


def read_text(name: str, cache: Cache) -> str:
    """A short text in UTF-8, such as a prompt."""
    with Limit(SourceConfig(), cache.folder) as limit:
        return "".join(decode(Source(name).chunks(limit), name, CorpusConfig()))


def read_known(
    name: str, vocab: Vocab, config: CorpusConfig, source_config: SourceConfig, cache: Cache
) -> tuple[Ids, dict[str, int]]:
    """A text, or a folder of texts, in a model's characters: the ids, mapped from a file without a name, and the rest.

    The rest is counted by character, most frequent first.
    """
    sources = find_sources([name], source_config).sources
    unknown = Counter[str]()
    with Limit(source_config, cache.folder) as limit, cache.written_to():
        file = limit.new_copy()
        texts = _Texts(sources, len(sources), config, limit)
        for piece in texts.pieces():
            ids, missing = vocab.encode_known(piece)
            file.write(ids.data)
            unknown.update(missing)
        file.flush()
        known = np.asarray(np.memmap(file, vocab.dtype, "r")) if file.tell() else np.empty(0, vocab.dtype)
    return known, dict(unknown.most_common())


class _Texts:
    """The texts of a corpus, the last ones perhaps apart, to be read once or twice."""

    def __init__(self, sources: list[Source], num_joined: int, config: CorpusConfig, limit: Limit) -> None:
        self.sources, self.num_joined, self.config, self.limit = sources, num_joined, config, limit
        kind = config.documents
        self.kind = kind if kind in SEPARATORS or not config.bytes else spell_bytes(kind)
        self.how = {name: getattr(config, name) for name in _READING} | {"format": FORMAT_VERSION}
        self.name = " ".join(source.name for source in sources[:num_joined])

    def pieces(self) -> Iterator[str]:
        """Their characters. Afterwards sizes and lengths, of each in bytes and characters, and sha256 are known."""
        digest = hashlib.sha256()
        self.sizes, self.lengths = [0] * len(self.sources), [0] * len(self.sources)
        self.limit.begin()
        for index, source in enumerate(self.sources):
            chunks = self._noted(source.chunks(self.limit), index, digest)
            pieces = decode(chunks, source.name, self.config)
            for piece in end_documents(pieces, self.kind) if self.kind else pieces:
                self.lengths[index] += len(piece)
                yield piece
        self.sha256 = digest.hexdigest()

    def _noted(self, chunks: Iterator[bytes], index: int, digest: Any) -> Iterator[bytes]:
        for chunk in chunks:
            digest.update(chunk)
            self.sizes[index] += len(chunk)
            yield chunk

    def ids(self, vocab: Vocab, sha256: str) -> Iterator[Ids]:
        """Their characters once more, as ids. Raises InputError where they aren't what they were."""
        names = " ".join(source.name for source in self.sources)
        changed = InputError(f"{names}: changed while it was being read; start again")
        for piece in self.pieces():
            try:
                yield vocab.encode(piece)
            except UnknownCharacterError:
                raise changed from None
        if self.sha256 != sha256:
            raise changed

    def key(self) -> str:
        """A hash of what was read, and how."""
        return _hash([self.how, self.sha256, self.sizes, self.num_joined])

    def signature(self) -> str | None:
        """A hash of the files' places, sizes and times; None where a text is a stream, or so new that it may change."""
        states = []
        for source in self.sources:
            status = source.status
            if status is None or time.time() - max(status.st_mtime, status.st_ctime) < _SETTLED:
                return None
            states.append([source.path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
        return _hash([self.how, states, self.num_joined])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def _look_up(cache: Cache, key: str, notes: list[str]) -> Entry | None:
    try:
        return cache.find(key)
    except DamagedEntry as error:
        note = f"{error}; it is made again"
        notes += [note] * (note not in notes)  # it is looked up by signature, and then by what was read
        return None


def _read(texts: _Texts, cache: Cache, notes: list[str]) -> Entry:
    """Count the characters, and encode them unless the cache has these very texts."""
    counts = count_points(texts.pieces())
    num_chars, sha256, key = sum(texts.lengths), texts.sha256, texts.key()
    if num_chars == 0:
        raise InputError(f"{texts.name}: the text is empty")
    entry = _look_up(cache, key, notes)
    if entry:
        return entry
    vocab = Vocab.of_counts(counts, min_count=texts.config.min_count, known=texts.config.known)
    of_each = counts[[ord(char) for char in vocab.chars]]
    if UNKNOWN in vocab.chars:
        of_each[vocab.id_of(UNKNOWN)] = num_chars - of_each.sum()
    num_joined = sum(texts.lengths[: texts.num_joined])
    if num_joined < MIN_CHARS:
        raise InputError(
            f"{texts.name}: {num_joined} characters are too few to learn from; at least {MIN_CHARS} are needed"
        )
    ids, end = texts.ids(vocab, sha256), vocab.id_of(END)
    if end is not None:  # those of a text apart follow in their own order
        joined = shuffled(_taken(ids, num_joined), end, num_ids=num_joined, folder=cache.folder)
        ids = itertools.chain(joined, ids)
    facts = {
        "sha256": sha256,
        "vocab": vocab.chars,
        "counts": of_each.tolist(),
        "dtype": np.dtype(vocab.dtype).name,
        "num_chars": num_chars,
        "num_joined": num_joined,
    }
    return cache.add(key, facts, ids)


def _taken(pieces: Iterator[Ids], num_ids: int) -> Iterator[Ids]:
    """The pieces up to so many ids, where one of them ends."""
    while num_ids > 0:
        piece = next(pieces)
        num_ids -= len(piece)
        yield piece


def _corpus(entry: Entry, config: CorpusConfig, *, name: str, paths: Sequence[str], notes: Sequence[str]) -> Corpus:
    """Split a text and say what is odd about it."""
    facts, vocab = entry.facts, Vocab(entry.facts["vocab"])
    num_train, num_valid = _split(entry, vocab, config, name)
    corpus = Corpus(
        ids=entry.ids,
        vocab=vocab,
        num_train=num_train,
        num_valid=num_valid,
        names=tuple(paths),
        sha256=facts["sha256"],
        key=facts["key"],
        is_apart=config.valid is not None,
    )
    notes = [*notes, *_oddities(vocab, np.array(facts["counts"]), config)]
    if len(corpus.valid_ids) < _SHORT:
        notes.append(f"only {len(corpus.valid_ids)} characters are held out, so scores are rough")
    return replace(corpus, notes=tuple(notes))


def split(num_chars: int, config: CorpusConfig) -> tuple[int, int]:
    """How many characters are trained on, and how many after them, at least one, choose the weights.

    The rest is the test text.
    """
    num_test = min(int(num_chars * config.test_fraction), MAX_VALID_CHARS)
    num_rest = num_chars - num_test
    num_train = int(num_chars * (1 - config.valid_fraction)) - num_test
    num_train = min(num_rest - 1, max(num_train, num_rest - MAX_VALID_CHARS, 2))
    return num_train, num_rest - num_train


def _split(entry: Entry, vocab: Vocab, config: CorpusConfig, name: str) -> tuple[int, int]:
    """The same for a text that is there, in which documents stay whole, and another may be apart."""
    ids, num_joined = entry.ids, entry.facts["num_joined"]
    if config.valid is not None:
        if len(ids) - num_joined < 2:
            raise InputError(f"{config.valid}: too short to be held out; at least two characters are needed")
        return num_joined, len(ids) - num_joined
    num_train, num_valid = split(num_joined, config)
    end = vocab.id_of(END)
    if end is None:
        return num_train, num_valid
    first = next_document(ids, num_train, end)
    last = next_document(ids, max(num_train + num_valid, first + 1), end) if config.test_fraction else len(ids)
    if not 0 < first < last:
        raise InputError(f"{name}: too few documents to hold some of them out")
    return first, last - first


def _oddities(vocab: Vocab, counts: NDArray[np.int64], config: CorpusConfig) -> list[str]:
    """What to know about a text before learning it. counts: of each character of the vocabulary."""
    of_each = dict(zip(vocab.chars, counts.tolist(), strict=True))
    notes, num_chars = [], sum(of_each.values())
    if returns := of_each.get("\r"):
        notes.append(
            f"the text has {returns:,} carriage returns, which are learnt like any character; "
            "tr -d '\\r' < TEXT > NEW removes them"
        )
    if replaced := of_each.get("\ufffd") if config.errors == "replace" else None:
        notes.append(f"the text has {replaced:,} U+FFFD now, in place of bytes that are wrong in its encoding")
    if rare := of_each.get(UNKNOWN):
        notes.append(
            f"{rare:,} characters, {rare / num_chars:.3%}, occur less than {config.min_count} times: one symbol"
        )
    if len(vocab) > _LARGE_VOCABULARY:
        enough = int(np.sort(counts)[-_USUAL_VOCABULARY]) + 1
        kept = counts >= enough
        folded = counts[~kept].sum() / num_chars
        advice = f"; --min-count {enough} would leave {kept.sum():,} and take {folded:.3%} of the text for one symbol"
        notes.append(f"{len(vocab):,} distinct characters are most of the work{advice if kept.any() else ''}")
    return notes
