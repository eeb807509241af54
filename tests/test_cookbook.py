"""What the cookbook promises is what happens: its commands run on small texts, with training shortened."""

import csv
import io
import itertools
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import charrnn
from tests.cli.conftest import Outcome, call, posix
from tests.conftest import make_text

PAGE = (Path(__file__).parent.parent / "docs/cookbook.md").read_text(encoding="utf-8")
RECIPES = {recipe.split("\n")[0]: recipe for recipe in PAGE.split("\n## ")[1:]}
SHORT = ("--steps", "3", "--hidden-size", "32")
MOST = 15  # lines of a recipe
CODE = re.compile(r"```(\w+)\n(.*?)```", re.S)
TUNE = "X:{}\nT:Untitled\nM:6/8\nL:1/8\nK:D\nABc def|gab c3|\n\n"
RDKIT = """
class RDLogger:
    DisableLog = staticmethod(lambda name: None)
class Chem:
    MolFromSmiles = staticmethod(lambda smiles: smiles[0] == "C")
"""

pytestmark = posix


def code(title: str, language: str) -> Iterator[str]:
    """The blocks of a recipe in one language."""
    return (block for name, block in CODE.findall(RECIPES[title]) if name == language)


def run_in_shell(command: str, text: bytes = b"") -> bytes:
    """What bash prints for a command that reads a text."""
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], input=text, check=True, capture_output=True).stdout


def run_line(line: str) -> Outcome | None:
    """Run a line of a recipe: what is charrnn's in this process, the rest, such as a pipe or `$(date)`, in bash."""
    found = re.fullmatch(r"charrnn (.*?)(?: ((?:\||>) .*))?", line)
    if found is None:
        run_in_shell(line)
        return None
    ours, rest = found.groups()
    arguments = run_in_shell(f"printf '%s\\0' {ours}").decode().split("\0")[:-1]
    outcome = call(*arguments, *(SHORT if arguments[0] == "train" else ()), stdin=b"ba\ndor\n")
    assert outcome.code == 0, f"{line}\n{outcome.err}"
    if rest:
        run_in_shell(f"cat {rest}", outcome.out)
    return outcome


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The recipes' texts."""
    text = make_text(3000)
    lines = text.split("\n")[:-1]
    names = [word.title() + other for word in text.split()[:60] for other in ("in", "dor", "a")]
    stanzas = "\n\n".join("\n".join(lines[at : at + 4]) for at in range(0, len(lines), 4)) + "\n"
    (tmp_path / "names.txt").write_text("\n".join(["Man", "Mirra", *names]).replace(".", "") + "\n")
    for name in ("diary.txt", "titles.txt", "app.log"):
        (tmp_path / name).write_text(text + "I should have .\n")
    (tmp_path / "today.log").write_text("".join(f"{line}\n" for line in lines[:20]) + "%%%% 17\n")
    (tmp_path / "poems.txt").write_text(stanzas + "The kettle sang.\n")
    (tmp_path / "more.txt").write_text(make_text(1000, seed=1))
    (tmp_path / "newest.txt").write_text(make_text(1000, seed=2))
    (tmp_path / "molecules.smi").write_text("".join(f"C{'CO' * (k % 7)}N{'C' * (k % 5)}\n" for k in range(200)))
    (tmp_path / "tunes.abc").write_text("".join(TUNE.format(k) for k in range(1, 60)))
    with (tmp_path / "films.csv").open("w", newline="") as file:
        rows = [(name, ("Horror", "Comedy")[k % 2]) for k, name in enumerate(names)]
        csv.writer(file).writerows([("title", "genre"), *rows])
    with (tmp_path / "languages.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "language"), *rows])
    for author in ("Anna", "Ben"):
        (tmp_path / "authors" / author).mkdir(parents=True)
        (tmp_path / "authors" / author / "one.txt").write_text(f"{author} ".join(stanzas.split(" ")))
    (tmp_path / "letter.txt").write_text("\n\n".join(lines[:3]) + "\n")
    (tmp_path / "rdkit.py").write_text(RDKIT)  # stands in for the real one
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("title", [title for title in RECIPES if "```sh" in RECIPES[title]])
def test_the_commands_of_each_recipe_run(folder, title):
    """In order; what they write is not empty."""
    programs = list(code(title, "python"))
    if "jq " in RECIPES[title] and shutil.which("jq") is None:
        pytest.skip("needs jq")
    if title == "Molecules":
        (folder / "valid.py").write_text(programs[0])
    for block in code(title, "sh"):
        for line in block.splitlines():
            outcome = run_line(line)
            assert outcome is None or outcome.out, line
            for target in re.findall(r"(?:> |tee -a |--output |--html )(\S+)$", line):
                assert Path(target).stat().st_size or target == "new.smi", line


def make_catalogue(names: dict[str, str]) -> bytes:
    """A file of gettext: each name and its translation, in the order of the names."""
    texts = [text.encode() + b"\0" for text in [*sorted(names), *(names[name] for name in sorted(names))]]
    starts = itertools.accumulate((len(text) for text in texts), initial=28 + 8 * len(texts))
    table = b"".join(struct.pack("<2I", len(text) - 1, start) for text, start in zip(texts, starts, strict=False))
    return struct.pack("<7I", 0x950412DE, 0, len(names), 28, 28 + 4 * len(texts), 0, 0) + table + b"".join(texts)


def test_names_are_listed_by_language(folder, monkeypatch):
    """Short translations that differ from the English name, with the language; the commands read the list."""
    header = {"": "Content-Type: text/plain; charset=UTF-8\n" + 60 * "x"}
    names = {"de": {f"City {k}": f"Stadt {k}" for k in range(99)}, "fi": {"Peru": "Peru", "Spain": "Espanja"}}
    for language, translations in names.items():
        (folder / language / "LC_MESSAGES").mkdir(parents=True)
        (folder / language / "LC_MESSAGES" / "names.mo").write_bytes(make_catalogue(header | translations))
    monkeypatch.setitem(sys.modules, "pycountry", SimpleNamespace(LOCALES_DIR=str(folder)))
    (program,) = code("Which language is this name?", "python")
    exec(compile(program, "names.py", "exec"), {})
    rows = list(csv.reader((folder / "languages.csv").read_text().splitlines()))
    assert rows == [["name", "language"], ["Espanja", "fi"], *sorted([f"Stadt {k}", "de"] for k in range(99))]


def test_every_odd_line_of_a_pipe_is_printed(folder, monkeypatch, capsys):
    """Here the one with characters that the model doesn't know; a threshold for real models is too low for this one."""
    run_line(next(code("Odd lines in a log", "sh")).splitlines()[0])
    (program,) = code("Odd lines in a log", "python")
    monkeypatch.setattr(sys, "stdin", io.StringIO((folder / "today.log").read_text()))
    exec(compile(program.replace("> 4", "> 400"), "odd.py", "exec"), {})
    assert capsys.readouterr().out == "%%%% 17\n"


def test_the_makefile_makes_its_list_once(folder):
    """It says what it would run; with a list that is newer than the text, nothing."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    (makefile,) = code("A Makefile", "make")
    (folder / "Makefile").write_text(makefile)
    commands = run_in_shell("make -n new-names.txt").decode().splitlines()
    assert [command.split()[1] for command in commands] == ["train", "sample"]
    for command in commands:
        run_line(command)
    assert len((folder / "new-names.txt").read_text().splitlines()) == 100
    assert b"up to date" in run_in_shell("make -n new-names.txt")


def test_the_notebook_cell_runs(folder, monkeypatch, capsys):
    """A text for each temperature, and a score."""
    (cell,) = code("A notebook cell", "python")
    exec(compile(cell.replace("minutes=2", "steps=3, hidden_size=32"), "cell", "exec"), {})
    out = capsys.readouterr().out
    assert [temperature in out for temperature in ("0.5 The ", "0.8 The ", "1.1 The ")] == [True] * 3
    assert out.endswith(" bits per character\n")
    assert charrnn.load("poems").sample("The ", length=80, temperature=0.5, seed=1) in out


@pytest.mark.parametrize("title", RECIPES)
def test_recipes_are_short(title):
    """Blank lines and the title aside."""
    lines = [line for line in RECIPES[title].splitlines()[1:] if line and not line.startswith("```")]
    assert len(lines) <= MOST
