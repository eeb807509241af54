"""Models that are shared: what they say about their author, and what another's model can make a command do."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from charrnn.model.container import read_tensors, write_tensors
from charrnn.model.file import MAX_WEIGHT, load_model
from tests.cli.conftest import HELD_OUT, POEMS, TINY, assert_refused, call, empty_cache, posix

MODEL = "checkpoints/poems/model.safetensors"


def state_of(folder: Path) -> Path:
    """Return the newest state in a run's folder."""
    return max(folder.glob("state-*.safetensors"), key=lambda path: int(path.stem.removeprefix("state-")))


@posix
def test_a_model_of_someone_else_opens_no_file(copied_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No path in it is followed, not even for a comparison, and the cache stays empty."""
    private = copied_home / "private.txt"
    private.write_text(POEMS, encoding="utf-8")
    os.mkfifo(copied_home / "fifo")
    model = load_model(MODEL)
    shutil.rmtree(copied_home / "checkpoints")
    monkeypatch.setenv("XDG_CACHE_HOME", str(copied_home / "cache"))
    for name in ("private.txt", "fifo"):
        record = model.provenance["text"] | {"paths": [str(copied_home / name)]}
        description = {
            "config": asdict(model.config),
            "vocab": model.vocab.chars,
            "scores": model.scores,
            "provenance": model.provenance | {"text": record},
        }
        write_tensors(copied_home / "their.st", {**model.tensors, **model.ngram}, kind="model", meta=description)
        assert_refused(call("eval", "-m", "their.st"), 3, f"the training text, {name}, was not found", "--train-text")
        outcome = call("eval", "-", "-m", "their.st", "--json", stdin=POEMS[:100].encode())
        assert (outcome.code, outcome.objects[0]["yardsticks"]) == (0, [])
        assert "--train-text" in outcome.err
        assert str(copied_home) not in call("info", "their.st").text
    assert not [*(copied_home / "cache").rglob("*.ids")]
    assert call("eval", "-m", "their.st", "--train-text", str(private), "--json").objects[0]["num_chars"] == 400


def test_the_runs_own_state_says_where_its_text_is(desk: Path) -> None:
    """Also the held-out file; not for a copy of the model elsewhere, nor with a state of another text."""
    Path("held.txt").write_text(HELD_OUT, encoding="utf-8")
    for run, text in (("a", "poems.txt"), ("b", "held.txt")):
        given = ("--valid", "held.txt") if run == "a" else ()
        assert call("train", text, *given, "--run", run, "--steps", "2", "-q", *TINY).code == 0
    empty_cache()
    (facts,) = call("eval", "-m", "a", "--json").objects
    assert (facts["num_chars"], facts["text"]) == (len(HELD_OUT) - 1, "held.txt")
    empty_cache()
    shutil.copy("checkpoints/a/model.safetensors", "alone.st")
    refused = call("eval", "-m", "alone.st")
    assert_refused(refused, 3, "poems.txt, was not found", "--train-text")
    assert refused.err.count("--train-text") == 1
    given = ("--train-text", "poems.txt", "--train-text", "held.txt")
    assert call("eval", "-m", "alone.st", "--json", *given).objects[0]["nats_per_char"] == facts["nats_per_char"]
    assert_refused(call("eval", "-m", "alone.st", *given[:2]), 3, "--valid held.txt", "last")
    empty_cache()
    shutil.copy(state_of(Path("checkpoints/b")), state_of(Path("checkpoints/a")))
    assert_refused(call("eval", "-m", "a"), 3, "poems.txt, was not found", "--train-text")


@posix
def test_a_state_that_came_with_a_model_opens_no_other_file(copied_home: Path) -> None:
    """Someone may share a whole folder: a FIFO is not opened, and a text with another hash is not cached."""
    path = state_of(copied_home / "checkpoints/poems")
    tensors, meta = read_tensors(path, kind="state")
    os.mkfifo("fifo")
    Path("private.txt").write_text("My own secrets, in a file of mine.\n" * 100, encoding="utf-8")
    empty_cache()
    for name in ("fifo", "private.txt", "."):
        part = "not the text the model was trained on" if name == "private.txt" else "not found"
        text = meta["text"] | {"paths": [str(copied_home / name)]}
        write_tensors(path, tensors, kind="state", meta=meta | {"text": text})
        assert_refused(call("eval"), 3, part, "--train-text")
    assert not [*(Path(os.environ["XDG_CACHE_HOME"]) / "charrnn").glob("*.ids")]


def test_a_model_and_a_page_name_no_folder(copied_home: Path) -> None:
    """A shared file says nothing about where its author lives."""
    (copied_home / "held.txt").write_text(HELD_OUT, encoding="utf-8")
    given = ("--valid", str(copied_home / "held.txt"), "--init-from", str(copied_home / MODEL))
    args = ("train", str(copied_home / "poems.txt"), *given, "--run", "next", "--steps", "2", "--report", "-q")
    assert call(*args, "--threads", "1").code == 0
    folder = copied_home / "checkpoints/next"
    for name in ("model.safetensors", "report.html"):
        data = (folder / name).read_bytes()
        assert b"poems" in data
        assert str(copied_home.parent).encode() not in data
    assert call("eval", "-m", str(folder / "model.safetensors"), "--html", "page.html", "--no-yardsticks").code == 0
    assert str(copied_home.parent) not in Path("page.html").read_text(encoding="utf-8")
    (card,) = call("info", "next", "--json").objects
    assert card["provenance"]["text"]["paths"] == ["poems.txt"]
    assert card["provenance"]["split"]["valid"] == "held.txt"
    assert card["provenance"]["training"]["init_from"] == "poems"


@pytest.mark.parametrize("scale", [MAX_WEIGHT, 3e38])
def test_huge_weights_are_a_number_or_an_error(copied_home: Path, scale: float) -> None:
    """No warning of a library reaches the terminal, whatever the weights."""
    tensors, meta = read_tensors(Path(MODEL), kind="model")
    signs = np.random.default_rng(0)
    for name, tensor in tensors.items():
        if not name.startswith("ngram."):
            tensor[...] = scale * signs.choice([-1, 1], tensor.shape)
    write_tensors(Path(MODEL), tensors, kind="model", meta=meta)
    sample = ("sample", "-n", "9", "--seed", "1")
    for command in (sample, ("eval", "-", "--no-yardsticks"), ("eval", "--adapt", "--json")):
        outcome = call(*command, "--threads", "1", stdin=POEMS[:100].encode())
        if scale > MAX_WEIGHT:
            assert_refused(outcome, 4, f"{MODEL}: damaged or not a charrnn model (embedding.weight has values")
        else:
            assert outcome.code in (0, 7 if "--adapt" in command else 0)
            if outcome.code == 7:
                assert outcome.err == "charrnn: the adapting model diverged; use a smaller --adapt-rate\n"
            elif command[0] == "eval":
                assert outcome.err == ""
            assert b"nan" not in outcome.out.lower()
