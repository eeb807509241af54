"""Any text by the commands themselves: where it comes from, how it is read, what is made of it."""

import gzip
import json
import lzma
import os
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import make_text
from tests.test_cli import TINY, Call, assert_refused, call, desk, empty_cache, in_shell, posix

__all__ = ["call", "desk"]  # fixtures

POEMS = Path("poems.txt")
SHORT = ("--steps", "2", *TINY)


def learn(call: Call, *args: str) -> dict[str, object]:
    """Train for two steps, starting over; return the plan."""
    outcome = call("train", *args, *SHORT, "--fresh", "--json", "-q")
    assert outcome.code == 0, outcome.err
    plan: dict[str, object] = outcome.objects[0]
    return plan


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_a_packed_text_is_the_text(desk: Path, call: Call, pack) -> None:
    """Whatever its name says; the run has the same text, and the cache the same entry."""
    plain = learn(call, "poems.txt")
    Path("packed").write_bytes(pack(POEMS.read_bytes()))
    packed = learn(call, "packed")
    assert (packed["num_chars"], packed["vocab_size"]) == (plain["num_chars"], plain["vocab_size"])
    assert call("info", "--cache", "--json").objects[0]["num_texts"] >= 1


def test_a_folders_odd_files_are_told(desk: Path, call: Call) -> None:
    """What is hidden or binary is left out and counted; a pattern chooses among the rest."""
    for name, data in {"b.txt": b"b" * 50, "a.txt": b"a" * 50, "c.md": b"c" * 50, ".x": b"x", "d.txt": b"\0"}.items():
        (Path("texts") / name).parent.mkdir(exist_ok=True)
        (Path("texts") / name).write_bytes(data)
    plan = learn(call, "texts", "--glob", "*.txt")
    assert [Path(path).name for path in plan["texts"]] == ["a.txt", "b.txt"]
    assert "texts: 1 hidden and 1 binary left out, 2 read" in plan["notes"]
    assert plan["vocab_size"] == 2


@posix
def test_process_substitution_is_a_stream(desk: Path, call: Call) -> None:
    """Two of them are joined; the run is named as one on stdin is, and its text found in the cache afterwards."""
    words = ["train", *SHORT, "-q"]
    outcome = in_shell('"${charrnn[@]}" <(head -c 2000 poems.txt) <(tail -c +2001 poems.txt)', *words, cwd=desk)
    assert (outcome.code, outcome.out) == (0, b"checkpoints/stdin/model.safetensors\n")
    assert call("eval", "--json").objects[0]["num_chars"] == 400
    empty_cache()
    assert_refused(call("eval"), 3, "stdin", "--train-text")


@posix
def test_a_stream_that_never_ends_is_stopped(desk: Path) -> None:
    """By the limit, whose option is named; a device of zeros by what it is."""
    endless = in_shell('yes | "${charrnn[@]}"', "train", "-", "--max-bytes", "100000", cwd=desk)
    assert_refused(endless, 3, "100,000 bytes", "--max-bytes")
    assert_refused(in_shell('"${charrnn[@]}"', "train", "/dev/zero", cwd=desk), 3, "/dev/zero", "binary")


def test_carriage_returns_are_reported(desk: Path, call: Call) -> None:
    """Once, with their number and what removes them."""
    POEMS.write_bytes(POEMS.read_bytes().replace(b"\n", b"\r\n"))
    outcome = call("train", "poems.txt", *SHORT)
    count = POEMS.read_bytes().count(b"\r")
    assert outcome.err.count("carriage returns") == 1
    assert f"{count:,} carriage returns" in outcome.err
    assert "tr -d '\\r'" in outcome.err


def test_a_wrong_byte_is_placed_and_may_be_replaced(desk: Path, call: Call) -> None:
    """File, byte, line and both ways out; replaced bytes are counted."""
    POEMS.write_bytes(b"one\ntwo\xfc\n" + POEMS.read_bytes())
    assert_refused(
        call("train", "poems.txt"), 3, "poems.txt", "byte 7 (0xfc)", "line 2", "--encoding", "--errors replace"
    )
    plan = learn(call, "poems.txt", "--errors", "replace")
    assert any("1 U+FFFD" in note for note in plan["notes"])


def test_documents_are_learnt_and_written_whole(desk: Path, call: Call) -> None:
    """A model of lines writes a line and stops; the same command goes on without naming the setting again."""
    POEMS.write_text("ab\n" * 400, encoding="utf-8")
    network = ("--hidden-size", "16", "--embedding-dim", "4", "--threads", "1", "--batch-size", "4", "--seq-len", "8")
    given = ("train", "poems.txt", "--documents", "lines", "--steps", "400", "--dropout", "0", "--weight-drop", "0")
    assert call(*given, *network, "-q").code == 0
    assert call("sample", "-N", "3", "--temp", "0", "-q").out == b"ab\nab\nab"
    assert call("sample", "--temp", "0", "--json").objects[0]["text"] == "ab"
    assert call("sample", "-p", "a", "--no-echo", "--temp", "0", "-q").out == b"b"
    again = call("train", "poems.txt")
    assert (again.code, "is finished" in again.err) == (0, True)
    assert_refused(call("train", "poems.txt", "--documents", "blank-lines"), 2, "--documents", "lines", "--fresh")
    scored = call("eval", "poems.txt", "--json").objects[0]
    assert (scored["num_chars"], scored["num_unknown"]) == (1200, 0)
    assert scored["nats_per_char"] < 0.1
    assert "the end of a document" in call("info", "poems").out.decode()


def test_rare_characters_are_one_symbol(desk: Path, call: Call) -> None:
    """Counted in the plan and in scores, never written, taken in prompts."""
    POEMS.write_text(make_text(4000) + "öü" + make_text(500, seed=3), encoding="utf-8")
    plan = learn(call, "poems.txt", "--min-count", "2")
    assert any("2 characters" in note and "less than 2 times" in note for note in plan["notes"])
    text = call("sample", "-p", "ö", "-n", "3000", "--temp", "100", "--no-echo", "-q").out.decode()
    assert len(text) == 3000
    assert not set(text) - set(make_text(4500))
    scored = call("eval", "--json", "poems.txt").objects[0]
    assert scored["unknown"] == {"ö": 1, "ü": 1}


def test_bytes_are_learnt_of_anything(desk: Path, call: Call) -> None:
    """Also of what is no text; what is written is UTF-8 in any case."""
    Path("random").write_bytes(os.urandom(3000))
    assert_refused(call("train", "random"), 3, "random")
    assert learn(call, "random", "--bytes")["num_chars"] == 3000
    call("sample", "-m", "random", "-n", "500", "-q").out.decode()
    assert call("eval", "-m", "random", "random", "--json").objects[0]["num_chars"] == 2999
    POEMS.write_text("né€" * 200, encoding="utf-8")
    assert learn(call, "poems.txt", "--bytes")["vocab_size"] == 6
    assert call("sample", "-p", "né€", "-n", "0", "-q").out.decode() == "né€"
    assert call("eval", "poems.txt", "--json").objects[0]["num_unknown"] == 0


def test_a_file_is_held_out(desk: Path, call: Call) -> None:
    """Instead of a share, and never one that is trained on."""
    Path("held.txt").write_text(make_text(300, seed=5), encoding="utf-8")
    outcome = call("train", "poems.txt", "--valid", "held.txt", *SHORT)
    assert "held.txt held out" in outcome.err
    assert call("eval", "--json").objects[0]["num_chars"] == 299
    assert call("train", "poems.txt", "--valid", "held.txt").code == 0  # the same path as before
    assert_refused(call("train", "poems.txt", "--valid", "poems.txt", "--fresh"), 3, "poems.txt", "--valid")
    assert_refused(call("train", "poems.txt", "--valid", "held.txt", "--valid-fraction", "0.2"), 2, "--valid-fraction")
    assert_refused(call("train", "poems.txt", "--valid", "held.txt", "--test-fraction", "0.2"), 2, "--test-fraction")


def test_a_file_that_changes_in_training_changes_nothing(desk: Path, call: Call) -> None:
    """The run goes on to the end on the text it was started with, and is scored on that."""
    from charrnn import precompile as precompilation

    compile_kernels = precompilation.for_training

    def and_cut(*kinds: str) -> None:
        os.truncate("poems.txt", 7)
        compile_kernels(*kinds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precompilation, "for_training", and_cut)
        assert call("train", "poems.txt", *SHORT, "-q").code == 0
    assert call("eval", "--json").objects[0]["num_chars"] == 400


def test_the_cache_is_told_about(desk: Path, call: Call) -> None:
    """Where it is, how large, and a command that empties it."""
    empty_cache() if (Path(os.environ["XDG_CACHE_HOME"]) / "charrnn").exists() else None
    assert call("info", "--cache", "--json").objects[0]["num_texts"] == 0
    learn(call, "poems.txt")
    outcome = call("info", "--cache")
    folder = os.environ["XDG_CACHE_HOME"]
    rows = dict(line.split("\t") for line in outcome.out.decode().splitlines())
    assert rows["folder"] == f"{folder}/charrnn"
    assert rows["texts"] == "1"
    os.system(rows["to empty it"])
    facts = call("info", "--cache", "--json").objects[0]
    assert (facts["num_texts"], facts["num_bytes"]) == (0, 0)
    assert json.dumps(facts)


@posix
def test_a_cache_that_cannot_be_written_is_done_without(
    desk: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """Something else in its place costs a second reading, and is told."""
    Path("file").write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(desk / "file"))
    plan = learn(call, "poems.txt")
    assert any("read anew" in note for note in plan["notes"])
    assert call("eval", "--json").objects[0]["num_chars"] == 400


@pytest.mark.parametrize("options", [(), ("--bytes",), ("--test-fraction", "0.2"), ("--documents", "lines")], ids=str)
def test_every_small_text_trains_or_says_what_it_needs(desk: Path, call: Call, options: tuple[str, ...]) -> None:
    """With the sizes that are chosen for it, from nothing to two thousand characters; a score comes out of each."""
    for size in (0, 1, 2, 19, 20, 21, 22, 25, 31, 32, 33, 63, 64, 65, 100, 257, 1000, 1999, 2000):
        POEMS.write_text("".join("abc\n"[(place * place) % 7 % 4] for place in range(size)), encoding="utf-8")
        outcome = call("train", "poems.txt", "--steps", "2", "--fresh", "--json", "-q", *options)
        if outcome.code == 0:
            assert outcome.objects[-1]["num_chars"] >= 1
            assert outcome.objects[-1]["nats_per_char"] > 0
            assert size >= 20
        else:
            assert_refused(outcome, 3, "poems.txt")
            assert "empty" in outcome.err or "at least 20" in outcome.err or "too few documents" in outcome.err
            assert size < 20 or options[:1] == ("--documents",)


def test_a_folder_of_real_sources_is_learnt(desk: Path, call: Call) -> None:
    """The standard library's own, end to end: trained, scored, sampled."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:40]
    Path("sources").mkdir()
    for module in modules:
        shutil.copy(module, "sources")
    text = "".join(module.read_bytes().decode() for module in modules)
    plan = learn(call, "sources", "--glob", "*.py")
    assert (plan["num_chars"], plan["vocab_size"]) == (len(text), len(set(text)))
    assert plan["texts"] == [str(desk / "sources" / module.name) for module in modules]
    assert call("eval", "--json").objects[0]["num_chars"] == plan["num_valid_chars"]
    drawn = call("sample", "-p", "def ", "-n", "200", "-q").out.decode()
    assert (len(drawn), drawn[:4]) == (204, "def ")
