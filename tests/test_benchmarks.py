"""The benchmarks run: on networks so small that what they print means nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALL = ["--rounds", "1", "--seconds", "0.01", "--product", "64"]


def run(folder, program, *options):
    """What a benchmark prints, and writes as JSON."""
    target = folder / "found.json"
    command = [sys.executable, str(FOLDER / program), *options, "--json", str(target)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(target.read_text())


def test_training_on_a_cpu(tmp_path):
    """A line a cell."""
    out, found = run(tmp_path, "train_speed.py", *SMALL, "--cells", "rnn,lstm", "--sizes", "2x128")
    assert "| rnn 2x128 |" in out
    assert [row["cell"] for row in found["rows"]] == ["rnn", "lstm"]


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_training_on_a_gpu_which_a_cpu_plays(tmp_path, precision):
    """A line a cell and number of lanes."""
    options = ["--device", "cpu", "--precision", precision, "--cells", "rnn,gru", "--sizes", "2x8", "--lanes", "2,3"]
    out, found = run(tmp_path, "gpu_speed.py", *SMALL, *options)
    assert "| gru 2x8 | 3 |" in out
    assert [(row["network"], row["lanes"]) for row in found["rows"]][1:3] == [("rnn 2x8", 3), ("gru 2x8", 2)]
    assert all(row["ratio"] > 0 for row in found["rows"])


def test_several_processes(tmp_path):
    """What was measured, and what is expected of more."""
    out, found = run(tmp_path, "scaling.py", "--size", "1x8", "--lanes", "4", "--processes", "1", "2", "--rounds", "1")
    assert "| 2 | " in out
    assert "100 Gbit/s, 4 lanes each" in out
    assert set(found["rounds"][0]) == {"1", "2"}
