"""Records: the rows of CSV and TSV, the objects of JSON Lines, the sequences of FASTA; each is a document.

A document may begin with its label, which LABEL_END separates from the text:
`label LABEL_END text END`. So a model learns the labels as it learns the texts.
"""

import codecs
import csv
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from charrnn.config import CorpusConfig
from charrnn.data.characters import END, LABEL_END, one_line
from charrnn.data.sources import STDIN
from charrnn.data.vocab import bytes_as_chars
from charrnn.errors import InputError

MAX_LABELS, MAX_LABEL_SIZE = 1_000, 64  # labels, characters
_FORMATS = {
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".fasta", ".fa", ".faa", ".fna", ".fas"), "fasta"),
}
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_DELIMITERS = ",;\t|"  # of CSV; the first one is the most usual
_MAX_FIELD = 1 << 24  # characters of a CSV field; in a longer one a quotation mark is probably missing
_MAX_NAMED = 10  # columns in a message
_BATCH = 1 << 10  # documents
_FASTA_FIELDS = ("sequence", "id", "description")
_LINE_END = re.compile("[\r\n]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class BadRecord(Exception):
    """What is wrong with a record; the others can still be read."""


Parsed = tuple[int, list[str] | BadRecord]  # the line in which a record begins, and the wanted values


class RecordReader:
    """Reads the records of one text after the other, as documents.

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
        for number, (line, found) in enumerate(_parse(lines, name, self._wanted, find_format(name, config)), start=1):
            values = found if isinstance(found, BadRecord) else self._check(found)
            if isinstance(values, BadRecord):
                self._skip(f"{name}: record {number:,}, line {line:,}: {values}")
            elif config.label:
                text, label = values
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


def split_lines(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text with their ends: LF, CRLF or CR."""
    held: list[str] = []  # the beginning of a line, joined only once, however small the pieces are
    for piece in pieces:
        held.append(piece)
        if _LINE_END.search(piece):
            lines = io.StringIO("".join(held), newline="").readlines()
            held = [] if lines[-1].endswith("\n") else [lines.pop()]  # a final CR may be the first half of CRLF
            yield from lines
    yield from io.StringIO("".join(held), newline="")


def _as_text(pieces: Iterable[str]) -> Iterator[str]:
    """Decode bytes, one character each, as UTF-8, without a byte-order mark; invalid ones stay surrogate escapes."""
    decoder, at_start = codecs.getincrementaldecoder("utf-8")("surrogateescape"), True
    for piece in itertools.chain(pieces, [""]):
        text = decoder.decode(piece.encode("ascii", "surrogateescape"), final=not piece)
        if text and at_start:
            text, at_start = text.removeprefix("\ufeff"), False
        yield text


def _parse(lines: Iterator[str], name: str, wanted: list[str], kind: str) -> Iterator[Parsed]:
    if kind == "jsonl":
        return _parse_json(lines, wanted)
    if kind == "fasta":
        return _parse_fasta(lines, name, wanted)
    return _parse_table(lines, name, wanted, _DELIMITERS if kind == "csv" else "\t")


def _parse_table(lines: Iterator[str], name: str, wanted: list[str], delimiters: str) -> Iterator[Parsed]:
    """Parse CSV or TSV. The first row names the columns, unless all wanted ones are numbers, from 1."""
    first = next(lines, "")
    has_header = not all(column.isdecimal() for column in wanted)
    delimiter = _find_delimiter(first, delimiters, wanted if has_header else [])
    csv.field_size_limit(_MAX_FIELD)
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    header = _next_row(rows, name) if has_header else None
    places = [_find_place(column, header, name) for column in wanted]
    width = len(header) if isinstance(header, list) else 0
    while True:
        line = rows.line_num + 1
        row = _next_row(rows, name)
        if row is None:
            return
        if row == []:  # a blank line
            continue
        if isinstance(row, BadRecord):
            yield line, row
        elif len(row) != (width or len(row)):
            yield line, BadRecord(f"it has {_count(len(row), 'field')} instead of {width:,}")
        elif max(places) >= len(row):
            raise InputError(f"{name}: no column {max(places) + 1}; line {line:,} has {_count(len(row), 'field')}")
        else:
            width = len(row)
            yield line, [row[place] for place in places]


def _next_row(rows: Any, name: str) -> list[str] | BadRecord | None:
    """Read a row of CSV; None at the end. Raises InputError where the rest of the text can't be parsed either."""
    line = rows.line_num + 1
    try:
        found: list[str] | None = next(rows, None)
    except csv.Error as error:
        if "unexpected end" in str(error) or "field limit" in str(error):
            raise InputError(
                f"{name}: line {line:,} begins a record that does not end: a quotation mark is never closed"
            ) from None
        return BadRecord("text follows the quotation mark that closes a field; inside a field it is written twice")
    return found


def _find_delimiter(first: str, delimiters: str, wanted: list[str]) -> str:
    """Return the delimiter by which the first line has most of the wanted columns, and then most fields."""

    def columns(delimiter: str) -> list[str]:
        return next(csv.reader([first], delimiter=delimiter), [])

    return max(delimiters, key=lambda one: (len({*wanted} & {*columns(one)}), len(columns(one))))


def _find_place(column: str, header: list[str] | BadRecord | None, name: str) -> int:
    """Return which field of a row is a column, from 0. Raises InputError if the header has none of that name."""
    if not header:
        if header is None and column.isdecimal() and int(column) > 0:
            return int(column) - 1
        raise InputError(f"{name}: no column {quoted(column)}; the text is empty")
    if isinstance(header, BadRecord):
        raise InputError(f"{name}: line 1 is no row of column names: {header}")
    names = [one.strip() for one in header]
    if names.count(column) == 1:
        return names.index(column)
    if names.count(column) > 1:
        raise InputError(f"{name}: {names.count(column)} columns are called {quoted(column)}; rename one of them")
    raise InputError(
        f"{name}: no column {quoted(column)}; line 1 names {_list_names(names)}. "
        "Without such a line, give the columns as numbers"
    )


def _parse_json(lines: Iterator[str], wanted: list[str]) -> Iterator[Parsed]:
    """Parse JSON Lines: an object a line."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found: list[str] | BadRecord
        try:
            record = json.loads(line)
            found = [_find_value(record, column) for column in wanted]
        except BadRecord as problem:
            found = problem
        except RecursionError:
            found = BadRecord("its JSON is nested too deeply")
        except ValueError as error:
            found = BadRecord(f"invalid JSON ({getattr(error, 'msg', error)})")
        yield number, found


def _find_value(record: Any, column: str) -> str:
    """Return an object's value of a name; a name with dots also finds values of nested objects. Raises BadRecord."""
    if not isinstance(record, dict):
        raise BadRecord("not a JSON object; jq -c '.[]' turns a list into lines of objects")
    value = record.get(column)
    if column not in record:
        value = record
        for part in column.split("."):
            if not isinstance(value, dict) or part not in value:
                raise BadRecord(f"it has no {quoted(column)}, only {_list_names(list(record))}")
            value = value[part]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return json.dumps(value)
    raise BadRecord(f"{quoted(column)} is {'null' if value is None else 'a list or an object'}, not a text")


def _parse_fasta(lines: Iterator[str], name: str, wanted: list[str]) -> Iterator[Parsed]:
    """Parse FASTA: sequences, each after a line with > and its description, whose first word is its id."""
    for column in wanted:
        if column not in _FASTA_FIELDS:
            raise InputError(f"{name}: FASTA has no column {quoted(column)}, only {_list_names(_FASTA_FIELDS)}")
    begun, description, parts = 0, "", list[str]()
    for number, line in enumerate(itertools.chain(lines, [">"]), start=1):
        if not line.startswith(">"):
            parts += line.split()
            if parts and not begun:
                raise InputError(f"{name}: line {number:,} comes before the first line that begins with >")
            continue
        if begun:
            fields = {"sequence": "".join(parts), "id": (description.split() or [""])[0], "description": description}
            yield begun, [fields[column] for column in wanted]
        begun, description, parts = number, line[1:].strip(), []


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names[:_MAX_NAMED])) + (", …" if len(names) > _MAX_NAMED else "")


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" + ("" if number == 1 else "s")


def quoted(text: str) -> str:
    """Put a name of a column or a label in quotation marks, on one line."""
    return f"'{one_line(text)}'"
