"""What the commands tell about a model: comparison, lines and characters, adaptation, the page."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from charrnn.evaluation.assessment import yardsticks
from charrnn.model.file import load_model
from tests.conftest import make_text
from tests.test_cli import (
    POEMS,
    TINY,
    Call,
    Home,
    assert_refused,
    at_home,
    call,
    copied_home,
    desk,
    empty_cache,
    home,
    in_shell,
    on_terminal,
    posix,
)

__all__ = ["at_home", "call", "copied_home", "desk", "home"]  # fixtures

TEXT = POEMS[3600:]  # what is held out


def test_the_comparison_has_the_model_first(at_home: Home, call: Call) -> None:
    """Then the others, the best first, as the module that measures them has it; and a sentence."""
    outcome = call("eval")
    lines = outcome.out.decode().splitlines()
    first = lines.index("predictor\tbits/char\t") + 1
    rows = [line.split("\t") for line in lines[first : first + 5]]
    (facts,) = call("eval", "--json").objects
    vocab = load_model(Path("checkpoints/poems/model.safetensors")).vocab
    ids = vocab.encode(POEMS)
    expected = yardsticks(ids[:3600], ids[3600:], context=ids[:3600], vocab=vocab)
    assert rows[0][:2] == ["this model", f"{facts['bits_per_char']:.3f}"]
    assert [row[:2] for row in rows[1:]] == [[one.name, f"{one.bits_per_char:.3f}"] for one in expected]
    assert [one["nats_per_char"] for one in facts["yardsticks"]] == [one.nats_per_char for one in expected]
    assert lines[first + 5].startswith("Not good yet: the best of the others (")
    assert lines[first + 6].startswith("Copied: ")
    assert facts["copied"]["written"]["num_chars"] == 60_000
    assert facts["copied"]["text"]["num_chars"] == 400
    assert facts["adapted"] is None


def test_the_comparison_can_be_left_out(at_home: Home, call: Call) -> None:
    """Then there is the score alone."""
    outcome = call("eval", "--no-yardsticks")
    assert "predictor" not in outcome.out.decode()
    (facts,) = call("eval", "--no-yardsticks", "--json").objects
    assert (facts["yardsticks"], facts["copied"]) == ([], None)


def test_another_text_is_compared_too(at_home: Home, call: Call) -> None:
    """On its own characters, by what the training text teaches; characters that aren't known count for nobody."""
    Path("other.txt").write_text(make_text(500, seed=4) + "é", encoding="utf-8")
    (facts,) = call("eval", "other.txt", "--json").objects
    assert (facts["num_chars"], facts["unknown"]) == (499, {"é": 1})
    assert len(facts["yardsticks"]) == 4
    assert facts["copied"]["text"]["num_chars"] == 499


def test_without_the_training_text_there_is_a_score_all_the_same(copied_home: Path, call: Call) -> None:
    """And a line that says why there is no more; where the text was asked for, that is an error."""
    Path("other.txt").write_text(TEXT, encoding="utf-8")
    model = Path("checkpoints/poems/model.safetensors")
    Path("alone.safetensors").write_bytes(model.read_bytes())
    Path("moved.txt").write_text(POEMS, encoding="utf-8")
    home_text = load_model(model).provenance["text"]["paths"][0]
    kept = Path(home_text).read_bytes()
    os.rename(home_text, home_text + ".away")
    try:
        empty_cache()
        outcome = call("eval", "other.txt", "-m", "alone.safetensors", "--json")
        assert outcome.code == 0
        assert outcome.objects[0]["yardsticks"] == []
        assert "nothing to compare with" in outcome.err
        assert "--train-text" in outcome.err
        assert_refused(call("eval", "other.txt", "--adapt"), 3, "--train-text")
        assert_refused(call("eval", "--per-line"), 3, "--train-text")
        found = call("eval", "other.txt", "--train-text", "moved.txt", "--json")
        assert len(found.objects[0]["yardsticks"]) == 4
        assert call("eval", "other.txt", "--no-yardsticks").err == ""
    finally:
        os.rename(home_text + ".away", home_text)
    assert Path(home_text).read_bytes() == kept


def test_lines_and_characters_sum_to_the_total(at_home: Home, call: Call) -> None:
    """Of the held-out text, and each line is there in full."""
    (facts,) = call("eval", "--json", "--no-yardsticks").objects
    lines = call("eval", "--per-line").objects
    chars = call("eval", "--per-char").objects
    assert "".join(one["char"] for one in chars) == TEXT
    assert sum(one["nats"] for one in chars) == pytest.approx(facts["nats_per_char"] * facts["num_chars"], rel=1e-12)
    assert sum(one["bits"] for one in lines) == pytest.approx(facts["bits_per_char"] * facts["num_chars"], rel=1e-12)
    assert [one["text"] for one in lines] == TEXT.split("\n")[: len(lines)]
    assert [one["line"] for one in lines] == list(range(1, len(lines) + 1))
    assert sum(one["num_chars"] for one in lines) == facts["num_chars"]
    for one in chars:
        likely = dict(map(tuple, one["top"]))
        assert len(likely) == 5
        assert list(likely.values()) == sorted(likely.values(), reverse=True)
        assert (one["char"] in likely) == (one["rank"] <= 5)
        if one["rank"] <= 5:
            assert list(likely)[one["rank"] - 1] == one["char"]
            assert likely[one["char"]] == pytest.approx(np.exp(-one["nats"]), rel=1e-5)


def test_the_worst_lines_are_the_costliest(at_home: Home, call: Call) -> None:
    """Hardest first, of those that have ten characters; as a table and as JSON."""
    lines = [one for one in call("eval", "--per-line").objects if one["num_chars"] >= 10]
    expected = sorted(lines, key=lambda one: -one["bits"] / one["num_chars"])[:3]
    assert call("eval", "--worst", "3", "--json").objects == expected
    rows = [line.split("\t") for line in call("eval", "--worst", "3").out.decode().splitlines()]
    assert rows[0] == ["line", "bits/char", "bits", "text"]
    assert [row[3] for row in rows[1:]] == [one["text"] for one in expected]


@posix
def test_a_reader_that_has_enough_ends_it(home: Home) -> None:
    """As head does."""
    outcome = in_shell('"${charrnn[@]}" | head -n 1; echo ${PIPESTATUS[0]}', "eval", "--per-char", cwd=home.path)
    assert outcome.out.endswith(b"\n141\n")
    assert outcome.err == ""


def test_what_is_printed_is_one_thing(at_home: Home, call: Call) -> None:
    """Lines, characters or the worst; a rate for what adapts; a page where one can be written."""
    assert_refused(call("eval", "--per-line", "--per-char"), 2, "--per-line")
    assert_refused(call("eval", "--worst", "0"), 2, "--worst")
    assert_refused(call("eval", "--adapt-rate", "0.1"), 2, "--adapt")
    assert_refused(call("eval", "--adapt", "--adapt-rate", "2"), 2, "--adapt-rate")
    assert_refused(call("eval", "--html", "."), 2, "--html")
    assert_refused(call("eval", "--html", ""), 2, "--html")
    assert_refused(call("eval", "--html", "nowhere/page.html"), 1, "nowhere/page.html")


def test_adapting_is_another_figure(at_home: Home, call: Call) -> None:
    """Beside the static one, which it leaves alone; at a rate of 0 they agree."""
    (plain,) = call("eval", "--json", "--no-yardsticks").objects
    (facts,) = call("eval", "--json", "--no-yardsticks", "--adapt").objects
    (still,) = call("eval", "--json", "--no-yardsticks", "--adapt", "--adapt-rate", "0").objects
    assert facts["nats_per_char"] == plain["nats_per_char"]
    assert facts["adapted"]["num_chars"] == plain["num_chars"]
    assert facts["adapted"]["nats_per_char"] < plain["nats_per_char"]
    assert still["adapted"]["nats_per_char"] == pytest.approx(plain["nats_per_char"], abs=1e-5)
    shown = call("eval", "--adapt").out.decode()
    assert re.search(r"^adapting to the text\t\d\.\d{3}\tdynamic evaluation", shown, re.M)


def test_the_page_is_written(copied_home: Path, call: Call) -> None:
    """Whole or not at all, with the log that lies beside the model; the same again."""
    assert call("eval", "--html", "page.html").code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "optimiser step" in page
    assert page.count("temperature") >= 3
    call("eval", "--html", "again.html", "--per-line")
    assert Path("again.html").read_text(encoding="utf-8") == page
    Path("alone.safetensors").write_bytes(Path("checkpoints/poems/model.safetensors").read_bytes())
    assert call("eval", "poems.txt", "-m", "alone.safetensors", "--no-yardsticks", "--html", "alone.html").code == 0
    assert "There is no log" in Path("alone.html").read_text(encoding="utf-8")
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


@posix
def test_the_page_may_go_to_a_pipe(home: Home) -> None:
    """A place that is no file is written to, not replaced."""
    outcome = in_shell('"${charrnn[@]}" --html >(wc -c >&2)', "eval", "--per-line", cwd=home.path)
    assert outcome.code == 0
    assert int(re.search(r"^\d+$", outcome.err, re.M)[0]) > 40_000


def test_training_ends_with_the_comparison(desk: Path, call: Call) -> None:
    """On stderr; a page beside the model if asked for, of a finished run as well; nothing of it with --quiet."""
    words = ("train", "poems.txt", "--steps", "3", *TINY)
    outcome = call(*words, "--report")
    lines = outcome.err.splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("this model "))
    assert re.match(r"this model +\d\.\d{3} bits per character \(perplexity", lines[place])
    assert any(line.startswith("xz ") for line in lines[place : place + 5])
    assert outcome.out == b"checkpoints/poems/model.safetensors\n"
    page = Path("checkpoints/poems/report.html")
    assert page.exists()
    page.unlink()
    again = call(*words)
    assert "this model" not in again.err
    assert not page.exists()
    assert call(*words, "--report", "-q").err == ""
    assert page.exists()
    assert "report.html" in call(*words, "--report").err


@posix
def test_a_terminal_shows_what_the_text_cost(home: Home) -> None:
    """The beginning of the text in colours with a legend; none where colours aren't wanted."""
    code, shown = on_terminal("eval", "--no-yardsticks", "--threads", "1", cwd=home.path, COLORTERM="truecolor")
    assert code == 0
    assert b"\x1b[30;48;2;" in shown
    assert b"above 6" in shown
    assert TEXT.split("\n")[0].encode() in re.sub(rb"\x1b\[[0-9;]*m", b"", shown)
    code, shown = on_terminal("eval", "--no-yardsticks", "--threads", "1", cwd=home.path, NO_COLOR="1")
    assert code == 0
    assert b"above 6" not in shown
    assert b"\x1b[" not in shown


@posix
def test_a_terminal_shows_how_the_held_out_loss_moves(desk: Path) -> None:
    """A bar an evaluation; nothing of it in a pipe."""
    code, shown = on_terminal("train", "poems.txt", "--steps", "30", *TINY, cwd=desk)
    assert code == 0
    assert re.search("held-out characters.*[▁▂▃▄▅▆▇█]", shown.decode())


def test_a_mixture_stands_beside_its_experts(desk: Path, call: Call) -> None:
    """In what train, eval and info say; without n-grams nobody speaks of them."""
    Path("long.txt").write_text(make_text(60_000), encoding="utf-8")
    told = call("train", "long.txt", "--steps", "20", *TINY).err
    assert re.search(
        r"^\(n-grams of the text are mixed in; the network alone \d\.\d{4} nats, n-grams alone", told, re.M
    )
    (facts,) = call("eval", "--json").objects
    finished = [line for line in call("eval", "--no-yardsticks").out.decode().splitlines() if "\t" in line]
    rows = [line.split("\t")[0] for line in finished[-3:]]
    assert rows == ["this model", "its network alone", "its n-grams alone"]
    assert facts["nats_per_char"] < facts["experts"]["network"]
    assert facts["copied"]["network"]["num_chars"] == facts["copied"]["written"]["num_chars"] == 60_000
    chars = call("eval", "--per-char").objects
    assert sum(one["nats"] for one in chars) == pytest.approx(facts["nats_per_char"] * facts["num_chars"])
    (adapted,) = call("eval", "--json", "--no-yardsticks", "--adapt", "--adapt-rate", "0").objects
    assert adapted["adapted"]["nats_per_char"] == pytest.approx(facts["nats_per_char"], abs=1e-5)
    assert re.search(
        r"^n-grams\tof up to \d characters, [\d,]+, \d\.\d MB; mixed in$", call("info", "long").out.decode(), re.M
    )
    (card,) = call("info", "long", "--json").objects
    assert card["ngram"]["num_ngrams"] > 1000
    call("train", "long.txt", "--steps", "3", *TINY, "--run", "alone", "--no-mix")
    assert "n-grams\t" not in call("info", "alone").out.decode()
    assert call("eval", "-m", "alone", "--json").objects[0]["experts"] is None
