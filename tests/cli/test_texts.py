"""The commands with any text: where it comes from, how it is read, and what is learned from it."""

import gzip
import json
import lzma
import os
import shutil
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from charrnn import precompile
from tests.cli.conftest import TINY, assert_refused, call, empty_cache, posix
from tests.conftest import make_text

POEMS = Path("poems.txt")
SHORT = ("--steps", "2", *TINY)
SIZES = (0, 1, 2, 19, 20, 21, 22, 25, 31, 32, 33, 63, 64, 65, 100, 257, 1000, 1999, 2000)
FEW_SIZES = (0, 19, 20, 33, 64, 257, 2000)


def learn(*args: str) -> dict[str, Any]:
    """Train for two steps, starting over; return the plan."""
    outcome = call("train", *args, *SHORT, "--fresh", "--json", "-q")
    assert outcome.code == 0, outcome.err
    plan: dict[str, Any] = outcome.objects[0]
    return plan


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_a_compressed_text_is_the_same_text(desk: Path, compress: Any) -> None:
    """Whatever its name is; the plan has the same numbers."""
    plain = learn("poems.txt")
    Path("packed").write_bytes(compress(POEMS.read_bytes()))
    packed = learn("packed")
    assert (packed["num_chars"], packed["vocab_size"]) == (plain["num_chars"], plain["vocab_size"])
    assert call("info", "--cache", "--json").objects[0]["num_texts"] >= 1


def test_a_note_counts_the_files_that_a_folder_skips(desk: Path) -> None:
    """Hidden and binary files are skipped; --glob selects among the others."""
    contents = {"b.txt": b"b" * 50, "a.txt": b"a" * 50, "c.md": b"c" * 50, ".x": b"x", "d.txt": b"\0"}
    Path("texts").mkdir()
    for name, data in contents.items():
        (Path("texts") / name).write_bytes(data)
    plan = learn("texts", "--glob", "*.txt")
    assert [Path(path).name for path in plan["texts"]] == ["a.txt", "b.txt"]
    assert "texts: 1 hidden and 1 binary left out (not text: d.txt), 2 read" in plan["notes"]
    assert plan["vocab_size"] == 3  # with the newline that joins them


@pytest.fixture
def pipe() -> Iterator[Callable[[bytes], str]]:
    """Return a function that writes bytes to a pipe and names its other end, as the shell's <(...) does."""
    handles, threads = [], []

    def write(handle: int, data: bytes) -> None:
        with open(handle, "wb") as file:
            file.write(data)

    def name_of(data: bytes) -> str:
        reader, writer = os.pipe()
        handles.append(reader)
        threads.append(threading.Thread(target=write, args=(writer, data)))
        threads[-1].start()
        return f"/dev/fd/{reader}"

    yield name_of
    for thread in threads:
        thread.join(60)
    for handle in handles:
        os.close(handle)


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_process_substitution_is_a_stream(desk: Path, pipe: Callable[[bytes], str]) -> None:
    """Two streams are joined; the run is named stdin, and its text is later found in the cache."""
    text = POEMS.read_bytes()
    cut = text.index(b"\n", 2000) + 1
    outcome = call("train", pipe(text[:cut]), pipe(text[cut:]), *SHORT, "-q")
    assert (outcome.code, outcome.out) == (0, b"checkpoints/stdin/model.safetensors\n")
    assert call("eval", "--json").objects[0]["num_chars"] == 400
    empty_cache()
    assert_refused(call("eval"), 3, "stdin", "--train-text")


@posix
def test_a_stream_is_stopped_at_the_limit(desk: Path) -> None:
    """Whose option is named; a stream of zeros is refused as binary."""
    endless = call("train", "-", "--max-bytes", "100000", stdin=b"y\n" * 100_000)
    assert_refused(endless, 3, "100,000 bytes", "--max-bytes")
    assert_refused(call("train", "/dev/zero"), 3, "/dev/zero", "binary")


def test_a_note_counts_carriage_returns(desk: Path) -> None:
    """It occurs once and says how to remove them."""
    POEMS.write_bytes(POEMS.read_bytes().replace(b"\n", b"\r\n"))
    outcome = call("train", "poems.txt", *SHORT)
    count = POEMS.read_bytes().count(b"\r")
    assert outcome.err.count("carriage returns") == 1
    assert f"{count:,} carriage returns" in outcome.err
    assert "tr -d '\\r'" in outcome.err


def test_an_invalid_byte_is_located_and_can_be_replaced(desk: Path) -> None:
    """The message has file, byte, line and both solutions; a note counts replaced bytes."""
    POEMS.write_bytes(b"one\ntwo\xfc\n" + POEMS.read_bytes())
    refused = call("train", "poems.txt")
    assert_refused(refused, 3, "poems.txt", "byte 7 (0xfc)", "line 2", "--encoding", "--errors replace")
    plan = learn("poems.txt", "--errors", "replace")
    assert any("1 U+FFFD" in note for note in plan["notes"])


def test_a_model_of_documents_writes_whole_documents(desk: Path) -> None:
    """A model of lines writes a line and stops; the run resumes without the option."""
    POEMS.write_text("ab\n" * 400, encoding="utf-8")
    network = ("--hidden-size", "16", "--embedding-dim", "4", "--threads", "1", "--batch-size", "4", "--seq-len", "8")
    options = ("train", "poems.txt", "--documents", "lines", "--steps", "400", "--dropout", "0", "--weight-drop", "0")
    assert call(*options, *network, "-q").code == 0
    assert call("sample", "-N", "3", "--temp", "0", "-q").out == b"ab\nab\nab\n"
    assert call("sample", "--temp", "0", "--json").objects[0]["text"] == "ab"
    assert call("sample", "-p", "a", "--no-echo", "--temp", "0", "-q").out == b"b\n"
    again = call("train", "poems.txt")
    assert again.code == 0
    assert "finished" in again.err
    assert_refused(call("train", "poems.txt", "--documents", "blank-lines"), 2, "--documents", "lines", "--fresh")
    scored = call("eval", "poems.txt", "--json").objects[0]
    assert (scored["num_chars"], scored["num_unknown"]) == (1200, 0)
    assert scored["nats_per_char"] < 0.1
    assert "end of a document" in call("info", "poems").text


def test_rare_characters_are_one_symbol(desk: Path) -> None:
    """A note and scores count them; they are never written, but accepted in prompts."""
    POEMS.write_text(make_text(4000) + "öü" + make_text(500, seed=3), encoding="utf-8")
    plan = learn("poems.txt", "--min-count", "2")
    assert any("2 characters" in note and "fewer than 2 times" in note for note in plan["notes"])
    text = call("sample", "-p", "ö", "-n", "3000", "--temp", "100", "--no-echo", "-q", "-0").text.removesuffix("\0")
    assert len(text) == 3000
    assert not set(text) - set(make_text(4500))
    scored = call("eval", "--json", "poems.txt").objects[0]
    assert scored["unknown"] == {"ö": 1, "ü": 1}


def test_bytes_of_any_file_can_be_learned(desk: Path) -> None:
    """Even of a binary file; the output is bytes again."""
    Path("random").write_bytes(os.urandom(3000))
    assert_refused(call("train", "random"), 3, "random")
    assert learn("random", "--bytes")["num_chars"] == 3000
    assert 500 <= len(call("sample", "-m", "random", "-n", "500", "-q", "-0").out) - 1 <= 503
    assert call("eval", "-m", "random", "random", "--json").objects[0]["num_chars"] == 2999
    POEMS.write_text("né€" * 200, encoding="utf-8")
    assert learn("poems.txt", "--bytes")["vocab_size"] == 6
    assert call("sample", "-p", "né€", "-n", "0", "-q").text == "né€\n"
    assert call("eval", "poems.txt", "--json").objects[0]["num_unknown"] == 0


def test_a_file_can_be_held_out(desk: Path) -> None:
    """Instead of a share, but not one of the training texts."""
    Path("held.txt").write_text(make_text(300, seed=5), encoding="utf-8")
    outcome = call("train", "poems.txt", "--valid", "held.txt", *SHORT)
    assert "held.txt held out" in outcome.err
    assert call("eval", "--json").objects[0]["num_chars"] == 299
    assert call("train", "poems.txt", "--valid", "held.txt").code == 0  # the same path as before
    assert_refused(call("train", "poems.txt", "--valid", "poems.txt", "--fresh"), 3, "poems.txt", "--valid")
    assert_refused(call("train", "poems.txt", "--valid", "held.txt", "--valid-fraction", "0.2"), 2, "--valid-fraction")
    assert_refused(call("train", "poems.txt", "--valid", "held.txt", "--test-fraction", "0.2"), 2, "--test-fraction")


def test_text_options_without_effect_are_refused(copied_home: Path) -> None:
    """Before anything is read or scored; the line names the option."""
    for options in (("--encoding", "latin-1"), ("--errors", "replace")):
        assert_refused(call("train", "poems.txt", "--fresh", "--bytes", *options), 2, options[0], "bytes")
        assert_refused(call("eval", *options), 2, options[0], "TEXT")
    assert_refused(call("train", "poems.txt", "--fresh", "--glob", "*.md"), 2, "--glob")
    for more in (("--no-yardsticks",), ("--per-line",), ("--worst", "3")):
        assert_refused(call("eval", "poems.txt", "--train-text", "poems.txt", *more), 2, "--train-text")


def test_a_file_that_changes_during_training_has_no_effect(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run uses, and is scored on, the text as it was at the start."""
    compile_kernels = precompile.for_training

    def truncate_and_compile(*args: Any) -> None:
        os.truncate("poems.txt", 7)
        compile_kernels(*args)

    monkeypatch.setattr(precompile, "for_training", truncate_and_compile)
    assert call("train", "poems.txt", *SHORT, "-q").code == 0
    assert POEMS.stat().st_size == 7
    assert call("eval", "--json").objects[0]["num_chars"] == 400


def test_info_describes_the_cache(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder, its size, and a command that empties it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(desk / "cache"))
    assert call("info", "--cache", "--json").objects[0]["num_texts"] == 0
    learn("poems.txt")
    rows = dict(line.split("\t") for line in call("info", "--cache").text.splitlines())
    assert rows["folder"] == str(desk / "cache" / "charrnn")
    assert rows["texts"] == "1"
    os.system(rows["to empty it"])
    facts = call("info", "--cache", "--json").objects[0]
    assert (facts["num_texts"], facts["num_bytes"]) == (0, 0)
    assert json.dumps(facts)


@posix
def test_training_works_without_a_writable_cache(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note says so, and the text is read again."""
    Path("file").write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(desk / "file"))
    plan = learn("poems.txt")
    problem = f"{desk / 'file' / 'charrnn'}: Not a directory; this text is not cached"
    assert problem in plan["notes"]
    scored = call("eval", "--json")
    assert scored.objects[0]["num_chars"] == 400
    assert problem in scored.err


@pytest.mark.parametrize("sizes", [FEW_SIZES, pytest.param(SIZES, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize("options", [(), ("--bytes",), ("--test-fraction", "0.2"), ("--documents", "lines")], ids=str)
def test_every_small_text_is_trained_on_or_refused(desk: Path, options: tuple[str, ...], sizes: tuple[int]) -> None:
    """With the recommended sizes, from nothing to two thousand characters; each run ends with a score."""
    for size in sizes:
        POEMS.write_text("".join("abc\n"[(index * index) % 7 % 4] for index in range(size)), encoding="utf-8")
        outcome = call("train", "poems.txt", "--steps", "2", "--fresh", "--json", "-q", *options)
        if outcome.code == 0:
            assert outcome.objects[-1]["num_chars"] >= 1
            assert outcome.objects[-1]["nats_per_char"] > 0
            assert size >= 20
        else:
            assert_refused(outcome, 3, "poems.txt")
            assert "empty" in outcome.err or "at least 20" in outcome.err or "too few documents" in outcome.err
            assert size < 20 or options[:1] == ("--documents",)


def test_a_folder_of_source_files_is_learned(desk: Path) -> None:
    """Files of the standard library are trained on, scored and continued."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:6]
    Path("sources").mkdir()
    for module in modules:
        shutil.copy(module, "sources")
    text = "".join(module.read_bytes().decode() for module in modules)
    plan = learn("sources", "--glob", "*.py")
    assert (plan["num_chars"], plan["vocab_size"]) == (len(text), len(set(text)))
    assert plan["texts"] == [str(desk / "sources" / module.name) for module in modules]
    assert call("eval", "--json").objects[0]["num_chars"] == plan["num_valid_chars"]
    written = call("sample", "-p", "def ", "-n", "200", "-q", "-0").text
    assert len(written) == 204 + 1
    assert written.startswith("def ")


def test_the_held_out_part_of_a_large_folder_is_a_sample_of_its_files(desk: Path) -> None:
    """The last files in the alphabet are in another language; they are neither all of it nor missing in training."""
    Path("texts").mkdir()
    for number in range(40):
        char = "abcdefgh"[number % 8] if number < 32 else "\u0430\u0431\u0432"[number % 3]
        Path("texts", f"{number:02}.txt").write_text(f"{char}{char} {char}\n" * 100, encoding="utf-8")
    outcome = call("train", "texts", "--steps", "2", *TINY)
    assert outcome.code == 0
    assert "texts: its 40 files are read in a mixed order" in outcome.err
    worst = call("eval", "--per-line").text
    held_out = {line["text"][0] for line in map(json.loads, worst.splitlines()) if line["text"]}
    assert len(held_out) > 1
    assert held_out & set("abcdefgh")
    moved = Path("texts").rename("elsewhere")
    again = call("eval", "--per-line", "--train-text", str(moved))
    assert again.text == worst
