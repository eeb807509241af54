"""Lists of `charrnn sample`: --unique, --new, --best, and what is said about them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from charrnn.model.file import load_model, save_model
from tests.cli.conftest import Home, Outcome, assert_refused, call, empty_cache, make_model

NAMES = [first + second + third for first in "bdk" for second in "aeiou" for third in ("n", "ra", "lo", "s")]
TINY = ("--hidden-size", "16", "--batch-size", "4", "--seq-len", "16", "--seed", "1", "--steps", "60")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
    """A folder with a model of names; tests must not change it."""
    path = tmp_path_factory.mktemp("names")
    (path / "names.txt").write_text("\n".join(NAMES * 5), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert call("train", "names.txt", "--documents", "lines", "-q", *TINY).code == 0
    return path


@pytest.fixture
def at_names(names: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the current one."""
    monkeypatch.chdir(names)
    return names


def draw(*args: str) -> Outcome:
    """Draw with a fixed seed."""
    return call("sample", "--seed", "3", *args)


def test_a_list_is_unique_and_new_and_says_what_was_drawn(at_names: Path) -> None:
    """One name a line; one line on stderr, or none with --quiet; the same with any number of threads."""
    outcome = draw("-N", "50", "--unique", "--new")
    found = outcome.text.splitlines()
    assert (outcome.code, len(found), len(set(found))) == (0, 50, 50)
    assert not set(found) & set(NAMES)
    assert outcome.err.startswith("50 asked for, ")
    assert outcome.err.endswith(" 50 new\n")
    assert [word in outcome.err for word in ("drawn", "complete", "unique")] == [True] * 3
    assert draw("-N", "50", "--unique", "--new", "-q", "--threads", "1") == (0, outcome.out, "")
    objects = draw("-N", "50", "--unique", "--new", "--json").objects
    assert [one["text"] for one in objects] == found
    numbers = [one["stream"] for one in objects]
    assert numbers == sorted(set(numbers))


def test_a_list_that_is_too_short_ends_with_one(at_names: Path) -> None:
    """What was found is printed; the last line says how many that is."""
    outcome = draw("-N", "50", "--unique", "--max-draws", "60", "--temp", "0.2")
    assert outcome.code == 1
    assert 0 < outcome.text.count("\n") < 50
    assert outcome.err.startswith(f"charrnn: found {outcome.text.count(chr(10))} of 50 samples: 60 drawn, ")
    assert outcome.err.count("\n") == 1


def test_the_best_come_first(at_names: Path) -> None:
    """Of all that were drawn, in the order of their cost."""
    every = draw("-N", "80", "--json").objects
    best = draw("-N", "80", "--best", "5", "--json").objects
    assert [one["stream"] for one in best] == [
        one["stream"] for one in sorted(every, key=lambda one: one["bits_per_char"])[:5]
    ]
    total = draw("-N", "80", "--best", "5", "--best-by", "total").text.split()
    assert total != [one["text"] for one in best]
    assert draw("-N", "80", "--best", "5").err == ""


def test_the_model_file_alone_tells_new_names_from_known_ones(
    at_names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied elsewhere, without the text; `info` shows that it can."""
    expected = draw("-N", "20", "--new")
    shutil.copy("checkpoints/names/model.safetensors", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert draw("-m", "copy", "-N", "20", "--new") == expected
    assert call("info", "copy", "--json").objects[0]["known_documents"] == len(NAMES)
    assert f"known documents\t{len(NAMES)}, as hashes" in call("info", "copy").text


def test_new_text_needs_the_training_text(home: Home, desk: Path) -> None:
    """In the cache, where the run's state says, or where --train-text says."""
    shutil.copytree(home.path / "checkpoints", desk / "checkpoints")
    args = ("-n", "40", "-N", "5", "--new", "--new-run", "12")
    expected = draw(*args)
    assert expected.code == 0
    text = (desk / "poems.txt").read_text()
    assert all(sample[k : k + 12] not in text for sample in draw(*args, "-0").text.split("\0")[:-1] for k in range(29))
    empty_cache()
    assert draw(*args, "--train-text", "poems.txt") == expected
    empty_cache()
    Path("checkpoints/poems/model.safetensors").rename("alone")
    assert_refused(draw("-m", "alone", *args), 3, "poems.txt", "was not found", "--train-text")
    Path("other.txt").write_text("ba" * 100)
    assert_refused(draw("-m", "alone", *args, "--train-text", "other.txt"), 3, "not the text the model was trained on")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--unique",), "-N"),
        (("--new", "--new-run", "5"), "compared whole"),
        (("-N", "3", "--unique", "--max-draws", "2"), "--max-draws 2"),
        (("-N", "3", "--best", "4"), "--best 4"),
        (("--best", "0"), "--best"),
        (("-N", "3", "--best", "2", "--best-by", "luck"), "--best-by must be char or total"),
        (("--train-text", "names.txt"), "--train-text has no effect without --new or --no-copy"),
    ],
    ids=str,
)
def test_options_that_cannot_take_effect_are_refused(at_names: Path, args: tuple[str, ...], words: str) -> None:
    """Before the first character."""
    assert_refused(call("sample", *args), 2, words)


def test_endless_texts_make_no_list(desk: Path) -> None:
    """Nobody could tell whether they are alike."""
    make_model(desk / "m", "ab\n")
    assert_refused(call("sample", "-m", "m", "-n", "-1", "-N", "2", "--unique"), 2, "--unique needs texts that end")


def test_a_model_of_an_older_version_asks_for_its_text(at_names: Path, tmp_path: Path) -> None:
    """It has no hashes; the text in the cache does as well."""
    file = load_model("checkpoints/names/model.safetensors")
    save_model(tmp_path / "old", replace(file, known_documents=None))
    args = ("-N", "20", "--new", "--unique", "--train-text", "names.txt")
    assert draw("-m", str(tmp_path / "old"), *args).out == draw("-N", "20", "--new", "--unique").out


def test_each_line_has_a_score(at_names: Path) -> None:
    """Also a blank one, which the score of the text leaves out."""
    text = f"{NAMES[0]}\r\n\r\n{NAMES[1]}☃\n\n".encode()
    lines = call("eval", "-", "--per-line", stdin=text).objects
    assert [(one["document"], one["text"], one["num_unknown"]) for one in lines] == [
        (1, NAMES[0], 0),
        (2, "", 0),
        (3, f"{NAMES[1]}☃", 1),
        (4, "", 0),
    ]
    (facts,) = call("eval", "-", "--json", "--no-yardsticks", stdin=text).objects
    assert facts["num_chars"] == lines[0]["num_chars"] + lines[2]["num_chars"]


def test_a_list_of_texts_that_never_end_in_time_needs_a_larger_length(at_home: Home) -> None:
    """More draws would not help."""
    outcome = call("sample", "-N", "3", "--unique", "-n", "0", "--lines", "1", "--max-draws", "5", "--seed", "1")
    assert outcome.code == 1
    assert outcome.err.endswith("5 drawn, 0 complete, 0 unique; none ended within --length 0: raise that\n")
