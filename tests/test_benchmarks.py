"""The benchmarks run: on networks so small that their figures mean nothing."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

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
