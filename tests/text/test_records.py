"""Records: what Python's csv and json wrote is read back, and what is invalid is named with its place."""

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import CorpusConfig
from charrnn.data import shuffling
from charrnn.data.cache import Cache
from charrnn.errors import InputError
from charrnn.text.characters import END, LABEL_END, UNKNOWN, bytes_as_chars
from charrnn.text.records import RecordReader, find_format, label_of_file, split_lines
from tests.data.test_corpus import feed_stdin, load, write

NASTY = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n\t,;|\"'>{}\\ \0é\u2028"), min_size=1)
VALUES = NASTY.filter(str.strip)
LABELS = st.text('ab \n,"é', min_size=1, max_size=9).map(str.strip).filter(bool)
ROWS = st.lists(st.tuples(VALUES, LABELS), min_size=1, max_size=12)


def cut(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces."""
    return (text[start : start + size] for start in range(0, len(text), size))


def read(text: str, name: str = "a.csv", *, size: int = 1 << 20, **settings) -> list[tuple[str, str]]:
    """Read records; return the text and the label of each."""
    settings = {"column": "text", **settings}
    config = CorpusConfig(**settings)
    found = "".join(RecordReader(config).documents(cut(text, size), name))
    assert found == "" or found.endswith(END)
    pairs = [one.rpartition(LABEL_END) for one in found.split(END)[:-1]]
    return [(text, label) for label, _, text in pairs]


def refusal(text: str, name: str = "a.csv", **settings) -> str:
    """Return the error that a text causes."""
    with pytest.raises(InputError) as error:
        read(text, name, **settings)
    return str(error.value)


# what is read


@given(ROWS, st.sampled_from(",;\t|"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.integers(1, 50))
def test_csv_is_read_back(rows, delimiter, quoting, size):
    """Quotes, embedded newlines and any delimiter, in pieces of any size."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
    writer.writerow(["text", "kind"])
    writer.writerows(rows)
    assert read(file.getvalue(), size=size, label="kind") == rows


@given(ROWS, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.integers(1, 50))
def test_json_lines_are_read_back(rows, ascii, end, size):
    """As Unicode or as escapes, with any end of line."""
    lines = [json.dumps({"text": text, "about": {"kind": label}}, ensure_ascii=ascii) + end for text, label in rows]
    assert read("".join(lines), "a.jsonl", size=size, label="about.kind") == rows


@given(ROWS, st.integers(1, 50))
def test_bytes_are_read_back(rows, size):
    """A model of bytes gets the UTF-8 of each value."""
    text = "".join(json.dumps({"text": text, "kind": label}, ensure_ascii=False) + "\n" for text, label in rows)
    expected = [(bytes_as_chars(text), bytes_as_chars(label)) for text, label in rows]
    assert read(bytes_as_chars("\ufeff" + text), "a.jsonl", size=size, label="kind", bytes=True) == expected


@given(st.text("a\r\n", max_size=40), st.integers(1, 9))
def test_lines_do_not_depend_on_the_pieces(text, size):
    """A line ends with LF, CRLF or CR, also where CR and LF come in two pieces."""
    assert list(split_lines(cut(text, size))) == io.StringIO(text, newline="").readlines()


def test_columns_can_be_numbers():
    """Then the first row is a record."""
    assert read("one,a\ntwo,b\n", column="1", label="2") == [("one", "a"), ("two", "b")]


def test_fasta_is_read():
    """A sequence may have many lines and stars; its id is the first word of its description."""
    text = ">sp|P1 first protein\r\nMKV\r\nLA A\r\n\r\n>P2\nMM*\n"
    assert read(text, "a.fa", column="sequence", label="id") == [("MKVLAA", "sp|P1"), ("MM*", "P2")]
    assert read(text, "a.fa", column="description") == [("sp|P1 first protein", ""), ("P2", "")]


def test_values_of_json_may_be_numbers():
    """A year is a label; a name with a dot is first looked for as it is."""
    assert read('{"text": "x", "a.b": 1999}\n{"text": 2.5, "a": {"b": true}}', "a.jsonl", label="a.b") == [
        ("x", "1999"),
        ("2.5", "true"),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_no_line_end_reaches_a_record(end):
    """Blank lines are no records, and the last line may lack its end."""
    assert read(end.join(["text", "one", "", "two"])) == [("one", ""), ("two", "")]
    assert read(end.join(['{"text": "one"}', "", '{"text": "two"}']), "a.ndjson") == [("one", ""), ("two", "")]
    assert read(end.join([">a", "MK", "", ">b", "LL"]), "a.fna", column="sequence") == [("MK", ""), ("LL", "")]


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.CSV", "csv"), ("x/a.b.tsv.gz", "tsv"), ("a.ndjson.zst", "jsonl"), ("a.faa", "fasta"), ("a.tab.xz", "tsv")],
)
def test_a_files_name_says_its_format(name, format):
    """Packed or not, in capitals or not; --format wins."""
    assert find_format(name, CorpusConfig(column="text")) == format
    assert find_format(name, CorpusConfig(column="text", format="jsonl")) == "jsonl"


def test_a_name_may_not_say_the_format():
    """Then --format must."""
    assert "--format" in refusal("text\none\n", "-")
    assert "--format" in refusal("text\none\n", "names.txt")


def test_a_tsv_has_tabs_only():
    """Commas are part of its values."""
    assert read("text\tkind\na, b\tc\n", "a.tsv", label="kind") == [("a, b", "c")]


@given(ROWS, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.integers(1, 50))
def test_a_tsv_with_quotes_is_read_back(rows, quoting, size):
    """As pandas and Excel write it, with tabs and quotation marks, but each record in a line."""
    rows = [tuple(re.sub("[\r\n]", " ", value).strip(" ") or "x" for value in row) for row in rows]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="\t", quoting=quoting)
    writer.writerow(["text", "kind"])
    writer.writerows(rows)
    assert read(file.getvalue(), "a.tsv", size=size, label="kind") == [(text, kind.strip()) for text, kind in rows]


@given(ROWS, st.integers(1, 50))
def test_a_tsv_without_quotes_is_read_back(rows, size):
    """As most programs write it: a quotation mark is a character, unless a field begins and ends with one."""
    rows = [tuple(re.sub("[\r\n\t]", " ", value).strip(' "') or "x" for value in row) for row in rows]
    rows = [(f'"{text}', label) for text, label in rows] + [(f'5" {text}"', f'"{label}" x') for text, label in rows]
    text = "text\tkind\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    assert read(text, "a.tsv", size=size, label="kind") == rows


def test_a_stray_quotation_mark_in_a_tsv_spoils_no_record():
    """Each line is a record; one with newlines in quotes is named with what reads it."""
    text = 'text\tkind\n5" disk\tx\n"open\ty\n"big" dog\tz\n"a\tb"\tc\n"said ""so"""\td\nclose"\te\n'
    assert read(text, "a.tsv", label="kind") == [
        ('5" disk', "x"),
        ('"open', "y"),
        ('"big" dog', "z"),
        ("a\tb", "c"),
        ('said "so"', "d"),
        ('close"', "e"),
    ]
    text = 'kind\ttext\nx\t"one\ntwo"\ny\tthree\n'
    assert "record 2, line 3: it has 1 field instead of 2 (--format csv reads" in refusal(text, "a.tsv")
    assert read(text, "a.tsv", format="csv") == [("one\ntwo", ""), ("three", "")]


@pytest.mark.parametrize("line", ["sep={}\r\n", "SEP={}\n", '"sep={}"\n'])
@pytest.mark.parametrize("delimiter", [*",;\t|", ":"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_first_line_may_name_the_delimiter(line, delimiter, name):
    """As Excel writes it; it is neither a record nor the names of the columns."""
    text = line.format(delimiter) + f"text{delimiter}kind\na{delimiter}x\n"
    assert read(text, name, label="kind") == [("a", "x")]
    assert read(text, name, column="1") == [("text", ""), ("a", "")]
    assert "no column 'txt'; line 2 names 'text', 'kind'" in refusal(text, name, column="txt")
    assert "record 2, line 4: it has 1 field" in refusal(text + "b\n", name)


def test_a_column_may_be_called_sep():
    """Only a whole line that consists of it names a delimiter."""
    assert read("sep=;,text\na,b\n") == [("b", "")]


def test_spaces_around_a_label_are_no_part_of_it():
    """Those around a text are."""
    assert read("text,kind\n a,x\nb , x \n", label="kind") == [(" a", "x"), ("b ", "x")]


def test_the_label_of_a_file():
    """Its name without endings, or the name of its folder."""
    assert label_of_file("/x/poets/blake.txt.gz", "file") == "blake"
    assert label_of_file("/x/poets/blake.txt", "folder") == "poets"
    with pytest.raises(InputError, match="stdin has no name"):
        label_of_file("-", "file")


# what is refused


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.csv", "text,kind\none,1\ntwo\n", ["record 2, line 3: it has 1 field instead of 2", "--errors replace"]),
        ("a.csv", "text,kind\none,1\ntwo,2,3\n", ["record 2, line 3: it has 3 fields instead of 2"]),
        ("a.csv", 'text,kind\n"one\n",1\n ,2\n', ["record 2, line 4: 'text' is empty"]),
        ("a.csv", 'text,kind\n"a"x,1\none,1\n', ["record 1, line 2: text follows the quotation mark"]),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', ["record 2, line 2: invalid JSON"]),
        ("a.jsonl", '{"text": "a"}\n\n{"txt": "b"}\n', ["record 2, line 3: it has no 'text', only 'txt'"]),
        ("a.jsonl", '{"text": null}\n', ["line 1: 'text' is null, not a text"]),
        ("a.jsonl", '{"text": ["a"]}\n', ["line 1: 'text' is a list or an object, not a text"]),
        ("a.jsonl", '["a"]\n', ["line 1: not a JSON object; jq -c '.[]'"]),
        ("a.jsonl", '{"text": "\\ud83d"}\n', ["line 1: 'text' has half a character (U+D83D)"]),
        ("a.jsonl", '{"text": "a\\udc00b"}\n', ["half a character (U+DC00)"]),
        ("a.jsonl", "[" * 100_000 + "\n", ["line 1: "]),
    ],
)
def test_an_invalid_record_is_named(name, text, parts):
    """With the file, the record, the line and what to do; --errors replace counts and skips it."""
    message = refusal(text, name)
    assert message.startswith(f"{name}: record ")
    assert [part for part in parts if part not in message] == []
    reader = RecordReader(CorpusConfig(column="text", errors="replace"))
    assert "".join(reader.documents([text], name)).count(END) == text.count("one") + text.count('"a"}')
    assert reader.num_skipped == 1
    assert reader.first_skipped.startswith(f"{name}: record ")


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.csv", "name,kind\none,1\n", "no column 'text'; line 1 names 'name', 'kind'"),
        ("a.csv", "text,text\none,1\n", "2 columns are called 'text'"),
        ("a.csv", "", "no column 'text'; the text is empty"),
        ("a.csv", 'text\n"one\ntwo\n', "line 2 begins a record that does not end: a quotation mark is never closed"),
        ("a.fa", ">a\nMK\n", "FASTA has no column 'text', only 'sequence', 'id', 'description'"),
        ("a.csv", "\x1b[31m\nx\n", r"names '\x1b[31m'"),
    ],
)
def test_a_file_whose_rest_is_lost_is_refused(name, text, part):
    """Also with --errors replace."""
    assert part in refusal(text, name)
    assert part in refusal(text, name, errors="replace")


def test_a_column_number_beyond_the_last_is_refused():
    """With the number of columns that there are."""
    assert "no column 3; line 1 has 2 fields" in refusal("a,b\n", column="3")


def test_column_zero_is_refused():
    """Numbers begin at 1, and the text isn't to blame."""
    assert refusal("a,b\n", column="0").endswith("no column 0; the first one is column 1")


def test_fasta_begins_with_a_description():
    """Anything else is another format."""
    assert "line 2 comes before the first line" in refusal("\nMK\n>a\n", "a.fa", column="sequence")


def test_labels_are_short_and_few():
    """At most 64 characters, at most 1,000 of them."""
    rows = [f"text {number},{number}\n" for number in range(1001)]
    assert len(read("text,kind\n" + "".join(rows[:1000]), label="kind")) == 1000
    assert "column 'kind' has more than 1,000 different labels" in refusal("text,kind\n" + "".join(rows), label="kind")
    assert read(f"text,kind\na,{'x' * 64}\n", label="kind") == [("a", "x" * 64)]
    assert "a label of 65 characters" in refusal(f"text,kind\na,{'x' * 65}\n", label="kind")


# as a corpus


def labelled(corpus, ids=None):
    """Return the (label, text) of each document of a corpus, or of these ids of it."""
    text = corpus.vocab.decode(corpus.ids if ids is None else ids)
    return [tuple(one.split(LABEL_END)) for one in text.split(END)[:-1]]


def write_records(folder, name="a.csv", *, counts):
    """Write a CSV file with so many records of each label, in the order of the labels; return its path and records."""
    records = [(label, f"{label} text {number}") for label, count in counts.items() for number in range(count)]
    rows = "".join(f'"{text}",{label}\n' for label, text in records)
    return write(folder, name, "text,kind\n" + rows), records


def test_records_become_documents_with_labels(tmp_path, cache):
    """All of them, each with its label, which the notes count; the mean length is that of the texts."""
    name, records = write_records(tmp_path, counts={"b": 30, "aa": 300, "c": 3})
    corpus = load(name, cache=cache, column="text", label="kind")
    assert sorted(labelled(corpus)) == sorted(records)
    assert corpus.labels == {"aa": 300, "b": 30, "c": 3}
    mean = sum(len(text) for _, text in records) / len(records)
    assert list(corpus.notes)[:2] == [
        f"333 documents from column 'text', {mean:,.0f} characters on average",
        "3 labels: aa 300, b 30, c 3",
    ]
    unlabelled = load(name, cache=cache, column="text")
    assert sorted(unlabelled.vocab.decode(unlabelled.ids).split(END)[:-1]) == sorted(text for _, text in records)
    assert unlabelled.labels == {}


def test_each_label_is_held_out_in_proportion(tmp_path, cache, monkeypatch):
    """However the file is ordered: the documents of a label are spread evenly, in each of several parts."""
    counts = {"a": 1000, "b": 500, "c": 50, "d": 10}
    name, _ = write_records(tmp_path, counts=counts)
    for bucket in (1 << 22, 10_000):
        monkeypatch.setattr(shuffling, "_BUCKET", bucket)
        monkeypatch.setattr(Cache, "find", lambda *_: None)
        corpus = load(name, cache=cache, column="text", label="kind", valid_fraction=0.2)
        held_out = Counter(label for label, _ in labelled(corpus, corpus.valid_ids))
        for label, count in counts.items():
            slack = 1 if bucket > 10_000 else 6 * (0.16 * count) ** 0.5
            assert abs(held_out[label] - 0.2 * count) <= slack, label


def test_texts_of_a_label_are_shuffled(tmp_path, cache):
    """Their order says nothing."""
    name, records = write_records(tmp_path, counts={"a": 200, "b": 100})
    for label in "ab":
        order = [
            text for found, text in labelled(load(name, cache=cache, column="text", label="kind")) if found == label
        ]
        assert order != [text for found, text in records if found == label]


def test_the_characters_of_labels_are_never_rare(tmp_path, cache):
    """Or two labels could become one."""
    name = write(tmp_path, "a.csv", "text,kind\n" + "aaaa,x\n" * 30 + "aaab,y\n")
    corpus = load(name, cache=cache, column="text", label="kind", min_count=5)
    assert {label for label, _ in labelled(corpus)} == {"x", "y"}
    assert ("y", "aaa" + UNKNOWN) in labelled(corpus)


@pytest.mark.parametrize(("label_from", "labels"), [("file", {"one": 40, "two": 20}), ("folder", {"poets": 60})])
def test_files_and_folders_are_labels(tmp_path, cache, label_from, labels):
    """Each document has the label of its file, whatever separates documents."""
    write(tmp_path, "poets/one.txt", "first\n\nsecond\n" * 20)
    write(tmp_path, "poets/two.txt", "third\n" * 20)
    corpus = load(str(tmp_path / "poets"), cache=cache, documents="lines", label_from=label_from)
    assert corpus.labels == labels
    expected = {"first": "one", "second": "one", "third": "two"}
    for label, text in labelled(corpus):
        assert label == (expected[text] if label_from == "file" else "poets")


def test_a_text_of_bytes_has_labels(tmp_path, cache):
    """Labels are bytes as well, and shown as text."""
    name = write(tmp_path, "a.jsonl", "".join(json.dumps({"t": "é" * 9, "l": "ü"}) + "\n" for _ in range(20)))
    corpus = load(name, cache=cache, column="t", label="l", bytes=True)
    assert corpus.labels == {"ü": 20}
    assert set(labelled(corpus)) == {(bytes_as_chars("ü"), bytes_as_chars("é" * 9))}


def test_invalid_records_are_counted(tmp_path, cache):
    """The note names the first one."""
    name = write(tmp_path, "a.csv", "text,kind\n" + "good text,x\n" * 20 + "bad\n" + "worse\n")
    with pytest.raises(InputError, match="record 21, line 22"):
        load(name, cache=cache, column="text")
    corpus = load(name, cache=cache, column="text", errors="replace")
    assert (
        f"2 records are skipped; the first one is {name}: record 21, line 22: it has 1 field instead of 2"
        in corpus.notes
    )


def test_a_packed_stream_of_records_is_read(tmp_path, monkeypatch, cache):
    """From stdin, where --format says what it is."""
    feed_stdin(monkeypatch, gzip.compress(b"text,kind\r\n" + b'"a, \r\nb",x\r\n' * 20))
    corpus = load("-", cache=cache, column="text", label="kind", format="csv")
    assert set(labelled(corpus)) == {("x", "a, \r\nb")}


def test_a_held_out_file_of_records_keeps_its_order(tmp_path, cache):
    """As other documents do."""
    name, _ = write_records(tmp_path, counts={"a": 50, "b": 20})
    other, records = write_records(tmp_path, "held.csv", counts={"b": 9, "a": 9})
    corpus = load(name, cache=cache, column="text", label="kind", valid=other)
    assert labelled(corpus, corpus.valid_ids) == records
