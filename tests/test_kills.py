"""Real processes, really killed: whatever the moment, the run ends as if nothing had happened."""

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from charrnn.config import CELLS
from tests.conftest import make_text

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")]


def digests(folder: Path) -> list[str]:
    """SHA-256 of the model and the newest state."""
    newest = max(folder.glob("state-*.safetensors"), key=lambda path: int(path.stem.removeprefix("state-")))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "model.safetensors", newest)]


@pytest.mark.parametrize("cell", CELLS)
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(cell, tmp_path):
    """SIGKILL up to five times, the same command each time; also in the middle of writing."""
    (tmp_path / "text.txt").write_text(make_text(20_000), encoding="utf-8")
    sizes = ["--cell", cell, "--hidden-size", "32", "--num-layers", "2", "--batch-size", "8", "--seq-len", "16"]
    command = [
        sys.executable,
        "-m",
        "charrnn",
        "train",
        "text.txt",
        "--quiet",
        "--threads",
        "1",
        "--steps",
        "1500",
        *sizes,
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([*command, "--run", "whole"], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)

    rng, kills = random.Random(cell), 0
    for _ in range(5):
        process = subprocess.Popen(
            [*command, "--run", "killed"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(2.0, 5.0))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills > 0
    subprocess.run([*command, "--run", "killed"], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert digests(tmp_path / "checkpoints" / "killed") == digests(tmp_path / "checkpoints" / "whole")
