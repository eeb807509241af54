"""`charrnn eval --inside`: what a model has learnt, in a pipe, as JSON, on a terminal and on the page."""

import re
from pathlib import Path

import pytest

from charrnn.cli.options import add_all_parts
from charrnn.inspection.findings import PARTS
from charrnn.inspection.reach import NUM_WARM_UP
from tests.cli.conftest import HELD_OUT, POEMS, TINY, Home, assert_refused, call, call_on_terminal, posix


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--inside"], ["--inside", "all"]),
        (["--inside", "memory"], ["--inside", "memory"]),
        (["--inside", "chapter.txt"], ["--inside", "all", "chapter.txt"]),
        (["chapter.txt", "--inside"], ["chapter.txt", "--inside", "all"]),
        (["--inside", "--json"], ["--inside", "all", "--json"]),
        (["--inside", "units", "--inside", "bits"], ["--inside", "units", "--inside", "bits"]),
        (["--inside=memory", "a"], ["--inside=memory", "a"]),
        (["--", "--inside"], ["--", "--inside"]),
        (["--json"], ["--json"]),
    ],
)
def test_inside_takes_a_part_and_nothing_else(args: list[str], named: list[str]) -> None:
    """Above all, it does not take TEXT."""
    assert add_all_parts(args) == named


def test_all_parts_are_in_one_object(at_home: Home) -> None:
    """Beside the score, of which the classes are another view."""
    (facts,) = call("eval", "--inside", "--json", "--no-yardsticks").objects
    (plain,) = call("eval", "--json", "--no-yardsticks").objects
    inside = facts["inside"]
    assert list(inside) == list(PARTS)
    assert {**facts, "inside": None} == plain
    assert sum(one["bits"] for one in inside["bits"]) == pytest.approx(
        facts["bits_per_char"] * facts["num_chars"], abs=1e-9
    )
    assert sum(one["num_chars"] for one in inside["bits"]) == facts["num_chars"]
    memory = inside["memory"]
    assert len(memory["ages"]) == len(memory["network"]["bits"]) == len(memory["network"]["errors"])
    assert memory["max_age"] == len(HELD_OUT) // 3
    gradient = inside["gradient"]
    assert len(gradient["median"]) == len(gradient["lower"]) == len(HELD_OUT) // 2 - NUM_WARM_UP
    assert gradient["half_life"] > 0
    assert len(inside["units"]) == 8
    assert inside["units"][0].keys() == {"index", "feature", "correlation"}
    assert len(inside["alike"][0]["nearest"]) == 3


def test_parts_can_be_chosen(at_home: Home) -> None:
    """One or several; the others are null."""
    (facts,) = call("eval", "--inside", "bits", "--inside", "alike", "--json", "--no-yardsticks").objects
    assert [part for part, found in facts["inside"].items() if found is not None] == ["bits", "alike"]
    shown = call("eval", "--inside", "bits", "--no-yardsticks").text
    assert "class\tcharacters\tbits\tshare\tbits/char" in shown
    assert "The network uses" not in shown


def test_a_pipe_gets_tables_and_sentences(at_home: Home) -> None:
    """After the score."""
    lines = call("eval", "--inside", "--no-yardsticks").text.splitlines()
    text = "\n".join(lines)
    assert lines.index("steps back\tgradient norm\tlower quartile\tupper quartile") > 5
    assert re.search(r"^characters known\tbits/char more\t±", text, re.M)
    assert re.search(r"^The network uses .*character", text, re.M)
    assert re.search(r"^The gradient (vanishes|holds|explodes)", text, re.M)
    assert re.search(r"^\d+\t[a-z ']+\t[+-]\d\.\d\d$", text, re.M)
    assert re.search(r"^Most bits go to ", text, re.M)
    assert re.search(r"^newline\t\S+ \S+ \S+\t", text, re.M)
    assert "\x1b" not in text


def test_a_text_can_be_looked_at(at_home: Home) -> None:
    """A given one, before or after the option, also from stdin."""
    outcomes = [
        call("eval", *args, "--json", "--no-yardsticks", stdin=POEMS.encode()).objects
        for args in (("-", "--inside", "memory"), ("--inside", "memory", "-"))
    ]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0]["num_chars"] == 3999
    assert outcomes[0][0]["inside"]["memory"]["num_places"] == 500


@pytest.mark.parametrize("text", ["ab", "dorin bane\n" * 4])
def test_a_short_text_has_fewer_parts(at_home: Home, text: str) -> None:
    """What it is too short for is null in JSON, and named on stderr."""
    outcome = call("eval", "-", "--inside", "--json", "--no-yardsticks", stdin=text.encode())
    assert outcome.code == 0
    inside = outcome.objects[0]["inside"]
    assert inside["units"] is None
    assert inside["bits"]
    assert "too short" in outcome.err
    assert call("eval", "-", "--inside", "--no-yardsticks", stdin=text.encode()).code == 0


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--inside=memories",), ("memories", "memory, gradient, units, bits, alike")),
        (("--inside", "--per-line"), ("--inside", "--per-line")),
        (("--inside", "--worst", "3"), ("--inside", "--worst")),
        (("--inside", "-m", "poems", "-m", "other"), ("--inside", "-m")),
    ],
)
def test_inside_is_refused_where_it_has_no_effect(at_home: Home, args: tuple[str, ...], named: tuple[str, ...]) -> None:
    """In one line that names the options."""
    assert_refused(call("eval", *args), 2, *named)


@pytest.mark.parametrize(
    "options",
    [("--cell", "lstm", "--num-layers", "2", "--no-mix"), ("--bytes",), ("--documents", "lines"), ("--cell", "rnn")],
)
def test_every_kind_of_model_has_an_inside(desk: Path, options: tuple[str, ...]) -> None:
    """Bytes, documents, models without n-grams, each cell, several layers."""
    Path("poems.txt").write_text(POEMS.replace("dorin", "dorïn"), encoding="utf-8")
    assert call("train", "poems.txt", "--steps", "3", "-q", *TINY, *options).code == 0
    outcome = call("eval", "--inside", "--json", "--no-yardsticks")
    assert outcome.code == 0
    facts = outcome.objects[0]
    assert facts["inside"]["bits"]
    assert facts["inside"]["gradient"]
    assert facts["inside"]["memory"]
    total = sum(one["bits"] for one in facts["inside"]["bits"])
    assert total == pytest.approx(facts["bits_per_char"] * facts["num_chars"], abs=1e-9)
    assert call("eval", "--inside", "--no-yardsticks").code == 0


@posix
@pytest.mark.parametrize("columns", [30, 100])
def test_a_terminal_shows_the_text_coloured_by_units(at_home: Home, columns: int) -> None:
    """The first lines, once for each unit; without colours there is only the table."""
    code, shown = call_on_terminal(
        "eval", "--inside", "units", "--no-yardsticks", columns=columns, COLORTERM="truecolor"
    )
    assert code == 0
    assert b"activation" in shown
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", shown)
    assert plain.count(HELD_OUT.split("\n")[0][:20].encode()) == 9  # surprisal, and eight units
    assert max(map(len, plain.decode().splitlines())) <= columns
    code, shown = call_on_terminal("eval", "--inside", "units", "--no-yardsticks", columns=columns, NO_COLOR="1")
    assert code == 0
    assert b"activation" not in shown


def test_the_page_has_what_is_inside(at_home: Home, tmp_path: Path) -> None:
    """Its sections only if they are asked for."""
    page = tmp_path / "page.html"
    assert call("eval", "--inside", "memory", "--no-yardsticks", "--html", str(page)).code == 0
    assert "The network uses" in page.read_text(encoding="utf-8")
    assert call("eval", "--no-yardsticks", "--html", str(page)).code == 0
    assert "The network uses" not in page.read_text(encoding="utf-8")
