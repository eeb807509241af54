"""Records: the rows of CSV and TSV, the objects of JSON Lines, the sequences of FASTA; each is a document.

A document may begin with its label, which LABEL_END separates from the text:
`label LABEL_END text END`. So a model learns the labels as it learns the texts.
"""

import codecs
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from charrnn.config import CorpusConfig
from charrnn.errors import InputError
from charrnn.text.characters import END, LABEL_END, bytes_as_chars
from charrnn.text.formats import BadRecord, parse, quoted, split_lines
from charrnn.text.sources import STDIN

MAX_LABELS, MAX_LABEL_SIZE = 1_000, 64  # labels, characters
_FORMATS = {
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".fasta", ".fa", ".faa", ".fna", ".fas"), "fasta"),
}
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_BATCH = 1 << 10  # documents
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class RecordReader:
    """Reads the records of texts, one text after another, as documents.

    labels: how many records have each label; num_skipped: invalid records, which are skipped if
    config.errors is `replace`; first_skipped: where and what the first one of them is.
    """

    def __init__(self, config: CorpusConfig) -> None:
        self.labels: Counter[str] = Counter()
        self.num_skipped, self.first_skipped = 0, ""
        self._config = config
        self._wanted = [config.column, config.label] if config.label else [config.column]

    def documents(self, pieces: Iterable[str], name: str) -> Iterator[str]:
        """Yield documents, several at once: each record's label and LABEL_END, if labels are wanted, its text, END.

        pieces: the text's characters. Raises InputError for an invalid record, with its number and line.
        """
        held: list[str] = []
        for document in self._each_document(pieces, name):
            held.append(document)
            if len(held) == _BATCH:
                yield "".join(held)
                held.clear()
        if held:
            yield "".join(held)

    def _each_document(self, pieces: Iterable[str], name: str) -> Iterator[str]:
        config = self._config
        to_chars = bytes_as_chars if config.bytes else str
        lines = split_lines(_as_text(pieces) if config.bytes else pieces)
        for number, (line, found) in enumerate(parse(lines, name, self._wanted, find_format(name, config)), start=1):
            values = found if isinstance(found, BadRecord) else self._check(found)
            if isinstance(values, BadRecord):
                self._skip(f"{name}: record {number:,}, line {line:,}: {values}")
            elif config.label:
                text, label = values[0], values[1].strip()
                count_label(self.labels, label, f"column {quoted(config.label)}")
                yield to_chars(label) + LABEL_END + to_chars(text) + END
            else:
                yield to_chars(values[0]) + END

    def _check(self, values: list[str]) -> list[str] | BadRecord:
        """Return the wanted values, or what is wrong with them."""
        for column, value in zip(self._wanted, values, strict=True):
            if not value.strip():
                return BadRecord(f"{quoted(column)} is empty")
            # bytes that are not UTF-8 stay in a text of bytes
            pattern = _NO_BYTE if self._config.bytes and column == self._config.column else _SURROGATE
            if half := pattern.search(value):
                return BadRecord(f"{quoted(column)} has half a character (U+{ord(half[0]):04X})")
        return values

    def _skip(self, where: str) -> None:
        """Count an invalid record. Raises InputError unless such records are skipped."""
        if self._config.errors != "replace":
            raise InputError(f"{where}; correct it, or skip such records with --errors replace")
        self.num_skipped += 1
        self.first_skipped = self.first_skipped or where


def count_label(labels: Counter[str], label: str, source: str, count: int = 1) -> None:
    """Add to the number of documents with a label. source: where labels come from, for messages.

    Raises InputError if the label is too long, or there are too many.
    """
    advice = "labels are short and few, such as countries or genres"
    if len(label) > MAX_LABEL_SIZE:
        raise InputError(
            f"{source} has a label of {len(label):,} characters, {quoted(label[:20] + '…')}; "
            f"the most is {MAX_LABEL_SIZE}: {advice}"
        )
    labels[label] += count
    if len(labels) > MAX_LABELS:
        raise InputError(f"{source} has more than {MAX_LABELS:,} different labels: {advice}")


def label_of_file(name: str, label_from: str) -> str:
    """Return the label of a file's documents: its own name without endings, or that of the folder it is in.

    label_from: file or folder. Raises InputError for stdin.
    """
    if name == STDIN:
        raise InputError(f"{name}: stdin has no name, so --label-from {label_from} needs files")
    path = os.path.abspath(name)
    if label_from == "folder":
        return os.path.basename(os.path.dirname(path))
    return os.path.basename(path).split(".")[0] or os.path.basename(path)


def find_format(name: str, config: CorpusConfig) -> str:
    """Return the format of a text: the given one, or that of its file's suffix. Raises InputError if there is none."""
    found = config.format or format_of(name)
    if not found:
        raise InputError(f"{name}: --column needs a file of records; say which with --format csv, tsv, jsonl or fasta")
    return found


def format_of(name: str) -> str:
    """Return the format of records that a file's suffix names; empty for another one."""
    stem, suffix = os.path.splitext(name.lower())
    return _FORMATS.get(os.path.splitext(stem)[1] if suffix in _PACKED else suffix, "")


def _as_text(pieces: Iterable[str]) -> Iterator[str]:
    """Decode bytes, one character each, as UTF-8, without a byte-order mark; invalid ones stay surrogate escapes."""
    decoder, at_start = codecs.getincrementaldecoder("utf-8")("surrogateescape"), True
    for piece in itertools.chain(pieces, [""]):
        text = decoder.decode(piece.encode("ascii", "surrogateescape"), final=not piece)
        if text and at_start:
            text, at_start = text.removeprefix("\ufeff"), False
        yield text
