"""Formats of records: the rows of CSV and TSV, the objects of JSON Lines, the sequences of FASTA."""

import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from charrnn.errors import InputError
from charrnn.text.characters import one_line

_DELIMITERS = ",;\t|"  # of CSV; the first one is the most usual
_MAX_FIELD = 1 << 24  # characters of a CSV field; in a longer one a quotation mark is probably missing
_MAX_NAMED = 10  # columns in a message
_TEXT_AFTER_QUOTE = "text follows the quotation mark that closes a field; inside a field it is written twice"
_FASTA_FIELDS = ("sequence", "id", "description")
_LINE_END = re.compile("[\r\n]")
_DELIMITER_LINE = re.compile('"?sep=([^"\r\n])"?[\r\n]*\\Z', re.IGNORECASE)
_QUOTED = re.compile('"(?:[^"]|"")*"')


class BadRecord(Exception):
    """What is wrong with a record; the others can still be read."""


Row = tuple[int, list[str] | BadRecord]  # the line in which a row begins, and its fields
Parsed = tuple[int, list[str] | BadRecord]  # the line in which a record begins, and the wanted values


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


def parse(lines: Iterator[str], name: str, wanted: list[str], kind: str) -> Iterator[Parsed]:
    """Parse records one by one. wanted: columns; kind: csv, tsv, jsonl or fasta.

    Raises InputError where the rest of the text can't be parsed.
    """
    if kind == "jsonl":
        return _parse_json(lines, wanted)
    if kind == "fasta":
        return _parse_fasta(lines, name, wanted)
    return _parse_table(lines, name, wanted, kind)


def _parse_table(lines: Iterator[str], name: str, wanted: list[str], kind: str) -> Iterator[Parsed]:
    """Parse CSV or TSV. The first row names the columns, unless all wanted ones are numbers, from 1.

    A line before it may name the delimiter, as Excel writes it: `sep=;`.
    """
    has_header = not all(column.isdecimal() for column in wanted)
    first, num_before, delimiter = next(lines, ""), 0, ""
    if named := _DELIMITER_LINE.match(first):
        first, num_before, delimiter = next(lines, ""), 1, named[1]
    if not delimiter:
        delimiter = "\t" if kind == "tsv" else _find_delimiter(first, wanted if has_header else [])
    lines = itertools.chain([first], lines)
    if kind == "tsv" and delimiter == "\t":
        rows = _tab_rows(lines, num_before)
    else:
        rows = _delimited_rows(lines, name, delimiter, num_before)
    header = next(rows, (1, None))[1] if has_header else None
    places = [_find_place(column, header, name, 1 + num_before) for column in wanted]
    width = len(header) if isinstance(header, list) else 0
    for line, row in rows:
        if isinstance(row, BadRecord):
            yield line, row
        elif len(row) != (width or len(row)):
            yield line, _wrong_width(row, width, kind)
        elif max(places) >= len(row):
            raise InputError(f"{name}: no column {max(places) + 1}; line {line:,} has {_count(len(row), 'field')}")
        else:
            width = len(row)
            yield line, [row[place] for place in places]


def _wrong_width(row: list[str], width: int, kind: str) -> BadRecord:
    """Return that a row has too few or too many fields; in TSV quotes with newlines inside may be why."""
    has_quote = kind == "tsv" and any(field.startswith('"') or field.endswith('"') for field in row)
    advice = " (--format csv reads fields in quotes that contain newlines)" if has_quote else ""
    return BadRecord(f"it has {_count(len(row), 'field')} instead of {width:,}{advice}")


def _delimited_rows(lines: Iterator[str], name: str, delimiter: str, num_before: int) -> Iterator[Row]:
    """Yield the rows of CSV that are not blank. num_before: lines that were read before.

    Raises InputError where the rest of the text can't be parsed.
    """
    csv.field_size_limit(_MAX_FIELD)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = num_before + rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "unexpected end" in str(error) or "field limit" in str(error):
                raise InputError(
                    f"{name}: line {line:,} begins a record that does not end: a quotation mark is never closed"
                ) from None
            yield line, BadRecord(_TEXT_AFTER_QUOTE)
            continue
        if row is None:
            return
        if row:
            yield line, row


def _tab_rows(lines: Iterator[str], num_before: int) -> Iterator[Row]:
    """Yield the rows of TSV that are not blank; each is a line, so a stray quotation mark spoils no other one.

    num_before: as for _delimited_rows.
    """
    width = 0
    for number, line in enumerate(lines, start=1 + num_before):
        if line := line.rstrip("\r\n"):
            row = _split_at_tabs(line, width)
            width = width or len(row)
            yield number, row


def _split_at_tabs(line: str, width: int) -> list[str]:
    """Split a line of TSV into fields, if possible `width` of them.

    A field that begins and ends with quotation marks is quoted as in CSV; in any other one they are characters.
    """
    fields = line.split("\t")
    if len(fields) != width and '"' in line:
        with contextlib.suppress(csv.Error):
            quoted_fields = next(csv.reader([line], delimiter="\t", strict=True))
            if len(quoted_fields) == (width or len(quoted_fields)):
                return quoted_fields
    return [field[1:-1].replace('""', '"') if _QUOTED.fullmatch(field) else field for field in fields]


def _find_delimiter(first: str, wanted: list[str]) -> str:
    """Return the delimiter by which the first line has most of the wanted columns, and then most fields."""

    def columns(delimiter: str) -> list[str]:
        return next(csv.reader([first], delimiter=delimiter), [])

    return max(_DELIMITERS, key=lambda one: (len({*wanted} & {*columns(one)}), len(columns(one))))


def _find_place(column: str, header: list[str] | BadRecord | None, name: str, line: int) -> int:
    """Return which field of a row is a column, from 0. Raises InputError if the header, in a line, doesn't name it."""
    if not header:
        if header is None and column.isdecimal():
            if not int(column):
                raise InputError(f"{name}: no column {column}; the first one is column 1")
            return int(column) - 1
        raise InputError(f"{name}: no column {quoted(column)}; the text is empty")
    if isinstance(header, BadRecord):
        raise InputError(f"{name}: line {line} is no row of column names: {header}")
    names = [one.strip() for one in header]
    if names.count(column) == 1:
        return names.index(column)
    if names.count(column) > 1:
        raise InputError(f"{name}: {names.count(column)} columns are called {quoted(column)}; rename one of them")
    raise InputError(
        f"{name}: no column {quoted(column)}; line {line} names {_list_names(names)}. "
        "If that line is not a header, give the columns as numbers"
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
