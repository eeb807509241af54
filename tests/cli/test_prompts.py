"""Prompts of `charrnn sample`: options, files and stdin, and characters that the model does not know."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from charrnn.cli.sample import has_unread_text
from tests.cli.conftest import Home, assert_refused, call, in_shell, make_model, posix, run, start

SHORT = ("sample", "-n", "30", "--seed", "4")


def test_a_prompt_comes_from_a_file_or_stdin(at_home: Home, tmp_path: Path) -> None:
    """The file first, then -p, nothing in between; newlines stay; --no-echo leaves the prompt out."""
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"ba dor\n")
    plain = call(*SHORT, "-p", "ba dor\nba").out
    assert plain.startswith(b"ba dor\nba")
    assert call(*SHORT, "-f", str(path), "-p", "ba").out == plain
    assert call(*SHORT, "-f", "-", "-p", "ba", stdin=b"ba dor\n").out == plain
    assert call(*SHORT, "-f", str(path), "-p", "ba", "--no-echo").out == plain[9:]
    assert_refused(call("sample", "-f", "missing.txt"), 3, "missing.txt")
    assert_refused(call(*SHORT, "-p", "ba\u00e9"), 3, "U+00E9")
    assert call(*SHORT, "-p", "b\u00e9a", "--unknown", "skip", "--no-echo").code == 0


def test_a_final_newline_of_a_prompt_file_that_the_model_does_not_know_is_left_out(desk: Path) -> None:
    """As `echo` adds one; a note says so. Another newline is an unknown character."""
    make_model(desk / "m", "abM", likeliest="b")
    args = ("sample", "-m", "m", "-n", "2", "--seed", "1", "-f", "-")
    outcome = call(*args, stdin=b"Ma\n")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (0, b"Mabb\n", 1)
    assert "final newline" in outcome.err
    assert call(*args, stdin=b"Ma\r\n") == outcome
    assert call(*args, "-q", "-p", "M", stdin=b"Ma\n") == (0, b"MaMbb\n", "")
    assert_refused(call(*args, "-q", stdin=b"Ma\n\n"), 3, "U+000A", "character 3")


@posix
def test_text_on_stdin_that_is_not_read_is_noticed(at_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe or a file that has some, unless a prompt is given; nothing waits for a pipe without."""
    reader, writer = os.pipe()
    err = io.StringIO()
    with open(reader) as pipe, open(writer, "w") as end, open("poems.txt") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "stdin", pipe)
        assert not has_unread_text()
        end.write("Prompt")
        end.flush()
        assert has_unread_text()
        assert [run(*SHORT), run(*SHORT, "-q"), run(*SHORT, "-p", "ba")] == [0, 0, 0]
        assert pipe.read(6) == "Prompt"
        assert not has_unread_text()
        patch.setattr(sys, "stdin", file)
        assert has_unread_text()
    assert err.getvalue() == "stdin is not read; to continue its text, add -f -\n"


@posix
def test_text_on_stdin_that_belongs_to_a_loop_is_no_prompt(at_home: Home) -> None:
    """The rest of a list or script is not meant for the command."""
    script = "printf 'a\\nb\\n' | while read -r name; do \"${charrnn[@]}\"; break; done"
    assert in_shell(script, *SHORT, cwd=at_home.path) == (0, call(*SHORT).out, "")


@pytest.mark.parametrize(
    ("vocabulary", "prompt", "parts"),
    [
        ("abc\n", "abéa", ("U+00E9", "character 3", "--unknown skip")),
        ("abc\n", "a\x1b[31m", ("U+001B", "character 2")),
        ("cafe\u0301", "caf\u00e9", ("U+00E9", "NFD")),
        ("caf\u00e9", "cafe\u0301", ("NFC",)),
        ("abc\n", "a\U0001f600", ("U+1F600",)),
        ("abc\n", "a\udcff", ("byte 0xFF", "character 2")),  # a byte of the command line that is not UTF-8
    ],
)
def test_an_unknown_prompt_character_is_named(desk: Path, vocabulary: str, prompt: str, parts: tuple[str, ...]) -> None:
    """The code point, its position, and the normal form that would help."""
    make_model(desk / "m.safetensors", vocabulary)
    outcome = call("sample", "-m", "m.safetensors", "-p", prompt)
    assert_refused(outcome, 3, *parts)
    assert "\x1b" not in outcome.err


# --prompts


def test_a_prompt_without_copies_needs_the_option_of_the_command(at_home: Home) -> None:
    """The training text is read before the prompts."""
    args, line = ("sample", "--prompts", "-", "--seed", "4"), b'{"prompt": "ba", "no_copy": 3}\n'
    assert_refused(call(*args, stdin=line), 2, "line 1", "--no-copy needs", "if the command has --no-copy too")
    assert call(*args, "--no-copy", "9", stdin=line).code == 0


def test_each_prompt_of_a_file_gets_a_line(at_home: Home) -> None:
    """In order, with the texts of the seed's streams; the text ends at its first newline."""
    path = Path("list")
    path.write_bytes(b"ba\n\ndor")
    outcome = call("sample", "--prompts", "list", "--seed", "4")
    assert (outcome.code, outcome.err) == (0, "")
    objects = call("sample", "--prompts", "list", "--seed", "4", "--lines", "1", "--json").objects
    assert [(one["prompt"], one["stream"]) for one in objects] == [("ba", 0), ("", 1), ("dor", 2)]
    assert outcome.text == "".join(f"{one['prompt']}{one['text'].removesuffix(chr(10))}\n" for one in objects)
    assert call("sample", "--prompts", "-", "--seed", "4", stdin=b"ba\n\ndor\n").out == outcome.out
    assert call("sample", "-p", "ba", "--seed", "4", "--lines", "1").text == outcome.text.split("\n")[0] + "\n"
    several = call("sample", "--prompts", "list", "--seed", "4", "-n", "200", "-0").text.split("\0")
    assert (len(several), several[3]) == (4, "")
    assert several[0] + "\0" == call("sample", "-p", "ba", "--seed", "4", "-n", "200", "-0").text
    path.unlink()


def test_prompts_of_windows_are_read(at_home: Home) -> None:
    """A byte-order mark and the ends of lines are no part of a prompt."""
    plain = call("sample", "--prompts", "-", "--seed", "4", stdin=b"ba\ndor\n")
    assert plain.text.startswith("ba")
    assert call("sample", "--prompts", "-", "--seed", "4", stdin=b"\xef\xbb\xbfba\r\ndor\r\n").out == plain.out


def test_a_line_without_an_answer_ends_the_list(at_home: Home) -> None:
    """It is named by its number, after the lines before it."""
    outcome = call("sample", "--prompts", "-", "-n", "5", "-q", stdin="ba\nb\u00e9\nba\n".encode())
    assert outcome.code == 3
    assert outcome.text.count("\n") == 1
    assert outcome.err.startswith("charrnn: line 2 of the prompts: the model does not know U+00E9")
    assert_refused(call("sample", "--prompts", "-", "-q", stdin=b'{"top_k": -1}'), 2, "line 1", "--top-k")


def test_in_json_a_line_without_an_answer_is_an_object_and_the_rest_goes_on(at_home: Home) -> None:
    """The exit code says so at the end."""
    lines = b'ba\n{"prompt": \n{"prompt": "ba", "seed": 7, "length": 3}\n\xff\ndor'
    outcome = call("sample", "--prompts", "-", "--json", "-n", "4", "--seed", "1", stdin=lines)
    assert outcome.code == 3
    assert [one.get("line", len(one.get("text", ""))) for one in outcome.objects] == [4, 2, 3, 4, 4]
    assert "but is not JSON" in outcome.objects[1]["error"]
    assert (
        outcome.objects[2]["text"] == call("sample", "-p", "ba", "--seed", "7", "-n", "3", "--json").objects[0]["text"]
    )
    assert outcome.err.startswith("charrnn: could not continue 2 of 5 prompts")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-p", "ba"), "--prompt can't be combined"),
        (("-f", "-"), "--prompt-file can't be combined"),
        (("-N", "3"), "--num-samples can't be combined"),
        (("--best", "1"), "--best can't be combined"),
        (("--max-draws", "3"), "--max-draws can't be combined"),
        (("--best-by", "total"), "--best-by can't be combined"),
        (("-n", "-1"), "--prompts needs texts that end"),
        (("--lines", "2"), "--json or --null for several --lines"),
    ],
    ids=str,
)
def test_prompts_stand_alone(at_home: Home, args: tuple[str, ...], words: str) -> None:
    """Before anything is read."""
    assert_refused(call("sample", "--prompts", "-", "-q", *args, stdin=b"ba\n"), 2, words)
    assert_refused(call("sample", "--prompts", "missing", "-q"), 3, "missing")


def test_a_program_that_waits_for_each_answer_gets_it(at_home: Home) -> None:
    """Nothing is read ahead, so a line written after an answer was read is answered too."""
    args = ("sample", "--prompts", "-", "--json", "-n", "5", "--seed", "2")
    with start(*args, cwd=at_home.path, stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        found = []
        for prompt in ("ba", "dor", "ba"):
            process.stdin.write(prompt.encode() + b"\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.wait() == 0
    together = call(*args, stdin=b"ba\ndor\nba").objects
    assert [one["text"] for one in found] == [one["text"] for one in together]
