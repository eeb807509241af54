"""`charrnn eval`: the score and its comparison, lines and characters, adaptation, the report page, the terminal."""

import functools
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from charrnn import precompile
from charrnn.evaluation.assessment import compute_baselines
from charrnn.model.file import load_model
from tests.cli.conftest import (
    HELD_OUT,
    POEMS,
    TINY,
    Home,
    assert_refused,
    call,
    call_on_terminal,
    empty_cache,
    make_model,
    posix,
    read_log,
)
from tests.conftest import make_text

MODEL = "checkpoints/poems/model.safetensors"

# the score


def test_json_has_the_fields_that_scripts_rely_on(copied_home: Path) -> None:
    """One object whose figures agree with each other."""
    Path("other.txt").write_text(POEMS[:500], encoding="utf-8")
    outcome = call("eval", "other.txt", "-m", "poems", "--json", "--threads", "1")
    (facts,) = outcome.objects
    assert (outcome.code, outcome.err) == (0, "")
    assert facts["model"] == MODEL
    assert facts["text"] == "other.txt"
    assert (facts["num_chars"], facts["num_unknown"]) == (499, 0)
    assert facts["bits_per_char"] == pytest.approx(facts["nats_per_char"] / np.log(2), rel=1e-12)
    assert facts["perplexity"] == pytest.approx(np.exp(facts["nats_per_char"]), rel=1e-12)


@pytest.mark.parametrize("option", ["--per-line", "--per-char", "--worst"])
def test_lines_and_characters_show_nothing_of_adaptation(at_home: Home, option: str) -> None:
    """So asking for both is a mistake."""
    assert_refused(call("eval", option, *(["3"] if option == "--worst" else []), "--adapt"), 2, option, "--adapt")


def test_a_run_is_no_text_and_a_name_is_not_empty(at_home: Home) -> None:
    """With one model or several."""
    for models in (["-m", "poems"], ["-m", "poems", "-m", "poems"]):
        assert_refused(call("eval", "poems", *models), 2, "poems is a run, not a text")
        assert_refused(call("eval", "", *models), 2, "empty")
    assert_refused(call("eval", "-m", ""), 2, "empty")
    assert_refused(call("train", ""), 2, "empty")


def test_unknown_characters_are_counted_and_named(at_home: Home) -> None:
    """They are neither fed nor scored."""
    clean, mixed = "dorin bane\n" * 9, "dorXin bané\n" * 4 + "dorin bane\n" * 5
    known = mixed.replace("X", "").replace("é", "")
    (facts,) = call("eval", "-", "--json", stdin=mixed.encode()).objects
    assert (facts["num_chars"], facts["num_unknown"]) == (len(known) - 1, 8)
    assert facts["unknown"] == {"X": 4, "é": 4}
    (same,) = call("eval", "-", "--json", stdin=known.encode()).objects
    assert facts["nats_per_char"] == same["nats_per_char"]
    shown = call("eval", "-", stdin=mixed.encode()).text
    assert "unknown characters\t8, not scored: U+0058 'X' 4x, U+00E9 'é' 4x" in shown
    assert "unknown characters" not in call("eval", "-", stdin=clean.encode()).text


def test_a_pipe_gets_tab_separated_lines(at_home: Home) -> None:
    """Each figure is a line of name, tab, value."""
    outcome = call("eval", "-", "-m", "poems", stdin=POEMS.encode())
    rows = dict(line.split("\t") for line in outcome.text.splitlines() if line.count("\t") == 1)
    assert outcome.code == 0
    assert rows["characters scored"] == "3,999"
    assert float(rows["perplexity"]) == pytest.approx(2 ** float(rows["bits per character"]), rel=1e-4)
    assert outcome.text.lower().count("perplexity") == 1


def test_stdin_and_a_file_get_the_same_score(copied_home: Path) -> None:
    """`-` is stdin."""
    Path("piped.txt").write_text(POEMS[:500], encoding="utf-8")
    (piped,) = call("eval", "-", "--json", stdin=POEMS[:500].encode()).objects
    (read,) = call("eval", "piped.txt", "--json").objects
    assert piped == {**read, "text": "-"}


def test_without_a_text_the_held_out_part_is_scored(at_home: Home) -> None:
    """The figure is the one that training ended with, to the last digit."""
    finished = read_log(at_home.path / "checkpoints/poems")[-1]
    (facts,) = call("eval", "--json", "--threads", "1").objects
    assert finished["event"] == "finished"
    assert facts["nats_per_char"] == finished["nats_per_char"]
    assert facts["num_chars"] == finished["num_chars"] == 400
    assert facts["text"] == "poems.txt"


@pytest.mark.parametrize("text", ["", "é", "ééé", "a", "éaé"])
def test_two_known_characters_are_needed(at_home: Home, text: str) -> None:
    """A text with nothing to score is unusable input, not a division by zero."""
    assert_refused(call("eval", "-", stdin=text.encode()), 3)


# the training text


def test_a_text_that_moved_is_found_by_train_text(desk: Path) -> None:
    """The error names the option, and the option gives the same score."""
    assert call("train", "poems.txt", "--steps", "2", "-q", *TINY).code == 0
    before = call("eval", "--json").objects[0]
    Path("poems.txt").rename("moved.txt")
    assert call("eval", "--json").objects == [before]  # from the cache
    empty_cache()
    assert_refused(call("eval"), 3, "poems.txt", "--train-text")
    after = call("eval", "--json", "--train-text", "moved.txt").objects[0]
    assert after["nats_per_char"] == before["nats_per_char"]


def test_a_text_that_changed_is_refused(desk: Path) -> None:
    """The end of another text is not the held-out part; the text that was read is, as long as the cache has it."""
    assert call("train", "poems.txt", "--steps", "2", "-q", *TINY).code == 0
    before = call("eval", "--json").objects
    Path("poems.txt").write_text(POEMS[:-1] + "!", encoding="utf-8")
    assert call("eval", "--json").objects == before
    empty_cache()
    assert_refused(call("eval"), 3, "poems.txt", "--train-text")
    named = call("eval", "--train-text", "poems.txt")
    assert_refused(named, 3, "poems.txt: not the text the model was trained on")
    assert "if it has moved" not in named.err


def test_a_model_trained_on_stdin_needs_its_text(desk: Path) -> None:
    """stdin can't be read again, but the cache has the text for a while, and it can be named."""
    assert call("train", "-", "--steps", "2", "-q", *TINY, stdin=POEMS.encode()).code == 0
    assert call("eval", "--json").objects[0]["num_chars"] == 400
    empty_cache()
    assert_refused(call("eval"), 3, "stdin", "--train-text")
    assert call("eval", "--train-text", "poems.txt", "--json").objects[0]["num_chars"] == 400


def test_without_the_training_text_there_is_still_a_score(desk: Path) -> None:
    """A line says why there is no comparison; if the text is needed, that is an error."""
    assert call("train", "poems.txt", "--steps", "2", "-q", *TINY).code == 0
    Path("other.txt").write_text(HELD_OUT, encoding="utf-8")
    shutil.copy(MODEL, "alone.safetensors")
    Path("poems.txt").rename("moved.txt")
    empty_cache()
    outcome = call("eval", "other.txt", "-m", "alone.safetensors", "--json")
    assert outcome.code == 0
    assert outcome.objects[0]["yardsticks"] == []
    assert outcome.err.startswith("no comparison with baselines: ")
    assert "--train-text" in outcome.err
    assert_refused(call("eval", "other.txt", "--adapt"), 3, "--train-text")
    assert_refused(call("eval", "--per-line"), 3, "--train-text")
    assert call("eval", "other.txt", "--no-yardsticks").err == ""
    found = call("eval", "other.txt", "--train-text", "moved.txt", "--json")
    assert len(found.objects[0]["yardsticks"]) == 3


# the comparison


def test_the_comparison_has_the_model_first(at_home: Home) -> None:
    """Then its experts, the baselines, the best first, and what that means in a sentence."""
    lines = call("eval").text.splitlines()
    first = lines.index("predictor\tbits/char\t") + 1
    rows = [line.split("\t") for line in lines[first : first + 6]]
    (facts,) = call("eval", "--json").objects
    vocab = load_model(Path(MODEL)).vocab
    ids = vocab.encode(POEMS)
    expected = compute_baselines(ids[:3600], ids[3600:], context=ids[:3600], vocab=vocab)
    assert rows[0][:2] == ["this model", f"{facts['bits_per_char']:.3f}"]
    assert [row[0] for row in rows[1:3]] == ["its network alone", "its n-grams alone"]
    assert [row[:2] for row in rows[3:]] == [[one.name, f"{one.bits_per_char:.3f}"] for one in expected]
    assert [one["nats_per_char"] for one in facts["yardsticks"]] == [one.nats_per_char for one in expected]
    assert lines[first + 6] == "No verdict: too few characters (400); at least 1,000 are needed."
    assert lines[first + 7].startswith("Copied: ")
    assert facts["copied"]["written"]["num_chars"] == 60_000
    assert facts["copied"]["text"]["num_chars"] == 400
    assert facts["adapted"] is None


def test_a_training_text_gets_no_verdict(at_home: Home) -> None:
    """Nor a text most of which is."""
    assert "No verdict: 90% of this text is in the training text." in call("eval", "-", stdin=POEMS.encode()).text
    other = make_text(2000, seed=9)
    assert "yet: " in call("eval", "-", stdin=(other + POEMS[:1000]).encode()).text


def test_the_comparison_can_be_left_out(at_home: Home) -> None:
    """--no-yardsticks prints the score and those of the model's experts."""
    shown = call("eval", "--no-yardsticks").text
    assert shown.splitlines()[-1].startswith("its n-grams alone\t")
    (facts,) = call("eval", "--no-yardsticks", "--json").objects
    assert (facts["yardsticks"], facts["copied"]) == ([], None)


def test_another_text_is_compared_too(at_home: Home, tmp_path: Path) -> None:
    """On its own characters, by baselines of the training text; unknown characters count for none of them."""
    other = tmp_path / "other.txt"
    other.write_text(make_text(500, seed=4) + "é", encoding="utf-8")
    (facts,) = call("eval", str(other), "--json").objects
    assert (facts["num_chars"], facts["unknown"]) == (499, {"é": 1})
    assert len(facts["yardsticks"]) == 3
    assert facts["copied"]["text"]["num_chars"] == 499


def test_the_kernels_of_all_that_is_wanted_are_compiled_first(at_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for --adapt and for --inside gradient have those for scoring with them."""
    compiled: list[str] = []
    for name in ("for_scoring", "for_adapting", "for_inspecting"):
        monkeypatch.setattr(precompile, name, functools.partial(compiled.append, name))
    for args, names in (
        ((), ["for_scoring"]),
        (("--inside", "gradient"), ["for_inspecting"]),
        (("--adapt", "--inside", "gradient"), ["for_adapting", "for_inspecting"]),
    ):
        compiled.clear()
        assert call("eval", "--no-yardsticks", *args).code == 0
        assert compiled == names


def test_adapting_is_a_separate_score(at_home: Home) -> None:
    """It does not change the static one; at a rate of 0 they agree."""
    (plain,) = call("eval", "--json", "--no-yardsticks").objects
    (facts,) = call("eval", "--json", "--no-yardsticks", "--adapt").objects
    (still,) = call("eval", "--json", "--no-yardsticks", "--adapt", "--adapt-rate", "0").objects
    assert facts["nats_per_char"] == plain["nats_per_char"]
    assert facts["adapted"]["num_chars"] == plain["num_chars"]
    assert facts["adapted"]["nats_per_char"] < plain["nats_per_char"]
    assert still["adapted"]["nats_per_char"] == pytest.approx(plain["nats_per_char"], abs=1e-5)
    assert re.search(r"^adapting to the text\t\d\.\d{3}\tdynamic evaluation", call("eval", "--adapt").text, re.M)


# several models


def test_models_are_compared_side_by_side(desk: Path) -> None:
    """On the same text, the best first, as a table and as JSON; each score is that of the model alone."""
    assert call("train", "poems.txt", "--run", "worse", "--steps", "2", "-q", *TINY).code == 0
    assert call("train", "poems.txt", "--run", "better", "--steps", "20", "-q", *TINY).code == 0
    best, other = call("eval", "-m", "worse", "-m", "better", "--json").objects
    assert [Path(one["model"]).parent.name for one in (best, other)] == ["better", "worse"]
    for one in (best, other):
        (alone,) = call("eval", "-m", one["model"], "--json", "--no-yardsticks").objects
        assert one["nats_per_char"] == pytest.approx(alone["nats_per_char"], rel=1e-12)
        assert one["num_chars"] == alone["num_chars"] == 400
    assert (best["difference"], best["standard_error"], other["standard_error"]) == (0.0, None, None)
    assert other["difference"] == pytest.approx(other["nats_per_char"] - best["nats_per_char"])
    text = (make_text(3000, seed=4) + "é").encode()
    lines = call("eval", "-m", "worse", "-m", "better", "-", stdin=text).text.splitlines()
    assert lines[:3] == [
        "text\t-",
        "characters scored\t2,999",
        "characters left out\t1, unknown to at least one model",
    ]
    assert re.fullmatch(r"checkpoints/worse/model.safetensors\t\d\.\d{3}\t\+\d\.\d{3}\t0\.\d{3}", lines[-1])
    assert_refused(call("eval", "-m", "worse", "-m", "better", "--worst", "3"), 2, "--worst", "-m")
    assert_refused(call("eval", "-m", "worse", "-m", "better", "-", "--train-text", "poems.txt"), 2, "--train-text")


# lines and characters


def test_lines_and_characters_add_up_to_the_total(at_home: Home) -> None:
    """They are those of the held-out text, complete."""
    (facts,) = call("eval", "--json", "--no-yardsticks").objects
    lines = call("eval", "--per-line").objects
    chars = call("eval", "--per-char").objects
    assert "".join(one["char"] for one in chars) == HELD_OUT
    assert sum(one["nats"] for one in chars) == pytest.approx(facts["nats_per_char"] * facts["num_chars"], rel=1e-12)
    assert sum(one["bits"] for one in lines) == pytest.approx(facts["bits_per_char"] * facts["num_chars"], rel=1e-12)
    numbers = [one["line"] for one in lines]
    assert [one["text"] for one in lines] == POEMS.split("\n")[numbers[0] - 1 : numbers[-1]]
    assert numbers == list(range(1 + POEMS[:3600].count("\n"), 1 + POEMS.rstrip("\n").count("\n") + 1))
    assert sum(one["num_chars"] for one in lines) == facts["num_chars"]
    for one in chars:
        likely = dict(map(tuple, one["top"]))
        assert len(likely) == 5
        assert list(likely.values()) == sorted(likely.values(), reverse=True)
        assert (one["char"] in likely) == (one["rank"] <= 5)
        if one["rank"] <= 5:
            assert list(likely)[one["rank"] - 1] == one["char"]
            assert likely[one["char"]] == pytest.approx(np.exp(-one["nats"]), rel=1e-5)


def test_the_worst_lines_come_hardest_first(at_home: Home) -> None:
    """Short ones last; as a table and as JSON."""
    lines = call("eval", "--per-line").objects
    expected = sorted(lines, key=lambda one: (one["num_chars"] < 10, -one["bits"] / one["num_chars"]))[:3]
    assert call("eval", "--worst", "3", "--json").objects == expected
    rows = [line.split("\t") for line in call("eval", "--worst", "3").text.splitlines()]
    assert rows[0] == ["line", "bits/char", "bits", "unknown", "text"]
    assert [row[4] for row in rows[1:]] == [one["text"] for one in expected]


def test_lines_are_printed_as_they_are_in_the_file(at_home: Home) -> None:
    """With the first character, which is only fed, and with unknown ones, which make a line hard."""
    text = b"dorin bane lo\n\xe2\x98\x85\xe2\x98\x85\xe2\x98\x85\nd\xc3\xa9rin bane lo\n"
    lines = call("eval", "-", "--per-line", stdin=text).objects
    assert [(one["line"], one["text"], one["num_chars"], one["num_unknown"]) for one in lines] == [
        (1, "dorin bane lo", 13, 0),
        (2, "★★★", 1, 3),
        (3, "dérin bane lo", 13, 1),
    ]
    assert call("eval", "-", "--worst", "2", "--json", stdin=text).objects == [lines[1], lines[2]]


def test_lines_scored_by_themselves_do_not_depend_on_the_lines_before(at_home: Home) -> None:
    """The same line costs the same anywhere; together they are the score."""
    lines = call("eval", "-", "--per-line", "--documents", "lines", stdin=b"dorin\nbane\ndorin\n").objects
    running = call("eval", "-", "--per-line", stdin=b"dorin\nbane\ndorin\n").objects
    assert lines[0]["bits"] == pytest.approx(lines[2]["bits"], rel=1e-6)
    assert running[0]["bits"] != pytest.approx(running[2]["bits"], rel=1e-6)
    (facts,) = call("eval", "-", "--json", "--documents", "lines", stdin=b"dorin\nbane\ndorin\n").objects
    assert facts["num_chars"] == 17
    assert facts["bits_per_char"] * 17 == pytest.approx(sum(one["bits"] for one in lines), rel=1e-6)


@posix
def test_a_reader_that_has_enough_ends_it(at_home: Home) -> None:
    """As `| head` does: without a message."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stdout:
        assert call("eval", "--per-char", stdout=stdout) == (141, b"", "")


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (("--per-line", "--per-char"), 2, "--per-line"),
        (("--worst", "0"), 2, "--worst"),
        (("--adapt-rate", "0.1"), 2, "--adapt"),
        (("--adapt", "--adapt-rate", "2"), 2, "--adapt-rate must lie between 0 and 1, not 2"),
        (("--html", "."), 2, "--html"),
        (("--html", ""), 2, "--html"),
        (("--html", "nowhere/page.html"), 1, "nowhere/page.html"),
    ],
    ids=str,
)
def test_options_that_contradict_are_refused(at_home: Home, args: tuple[str, ...], code: int, part: str) -> None:
    """One thing is printed; a rate needs --adapt; a page needs a place."""
    assert_refused(call("eval", *args), code, part)


# the report page


def test_the_page_is_written(copied_home: Path) -> None:
    """In one step, with the log next to the model; the same page again."""
    assert call("eval", "--html", "page.html").code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "optimiser step" in page
    assert page.count("temperature") >= 3
    assert "Where the bits go" in page
    assert "What single units know" not in page  # takes time, so it is only shown if --inside asks for it
    assert call("eval", "--html", "again.html", "--per-line").err == "wrote again.html\n"
    assert Path("again.html").read_text(encoding="utf-8") == page
    shutil.copy(MODEL, "alone.safetensors")
    assert call("eval", "poems.txt", "-m", "alone.safetensors", "--no-yardsticks", "--html", "alone.html").code == 0
    assert "optimiser step" not in Path("alone.html").read_text(encoding="utf-8")
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []
    assert call("eval", "--inside", "units", "--html", "units.html").code == 0
    page = Path("units.html").read_text(encoding="utf-8")
    assert "What single units know" in page
    assert "Where the bits go" not in page


@posix
def test_the_page_may_go_to_a_pipe(at_home: Home, tmp_path: Path) -> None:
    """A pipe is written to, not replaced."""
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    assert call("eval", "--per-line", "--html", str(pipe)).code == 0
    reader.join(timeout=60)
    assert len(received[0]) > 40_000
    assert pipe.is_fifo()


# the terminal


@posix
def test_a_terminal_shows_the_text_coloured_by_surprisal(at_home: Home) -> None:
    """The start of the text in colours, with a legend."""
    code, shown = call_on_terminal("eval", "--no-yardsticks", COLORTERM="truecolor")
    assert code == 0
    assert b"\x1b[30;48;2;" in shown
    assert b"above 6" in shown
    assert HELD_OUT.split("\n")[0].encode() in re.sub(rb"\x1b\[[0-9;]*m", b"", shown)


@posix
def test_a_coloured_text_is_complete(at_home: Home, tmp_path: Path) -> None:
    """With its first character, which is only fed, and those that the model doesn't know."""
    path = tmp_path / "a.txt"
    path.write_text("dor Äna\nsa É lo\n", encoding="utf-8")
    code, shown = call_on_terminal("eval", str(path), "--no-yardsticks", COLORTERM="truecolor")
    assert code == 0
    assert "dor Äna\r\nsa É lo\r\n" in re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())


@posix
def test_no_color_means_no_colour(at_home: Home) -> None:
    """With NO_COLOR there is neither a coloured text nor any other colour."""
    code, shown = call_on_terminal("eval", "--no-yardsticks", NO_COLOR="1")
    assert code == 0
    assert b"bits per character" in shown
    assert b"above 6" not in shown
    colour = rb"\x1b\[[0-9;]*\b(3[0-9]|4[0-9]|9[0-7]|10[0-7])\b[0-9;]*m"
    assert not re.search(colour, shown)
    code, shown = call_on_terminal("eval", "--worst", "2", NO_COLOR="1")
    assert code == 0
    assert not re.search(colour, shown)


@posix
def test_columns_of_0_still_show_a_table(at_home: Home) -> None:
    """As some terminals report it."""
    code, shown = call_on_terminal("eval", "--no-yardsticks", COLUMNS="0")
    assert code == 0
    assert b"perplexity" in shown


def test_a_run_in_place_of_a_text_is_noticed(at_home: Home) -> None:
    """Other commands name the model first."""
    assert_refused(call("eval", "poems"), 2, "poems is a run, not a text; use -m poems")


def test_what_to_do_without_the_training_text_depends_on_the_command(desk: Path) -> None:
    """Only eval can score another text."""
    make_model(desk / "m.safetensors", "ab\n")
    outcome = call("eval", "-m", "m.safetensors")
    assert_refused(outcome, 3, "no record of its training text; name a TEXT to score another one")
    outcome = call("sample", "-m", "m.safetensors", "--no-copy", "5")
    assert_refused(outcome, 3, "no record of its training text")
    assert "TEXT" not in outcome.err
