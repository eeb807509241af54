"""Lists with labels on the command line: from the columns of a file to scores by label."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from charrnn.cli.export import write_text
from charrnn.model.file import load_model
from charrnn.text.characters import END, LABEL_END
from tests.cli.conftest import TINY, Outcome, assert_refused, call

SMALL = ("--hidden-size", "48", "--batch-size", "16", "--seq-len", "16", "--threads", "1", "--steps", "200")

SYLLABLES = {"Irish": ["o'", "mac", "kel", "ly"], "Greek": ["pou", "los", "the", "dor"], "Thai": ["cha", "ran", "sri"]}


def make_rows(seed: int = 0, count: int = 400) -> list[tuple[str, str]]:
    """Names of the syllables of a country, with the country."""
    rng = np.random.default_rng(seed)
    countries = rng.choice(list(SYLLABLES), count, p=[0.5, 0.3, 0.2])
    return [("".join(rng.choice(SYLLABLES[one], rng.integers(2, 5))), str(one)) for one in countries]


def make_csv(rows: list[tuple[str, str]]) -> str:
    """A file with a header, a column of numbers, and these rows."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["id", "name", "country"])
    writer.writerows([[number, *row] for number, row in enumerate(rows)])
    return file.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> tuple[Path, Outcome]:
    """A folder with names.csv and a run that learned its labels, and what the command printed."""
    path = tmp_path_factory.mktemp("labels")
    (path / "names.csv").write_text(make_csv(make_rows()), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        words = ("train", "names.csv", "--column", "name", "--label", "country", *SMALL)
        return path, call(*words)


@pytest.fixture
def at_names(trained: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the current one."""
    monkeypatch.chdir(trained[0])
    return trained[0]


def test_the_plan_names_labels_and_counts(trained: tuple[Path, Outcome]) -> None:
    """The most frequent first."""
    assert trained[1].code == 0, trained[1].err
    assert "400 documents from column 'name'" in trained[1].err
    assert "3 labels: Irish " in trained[1].err


def test_the_same_command_finds_the_run_finished(at_names: Path) -> None:
    """And another label is another run's."""
    words = ("train", "names.csv", "--column", "name", "--label", "country", *SMALL)
    assert "finished after 200 steps" in call(*words).err
    outcome = call("train", "names.csv", "--column", "name", "--label", "id", *SMALL)
    assert_refused(outcome, 2, "--label id differs from this run's country")


def test_a_folder_of_records_is_scored_as_its_files_are(at_names: Path) -> None:
    """Its name has no suffix, but its files do."""
    (at_names / "lists").mkdir()
    rows = make_csv(make_rows(seed=3, count=60))
    (at_names / "lists" / "more.csv").write_text(rows, encoding="utf-8")
    (folder,), (file,) = (call("eval", name, "--json").objects for name in ("lists", "lists/more.csv"))
    assert folder["num_chars"] == file["num_chars"] < len(rows)
    assert folder["nats_per_char"] == file["nats_per_char"]


def test_the_held_out_names_are_scored_by_label(at_names: Path) -> None:
    """Given the label a name costs fewer bits; the classifier beats the most frequent label."""
    outcome = call("eval", "--by-label", "--json")
    assert outcome.code == 0, outcome.err
    (found,) = outcome.objects
    assert found["num_documents"] == found["num_labelled"] > 30
    assert found["bits_per_char"] < found["bits_per_char_without_label"]
    assert found["accuracy"] > 0.8 > found["majority"]
    assert [one["label"] for one in found["labels"]] == ["Irish", "Greek", "Thai"]
    assert sum(one["num_documents"] for one in found["labels"]) == found["num_documents"]
    counts = [count for row in found["confusion"].values() for count in row.values()]
    assert sum(counts) == found["num_documents"]


def test_people_get_tables(at_names: Path) -> None:
    """The sums, the labels, and the confusion of few labels."""
    lines = [line.split("\t") for line in call("eval", "--by-label").text.splitlines()]
    assert lines[2] == ["documents", str(int(lines[2][1]))]
    assert lines[6][:4] == ["label", "documents", "bits/char", "without label"]
    assert lines[10] == ["label \\ guess", "Irish", "Greek", "Thai"]
    assert [line[0] for line in lines[11:]] == ["Irish", "Greek", "Thai"]
    assert sum(int(cell) for line in lines[11:] for cell in line[1:]) == int(lines[2][1])


def test_another_file_of_records_has_labels(at_names: Path, tmp_path: Path) -> None:
    """Columns are those of training, unless others are named; a label unknown to the model is no label."""
    rows = make_rows(seed=1, count=30)
    (tmp_path / "other.csv").write_text(make_csv([*rows, ("kelly", "Martian")]), encoding="utf-8")
    (found,) = call("eval", str(tmp_path / "other.csv"), "--by-label", "--json").objects
    assert (found["num_documents"], found["num_labelled"]) == (31, 30)
    lines = [json.dumps({"n": name, "c": {"name": country}}) + "\n" for name, country in rows]
    words = ("eval", "-", "--column", "n", "--label", "c.name", "--format", "jsonl", "--by-label", "--json")
    (again,) = call(*words, stdin="".join(lines).encode()).objects
    assert again["num_labelled"] == 30
    assert again["bits_per_char"] == pytest.approx(found["bits_per_char"], abs=1e-3)


def test_lines_without_labels_are_classified(at_names: Path) -> None:
    """In a pipe, also blank ones, each as a JSON object with the labels' probabilities, the likeliest first."""
    outcome = call("eval", "-", "--per-line", "--by-label", stdin="kelly\r\n\r\npou☃los\r\n☃\r\nchasri".encode())
    assert outcome.code == 0, outcome.err
    assert [
        (one["document"], one["text"], one["label"], one["num_chars"], one["num_unknown"]) for one in outcome.objects
    ] == [
        (1, "kelly", None, 6, 0),
        (2, "", None, 1, 0),
        (3, "pou☃los", None, 7, 1),
        (4, "☃", None, 1, 1),
        (5, "chasri", None, 7, 0),
    ]
    likeliest = [next(iter(one["labels"])) for one in outcome.objects]
    assert [likeliest[place] for place in (0, 2, 4)] == ["Irish", "Greek", "Thai"]
    for one in outcome.objects:
        assert sum(one["labels"].values()) == pytest.approx(1.0)


def test_lines_show_the_label_that_they_were_scored_with(at_names: Path) -> None:
    """As a field of their own in JSON."""
    found = call("eval", "--per-line").objects
    assert {one["label"] for one in found} == set(SYLLABLES)
    assert not any(one["text"].startswith(tuple(SYLLABLES)) for one in found)
    assert ": " in call("eval", "--worst", "3").text.splitlines()[1]


def test_the_whole_comparison_works(at_names: Path, tmp_path: Path) -> None:
    """Baselines, copied text, the report page with the accuracy that `--by-label` prints."""
    outcome = call("eval", "--html", str(tmp_path / "report.html"))
    assert outcome.code == 0, outcome.err
    assert "character frequencies" in outcome.text
    (found,) = call("eval", "--by-label", "--json").objects
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"The model guesses {100 * found['accuracy']:.1f}&nbsp;% of the labels right." in page
    assert '<th scope="row" dir="auto">Irish</th>' in page


def test_a_text_without_labels_is_scored_by_label_only(at_names: Path) -> None:
    """A score without would be that of other texts."""
    assert_refused(call("eval", "-", stdin=b"kelly\n"), 2, "have no labels", "--by-label")


def test_by_label_needs_a_model_with_labels(at_home: object) -> None:
    """And prints nothing else."""
    assert_refused(call("eval", "--by-label"), 2, "needs a model with labels", "--label-from")
    assert_refused(call("eval", "--by-label", "--per-char"), 2, "--by-label can be combined only with")
    outcome = call("eval", "other.csv", "--by-label", "--train-text", "poems.txt")
    assert_refused(outcome, 2, "--train-text has no effect here")


def test_labels_come_from_folders(desk: Path) -> None:
    """Authors or languages, with any kind of documents."""
    for country, parts in SYLLABLES.items():
        (desk / "texts" / country).mkdir(parents=True)
        (desk / "texts" / country / "a.txt").write_text("\n".join(3 * [a + b for a in parts for b in parts]) + "\n")
    words = ("train", "texts", "--documents", "lines", "--label-from", "folder", "--steps", "3", *TINY)
    outcome = call(*words)
    assert outcome.code == 0, outcome.err
    assert re.search("3 labels: (Irish 48, Greek 48|Greek 48, Irish 48), Thai 27", outcome.err)
    (found,) = call("eval", "--by-label", "--json").objects
    assert {one["label"] for one in found["labels"]} == set(SYLLABLES)
    assert call("eval", "-", "--by-label", "--per-line", stdin=b"kelly\n").objects[0]["label"] is None


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--label", "country"), ("--label needs --column",)),
        (("--format", "csv"), ("--format needs --column",)),
        (("--column", "name", "--documents", "lines"), ("--documents has no effect on records",)),
        (("--column", "name", "--format", "xml"), ("--format must be csv, tsv, jsonl or fasta, not 'xml'",)),
        (("--label-from", "file"), ("--label-from needs --documents",)),
        (("--documents", "lines", "--label-from", "name"), ("--label-from must be file or folder, not 'name'",)),
        (("--column", "name", "--label-from", "file"), ("--label-from and --column can't be combined",)),
    ],
)
def test_settings_that_contradict_each_other_are_refused(at_names: Path, words: tuple[str, ...], parts: tuple) -> None:
    """Before anything is read."""
    assert_refused(call("train", "names.csv", *words, "--run", "x"), 2, *parts)


def test_a_model_of_labels_gives_a_head_start_to_one_of_labels_only(at_names: Path) -> None:
    """Another text needs labels too."""
    (at_names / "other.csv").write_text(make_csv(make_rows(seed=2)), encoding="utf-8")
    words = ("train", "other.csv", "--column", "name", "--init-from", "names", "--steps", "2")
    assert_refused(call(*words), 2, "was trained with labels; add --column and --label")
    outcome = call(*words, "--label", "country", "--batch-size", "4", "--seq-len", "16")
    assert outcome.code == 0, outcome.err


def test_a_model_with_labels_is_exported_with_them(at_names: Path) -> None:
    """Rounding is measured on held-out names, or on names with labels that the model writes."""
    assert " of held-out text)" in call("export", "names").err
    file = load_model(at_names / "checkpoints/names/model.safetensors")
    page = (at_names / "names.html").read_text(encoding="utf-8")
    facts = json.loads(page.split('id="facts">')[1].split("<")[0])
    assert facts["labels"] == list(file.labels)
    assert "<dd>3: Irish, Greek, Thai</dd>" in page
    assert "labels\t3: Irish, Greek, Thai\n" in call("info", "names").text
    ids, _ = write_text(file)
    documents = "".join(file.vocab.chars[one] for one in ids).split(END)
    assert {document.split(LABEL_END)[0] for document in documents[:-1]} == set(SYLLABLES)
    call("train", "names.csv", "--column", "name", "--label", "country", *SMALL, "--export")
    assert (at_names / "checkpoints/names/player.html").read_text(encoding="utf-8") == page
