"""The benchmarks run: on networks so small that their figures mean nothing."""

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import charrnn
from tests.cli.conftest import call

FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALL = ["--rounds", "1", "--seconds", "0.01", "--product", "64"]


def load(name, monkeypatch, *arguments):
    """A benchmark as a module, with these command-line arguments."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return module


def test_train_speed_prints_a_row_per_cell(tmp_path, monkeypatch, capsys):
    """The table, and the same as JSON; the peak memory, which takes processes of its own, is left out."""
    target = tmp_path / "found.json"
    program = load("train_speed", monkeypatch, *SMALL, "--cells", "rnn,lstm", "--sizes", "2x8", "--json", target)
    monkeypatch.setattr(program, "SIZES", [(2, 8, 4)])
    monkeypatch.setattr(program, "peak_memory", lambda *_: 0)
    program.main()
    assert "| rnn 2x8 |" in capsys.readouterr().out
    assert [row["cell"] for row in json.loads(target.read_text())["rows"]] == ["rnn", "lstm"]


def test_scaling_computes_its_tables_from_what_it_measured(tmp_path, monkeypatch, capsys):
    """One process measures; the figures of two are made up from it, with a slower message."""
    program = load("scaling", monkeypatch, "--size", "1x8", "--lanes", "4", "--processes", "1", "2", "--rounds", "1")
    alone = {}

    def spread_over(size, options):
        if not alone:
            alone.update(program.measure(options, program.Ranks()))
        return {**alone, "short": size * 1e-4, "long": size * 1e-3}

    monkeypatch.setattr(program, "spread_over", spread_over)
    program.main()
    out = capsys.readouterr().out
    assert "| 2 | " in out
    assert "100 Gbit/s, 4 lanes each" in out


def test_lists_are_measured_in_canonical_form(tmp_path, monkeypatch, capsys):
    """Here the upper-case form; a form that starts with B is not valid. The training list is read once."""
    words = ["ab", "ba", "cab", "abc", "cc"] * 20
    (tmp_path / "words.txt").write_text("\n".join(words))
    (tmp_path / "test.txt").write_text("ab\ncab\n")
    monkeypatch.chdir(tmp_path)
    charrnn.train("words.txt", documents="lines", steps=5, hidden_size=16, batch_size=4, seq_len=16)
    code = "import sys; [print('' if line[:1] == 'b' else line.strip().upper()) for line in sys.stdin]"
    check = shlex.join([sys.executable, "-c", code])
    arguments = ["words.txt", "--run", "words", "--check", check, "--known", "known.txt", "--samples", "50"]
    for _ in range(2):
        program = load(
            "lists", monkeypatch, *arguments, "--test", "test.txt", "--published", "valid=0.5,fcd=1", "--json", "o.json"
        )
        program.main()
        found = json.loads(Path("o.json").read_text())
        out = capsys.readouterr().out
        assert f"| valid | {found['valid']:.4f} | 0.5000 |" in out
        assert "| fcd |  | 1.0000 |" in out
        assert set(Path("known.txt").read_text().split()) == {"AB", "CAB", "ABC", "CC"}
        assert found.keys() == {"valid", "unique@1k", "unique@10k", "new", "bits"}
        Path("words.txt").write_text("not read again")
    samples = charrnn.load("words").sample(num_samples=50, temperature=1.0, seed=1)
    valid = [sample.upper() for sample in samples if sample and sample[0] != "b"]
    assert found["valid"] == len(valid) / 50
    assert found["unique@1k"] == found["unique@10k"] == len(set(valid)) / len(valid)
    assert found["new"] == len(set(valid) - {"AB", "CAB", "ABC", "CC"}) / len(set(valid))


def test_labels_of_a_list_are_measured(tmp_path, monkeypatch, capsys):
    """The figures of `charrnn eval --by-label`, of a list or of the held-out part; known texts are the column's."""
    rows = [f'"{word}\n",{kind}' for word, kind in [("ab", "x"), ("ba", "y"), ("cab", "x")] * 20]
    (tmp_path / "words.csv").write_text("\n".join(["word,kind", *rows, ""]))
    (tmp_path / "test.csv").write_text("word,kind\nab,x\nba,y\ncab,x\n")
    monkeypatch.chdir(tmp_path)
    sizes = {"steps": 5, "hidden_size": 16, "batch_size": 4, "seq_len": 16}
    charrnn.train("words.csv", column="word", label="kind", **sizes)
    records = ["--column", "word", "--label", "kind"]
    for text in ([], ["test.csv"]):
        test = ["--test", *text] if text else []
        words = ["words.csv", "--run", "words", *records, *test, "--samples", "20", "--json", "o.json"]
        program = load("lists", monkeypatch, *words)
        monkeypatch.setattr(program, "charrnn_json", lambda *words: call(*words, "--json").objects[0])
        program.main()
        (expected,) = call("eval", *text, "--by-label", "--json").objects
        found = json.loads(Path("o.json").read_text())
        assert found["accuracy"] == expected["accuracy"]
        assert found["majority"] == expected["majority"] == pytest.approx(2 / 3)
        assert found["bits given label"] == expected["bits_per_char"]
        assert found["bits"] == expected["bits_per_char_without_label"]
        assert f"| accuracy | {found['accuracy']:.4f} |  |" in capsys.readouterr().out
    assert program.read_list(Path("words.csv"), "word")[:3] == ["ab\n", "ba\n", "cab\n"]
    with pytest.raises(SystemExit):
        load("lists", monkeypatch, "words.csv", "--label", "kind").main()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["train_speed.py", *SMALL, "--cells", "rnn", "--sizes", "2x128"],
        ["scaling.py", "--size", "1x8", "--lanes", "4", "--processes", "1", "2", "--rounds", "1"],
    ],
    ids=lambda command: command[0],
)
def test_benchmarks_run_as_programs(tmp_path, command):
    """With the processes of their own that they start."""
    target = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, str(FOLDER / command[0]), *command[1:], "--json", str(target)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(target.read_text())
