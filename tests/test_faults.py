"""The benchmark of faults, in small: killed, starved, damaged, poisoned, a run ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "benchmarks" / "faults.py"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and POSIX signals")


def table(tmp_path, scale):
    """The rows that the program prints at a scale, as it records them; it must say that all held."""
    command = [sys.executable, str(PROGRAM), "--scale", scale, "--json", str(tmp_path / "rows.json")]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))


def check(rows):
    """Every row was tried, or says why it can't be here, and every try survived."""
    assert len(rows) > 20
    for row in rows:
        assert row["skipped"] or row["tried"] == row["survived"] > 0, row


def test_a_handful_of_each_fault(tmp_path):
    """About a minute of them."""
    check(table(tmp_path, "smoke"))


@pytest.mark.slow
def test_enough_of_each_fault_to_see_a_regression(tmp_path):
    """Some minutes of them."""
    check(table(tmp_path, "ci"))
