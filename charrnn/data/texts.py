"""Several texts read as one: their characters or ids, and the keys that find them in the cache."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from charrnn.config import LINES, CorpusConfig, SourceConfig
from charrnn.data.cache import FORMAT_VERSION, Cache
from charrnn.data.vocab import UNKNOWN_CHAR, Ids, UnknownChars, Vocab
from charrnn.errors import InputError, UnknownCharacterError
from charrnn.text.characters import END, LABEL_END, bytes_as_chars
from charrnn.text.decoding import decode
from charrnn.text.documents import end_documents, end_lines
from charrnn.text.records import RecordReader, count_label, label_of_file
from charrnn.text.sources import ReadLimit, Source

# settings that change the ids
_ID_SETTINGS = (
    "encoding",
    "errors",
    "bytes",
    "min_count",
    "documents",
    "keep_separator",
    "column",
    "label",
    "label_from",
    "format",
    "known",
)
_SETTLED = 2.0  # seconds; a younger file could be edited again without changing its time


class Texts:
    """The texts of a corpus, read once or twice: num_joined training texts, then a separate held-out text, if any."""

    def __init__(self, sources: list[Source], num_joined: int, config: CorpusConfig, limit: ReadLimit) -> None:
        self.sources, self.num_joined, self.config, self.limit = sources, num_joined, config, limit
        self.settings = {name: getattr(config, name) for name in _ID_SETTINGS} | {"version": FORMAT_VERSION}
        self.name = " ".join(source.name for source in sources[:num_joined])

    def pieces(self) -> Iterator[str]:
        """Yield the characters, with a newline between two texts where the first one ends without.

        At the end, sizes (bytes) and lengths (characters) of each text, num_added (newlines), num_marks (byte-order
        marks that were dropped), sha256 and records (with the labels, and what was skipped) are set.
        """
        digest = hashlib.sha256()
        self.sizes, self.lengths = [0] * len(self.sources), [0] * len(self.sources)
        self.num_added = self.num_marks = 0
        self.records = RecordReader(self.config)
        self.limit.reset()
        last = "\n"
        for index, source in enumerate(self.sources):
            if index == self.num_joined or self.config.has_documents or self.config.bytes:
                last = "\n"  # the next text is not joined to the one before, or not as lines
            is_cut = last not in "\r\n"
            chunks = self._measure(source.chunks(self.limit), index, digest, after=b"\n" if is_cut else b"")
            for piece in self._split(self._drop_marks(decode(chunks, source.name, self.config)), source):
                if is_cut:
                    piece, is_cut = "\n" + piece, False
                    self.num_added += 1
                self.lengths[index] += len(piece)
                last = piece[-1]
                yield piece
        self.sha256 = digest.hexdigest()

    def _drop_marks(self, pieces: Iterator[str]) -> Iterator[str]:
        """Drop byte-order marks, which stand inside a text where files were joined to one; bytes stay as they are."""
        for piece in pieces:
            kept = piece.replace("\ufeff", "")
            self.num_marks += len(piece) - len(kept)
            if kept:
                yield kept

    def _split(self, pieces: Iterator[str], source: Source) -> Iterator[str]:
        """Split a text into documents, if it consists of them."""
        config = self.config
        if config.column:
            return self.records.documents(pieces, source.name)
        if not config.documents:
            return pieces
        label = label_of_file(source.name, config.label_from) if config.label_from else ""
        opening = (bytes_as_chars(label) if config.bytes else label) + LABEL_END if label else ""
        if config.keep_empty and config.documents == LINES:
            documents = end_lines(pieces, opening)
        else:
            keep_separator, is_bytes = config.keep_separator, config.bytes
            documents = end_documents(
                pieces, config.documents, keep_separator=keep_separator, is_bytes=is_bytes, label=opening
            )
        return self._count_documents(documents, label) if label else documents

    def _count_documents(self, documents: Iterator[str], label: str) -> Iterator[str]:
        for piece in documents:
            count_label(self.records.labels, label, f"--label-from {self.config.label_from}", piece.count(END))
            yield piece

    def _measure(self, chunks: Iterator[bytes], index: int, digest: Any, *, after: bytes) -> Iterator[bytes]:
        """Pass on a text's bytes; count them and hash them, after others that join it to the text before."""
        for chunk in chunks:
            digest.update(after + chunk)
            after = b""
            self.sizes[index] += len(chunk)
            yield chunk

    def ids(self, vocab: Vocab, sha256: str) -> Iterator[Ids]:
        """Read the characters again, as ids. Raises InputError if the texts have changed."""
        names = " ".join(source.name for source in self.sources)
        changed = InputError(f"{names}: changed while it was being read; start again")
        for piece in self.pieces():
            try:
                yield vocab.encode(piece)
            except UnknownCharacterError:
                raise changed from None
        if self.sha256 != sha256:
            raise changed

    def facts(self) -> dict[str, Any]:
        """Return what an entry of the cache says about the texts after they were read, besides their characters."""
        return {
            "sha256": self.sha256,
            "num_bytes": sum(self.sizes),
            "num_texts": len(self.sources),
            "num_added": self.num_added,
            "num_marks": self.num_marks,
            "labels": dict(self.records.labels.most_common()),
            "num_skipped": self.records.num_skipped,
            "first_skipped": self.records.first_skipped,
        }

    def key(self) -> str:
        """Hash the content that was read and the settings it was read with."""
        return _hash([self.settings, self.sha256, self.sizes, self.num_joined])

    def signature(self) -> str | None:
        """Hash the files' paths, sizes and times; None if a text is a stream, or so recent that it may still change."""
        states = []
        for source in self.sources:
            status = source.status
            if status is None or time.time() - max(status.st_mtime, status.st_ctime) < _SETTLED:
                return None
            states.append([source.path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
        return _hash([self.settings, states, self.num_joined])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def read_prompt(name: str, vocab: Vocab, cache: Cache) -> str:
    """Read a short text for a model: UTF-8, or any bytes for a model of bytes."""
    config = CorpusConfig(bytes=vocab.has_bytes)
    with ReadLimit(SourceConfig(), cache.folder, advice="a prompt must be shorter") as limit:
        text = "".join(decode(Source(name).chunks(limit), name, config, advice="convert it, for example by iconv"))
    return vocab.make_decoder()(text, True)


def encode_text(
    sources: list[Source], vocabs: Sequence[Vocab], config: CorpusConfig, source_config: SourceConfig, cache: Cache
) -> list[tuple[Ids, UnknownChars]]:
    """Read a text, or the texts of a folder, once as ids of each vocabulary and the characters without one.

    Both are as in Vocab.encode_around, mapped from files without a name.
    """
    with ReadLimit(source_config, cache.folder) as limit, cache.explaining_errors():
        files = [(limit.new_copy(), limit.new_copy()) for _ in vocabs]
        num_ids = [0] * len(vocabs)
        texts = Texts(sources, len(sources), config, limit)
        for piece in texts.pieces():
            for index, (vocab, (id_file, unknown_file)) in enumerate(zip(vocabs, files, strict=True)):
                ids, unknown = vocab.encode_around(piece)
                unknown["place"] += num_ids[index]
                num_ids[index] += len(ids)
                id_file.write(ids.data)
                unknown_file.write(unknown.tobytes())
        return [
            (_map_file(id_file, vocab.dtype), _map_file(unknown_file, UNKNOWN_CHAR))
            for vocab, (id_file, unknown_file) in zip(vocabs, files, strict=True)
        ]


def _map_file(file: IO[bytes], dtype: DTypeLike) -> NDArray[Any]:
    """Map a file that was just written."""
    file.flush()
    return np.asarray(np.memmap(file, dtype, "r")) if file.tell() else np.empty(0, dtype)
