"""The benchmark of faults, in small: killed, starved, damaged, poisoned, a run ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "benchmarks" / "faults.py"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and POSIX signals")


def table(tmp_path, *options):
    """The rows that the program prints, as it records them; it must say that all held."""
    command = [sys.executable, str(PROGRAM), *options, "--json", str(tmp_path / "rows.json")]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))


def check(rows, *, count):
    """Every row was tried, or says why it can't be here, and every try survived."""
    assert len(rows) >= count
    for row in rows:
        assert row["skipped"] or row["tried"] == row["survived"] > 0, row


def test_a_few_of_the_faults_without_a_time_limit(tmp_path):
    """The package's own tests cover signals, exact resume and hostile files."""
    check(table(tmp_path, "--scale", "smoke", "--only", "lost flipped truncated"), count=3)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["smoke", "ci"])
def test_every_fault(tmp_path, scale):
    """A handful of each, and enough of each to see a regression."""
    check(table(tmp_path, "--scale", scale), count=21)
