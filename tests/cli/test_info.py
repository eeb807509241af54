"""`charrnn info`: the list of runs, one model, the cache."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import POEMS, Home, assert_refused, call, call_on_terminal, make_model, posix, read_log


def test_runs_are_listed(copied_home: Path) -> None:
    """Oldest first, one line each under a header, with the score in bits."""
    make_model(Path("checkpoints/newer/model.safetensors"), "ab")
    outcome = call("info")
    rows = [line.split("\t") for line in outcome.text.splitlines()]
    bits = read_log(copied_home / "checkpoints/poems")[-1]["bits_per_char"]
    assert (outcome.code, outcome.err) == (0, "")
    assert [row[0] for row in rows] == ["run", "poems", "newer"]
    assert "gru 1x16" in rows[1]
    assert f"{bits:.3f} bits/char" in rows[1]
    assert "poems.txt" in rows[1]


def test_one_model_is_described(at_home: Home) -> None:
    """With sizes, text, split and score."""
    outcome = call("info", "poems")
    rows = dict(line.split("\t") for line in outcome.text.splitlines())
    assert (outcome.code, outcome.err) == (0, "")
    assert rows["model"] == "checkpoints/poems/model.safetensors"
    assert rows["network"] == "gru 1x16"
    assert rows["text"] == "poems.txt"
    assert "3,600" in rows["split"]
    assert "bits/char" in rows["score"]
    assert "None" not in rows["training"]


@pytest.mark.parametrize("which", [(), ("poems",)])
def test_json_has_the_same_facts(at_home: Home, which: tuple[str, ...]) -> None:
    """As values, one object per model."""
    outcome = call("info", *which, "--json")
    (card,) = outcome.objects
    assert (outcome.code, outcome.err) == (0, "")
    assert card["run"] == "poems"
    assert card["config"]["hidden_size"] == 16
    assert card["vocab"] == "".join(sorted(set(POEMS)))
    assert card["scores"]["nats_per_char"] == read_log(at_home.path / "checkpoints/poems")[-1]["nats_per_char"]


@pytest.mark.parametrize("args", [("info",), ("info", "--json"), ("sample",), ("eval",)], ids=" ".join)
def test_without_a_model_the_way_to_make_one_is_named(desk: Path, args: tuple[str, ...]) -> None:
    """An empty folder is not an empty list."""
    assert_refused(call(*args), 4, "checkpoints", "charrnn train TEXT")


def test_a_damaged_model_does_not_hide_the_others(copied_home: Path) -> None:
    """It is named on stderr, the others are listed, and the exit code is the damaged one's."""
    bad = Path("checkpoints/bad/model.safetensors")
    bad.parent.mkdir()
    bad.write_bytes(b"nothing")
    outcome = call("info")
    assert [line.split("\t")[0] for line in outcome.text.splitlines()] == ["run", "poems"]
    reason = "damaged or not a charrnn model (its header is too long for the file, or missing)"
    assert (outcome.code, outcome.err) == (4, f"charrnn: {bad}: {reason}\n")
    assert [card["run"] for card in call("info", "--json").objects] == ["poems"]


def test_a_run_without_a_model_is_named(copied_home: Path) -> None:
    """It was stopped before its first evaluation, and can be resumed."""
    for path in Path("checkpoints/poems").glob("model*"):
        path.unlink()
    outcome = call("info")
    assert (outcome.code, outcome.out) == (0, b"run\tnetwork\tparameters\tscore\theld-out bits\ttrained on\n")
    assert outcome.err.startswith("run 'poems' was stopped before it saved a model")
    assert "the same charrnn train command resumes it" in outcome.err


def test_the_cache_is_described(at_home: Home) -> None:
    """Where it is, how large, and how to empty it."""
    outcome = call("info", "--cache")
    rows = dict(line.split("\t") for line in outcome.text.splitlines())
    (facts,) = call("info", "--cache", "--json").objects
    assert (outcome.code, outcome.err) == (0, "")
    assert rows["folder"] == facts["folder"]
    assert int(rows["texts"]) == facts["num_texts"] > 0
    assert re.match(r"[\d,.]+ MB \(limit [\d,]+ MB; ", rows["size"])
    assert re.fullmatch(r"[\d,.]+ MB", rows["compiled kernels"])
    assert facts["kernel_bytes"] > 0
    assert rows["to empty it"] == facts["empty"] == f"rm -r {shlex.quote(facts['folder'])}"
    assert_refused(call("info", "toy", "--cache"), 2, "--cache and MODEL can't be combined")


def test_a_cache_that_is_described_is_not_created(tmp_path: Path) -> None:
    """Reading has no effects. In a new interpreter, because loading kernels creates their folder once."""
    folder = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-m", "charrnn", "info", "--cache", "--json"],
        env={**os.environ, "CHARRNN_CACHE": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout)
    assert (facts["folder"], facts["num_texts"], facts["kernel_bytes"]) == (str(folder), 0, 0)
    assert not folder.exists()


@posix
def test_a_terminal_shows_all_of_a_long_path(desk: Path) -> None:
    """A path longer than the line is folded, not cut."""
    name = "n" * 150
    make_model(desk / "checkpoints" / name / "model.safetensors", "ab")
    code, shown = call_on_terminal("info", name)
    assert code == 0
    assert sum(len(run) for run in re.findall(rb"n{30,}", shown)) == 150
