"""`charrnn sample`: text on stdout, the seed on stderr, JSON, ends, bytes, interruption."""

import base64
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from charrnn.config import SampleConfig
from charrnn.numerics.processor import has_fast_bfloat16
from charrnn.text.characters import END
from tests.cli.conftest import (
    POEMS,
    Home,
    assert_refused,
    call,
    call_on_terminal,
    in_shell,
    make_model,
    posix,
    start,
    without_notices,
)

SHORT = ("sample", "-n", "30", "--seed", "4")


# length and seed


def test_a_seed_gives_the_same_text_again(at_home: Home) -> None:
    """And another seed gives another text."""
    first = call("sample", "-n", "300", "--seed", "7")
    assert first.code == 0
    assert call("sample", "-n", "300", "--seed", "7") == first
    assert call("sample", "-n", "300", "--seed", "8").out != first.out


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 1000])
def test_a_sample_has_exactly_the_length_asked_for(at_home: Home, length: int) -> None:
    """That many characters after the prompt, then a NUL or a newline, unless the text itself ends with one."""
    args = ("sample", "-n", str(length), "--seed", "1", "-p", "ba")
    text = call(*args, "--null").text
    assert text.startswith("ba")
    assert len(text) == 2 + length + 1
    assert text.endswith("\0")
    assert call(*args).text == text[:-1].removesuffix("\n") + "\n"


@pytest.mark.parametrize("lines", ["1", "3"])
@pytest.mark.parametrize("more", [(), ("--unique",), ("-p", "ba"), ("--no-echo", "-p", "ba")])
def test_a_nul_replaces_the_newline_of_the_last_line(at_home: Home, lines: str, more: tuple[str, ...]) -> None:
    """As `xargs -0` and `grep -z` need it: the lines are those that are printed without --null."""
    args = ("sample", "-N", "4", "--lines", lines, "--seed", "1", *more)
    texts = call(*args, "--null").text.split("\0")
    assert texts.pop() == ""
    assert [text.count("\n") for text in texts] == [int(lines) - 1] * 4
    separator = "\n" if lines == "1" else "\n\n"
    assert separator.join(texts) + "\n" == call(*args).text


def test_the_default_length_is_500(at_home: Home) -> None:
    """Without options there is a page to read."""
    assert len(call("sample", "-0").text[:-1]) == SampleConfig().length == 500


def test_a_longer_sample_starts_with_the_shorter_one(at_home: Home) -> None:
    """The length decides only where the text ends."""
    short, long = (call("sample", "-n", n, "--seed", "3", "-0").out[:-1] for n in ("100", "700"))
    assert long.startswith(short)


def test_a_chosen_seed_is_printed_and_gives_the_text_again(at_home: Home) -> None:
    """Without --seed the seed is on stderr, alone."""
    first = call("sample", "-n", "200")
    printed = re.fullmatch(r"seed (\d+)\n", first.err)
    assert printed
    assert call("sample", "-n", "200", "--seed", printed[1]) == (0, first.out, "")


def test_quiet_does_not_print_the_seed(at_home: Home) -> None:
    """--quiet leaves stderr empty."""
    outcome = call("sample", "-n", "20", "--quiet", "-0")
    assert (outcome.code, len(outcome.out), outcome.err) == (0, 21, "")


# JSON and several samples


def test_json_is_one_object(at_home: Home) -> None:
    """It has the same text as plain output, and what is needed to draw it again."""
    plain = call("sample", "-n", "50", "--seed", "4", "-p", "dor", "-0").text[:-1]
    outcome = call("sample", "-n", "50", "--seed", "4", "-p", "dor", "--json")
    (facts,) = outcome.objects
    assert (outcome.code, outcome.err) == (0, "")
    assert facts["prompt"] + facts["text"] == plain
    assert (facts["prompt"], facts["seed"], facts["stream"], facts["num_chars"]) == ("dor", 4, 0, 50)
    assert facts["bytes"] is None


def test_json_has_the_chosen_seed(at_home: Home) -> None:
    """Without --seed the object has it."""
    (facts,) = call("sample", "-n", "50", "--json").objects
    assert call("sample", "-n", "50", "--seed", str(facts["seed"]), "-0").text == facts["text"] + "\0"


def test_json_says_how_the_text_was_drawn(at_home: Home) -> None:
    """All settings, the time it took, the text's surprisal, and the model."""
    settings = ("--top-k", "4", "--top-p", "0.9", "--min-p", "0.01", "--no-repeat-ngram", "9", "--temp", "0.5")
    (facts,) = call("sample", "-n", "40", "--seed", "4", "--json", *settings).objects
    names = ("top_k", "top_p", "min_p", "no_repeat_ngram", "temperature", "length", "lines", "stop", "unknown")
    assert [facts["settings"][name] for name in names] == [4, 0.9, 0.01, 9, 0.5, 40, 0, [], "error"]
    assert facts["model"] == "checkpoints/poems/model.safetensors"
    assert facts["seconds"] > 0
    assert 0 < facts["bits_per_char"] < 20


def test_json_needs_an_end(at_home: Home) -> None:
    """An endless text never becomes an object."""
    assert_refused(call("sample", "-n", "-1", "--json"), 2, "--json", "--length")


def test_several_samples_are_the_streams_of_one_seed(at_home: Home) -> None:
    """-N writes streams 0, 1, … of the seed, each the same for any N."""
    three = call(*SHORT, "-N", "3", "-0").out.split(b"\0")
    assert (len(three), len(set(three)), three[3]) == (4, 4, b"")
    assert call(*SHORT, "-0").out == three[0] + b"\0"
    objects = call(*SHORT, "-N", "3", "--json").objects
    assert [(one["stream"], one["text"].encode()) for one in objects] == list(enumerate(three[:3]))


def test_a_blank_line_separates_samples_that_may_have_several_lines(at_home: Home) -> None:
    """Each sample ends with one newline, the last one too; samples of one line follow each other."""
    args = ("sample", "--seed", "4", "-N", "3")
    texts = call(*args, "-n", "30", "-0").out.split(b"\0")[:3]
    assert call(*args, "-n", "30").out == b"\n".join(text.removesuffix(b"\n") + b"\n" for text in texts)
    lines = call(*args, "--lines", "1", "-0").out.split(b"\0")[:3]
    assert call(*args, "--lines", "1").out == b"".join(line + b"\n" for line in lines)
    assert call(*args, "--stop", "\n").out == b"".join(line + b"\n" for line in lines)
    assert call(*args, "--lines", "1", "-p", "ba\nb").out.count(b"\n\nba\nb") == 2


def test_every_sample_of_one_line_is_a_line(desk: Path) -> None:
    """As `wc -l` and `while read` expect it."""
    make_model(desk / "m.safetensors", "ab", likeliest="b")
    assert call("sample", "-m", "m.safetensors", "-n", "2", "-N", "3", "-q").out == b"bb\n" * 3
    assert call("sample", "-m", "m.safetensors", "-n", "2", "-N", "3", "-q", "-0").out == b"bb\0" * 3


@pytest.mark.parametrize("count", ["1", "3", "70"])
def test_threads_and_other_samples_do_not_change_a_text(at_home: Home, count: str) -> None:
    """For any number of threads and samples."""
    texts = {call(*SHORT, "-0", "-N", count, "--threads", n).out for n in "12"}
    assert len(texts) == 1
    assert texts.pop().split(b"\0")[0] + b"\0" == call(*SHORT, "-0").out


# ends


def test_a_text_ends_before_a_stop_or_after_a_line(at_home: Home) -> None:
    """Neither the stop nor anything after the last line is written."""
    text = call("sample", "-n", "400", "--seed", "4", "-0").out
    stop = text[37:40]
    before = text[: text.index(stop)]
    assert call("sample", "-n", "400", "--seed", "4", "--stop", stop.decode(), "-0").out == before + b"\0"
    assert call("sample", "-n", "400", "--seed", "4", "--stop", stop.decode(), "--keep-stop", "-0").out == (
        before + stop + b"\0"
    )
    assert call("sample", "-n", "-1", "--seed", "4", "--lines", "2").out == b"".join(text.splitlines(True)[:2])
    assert call("sample", "-n", "-1", "--seed", "4", "--lines", "1").out == (
        call("sample", "-n", "-1", "--seed", "4", "--stop", r"\n", "--keep-stop").out
    )


def test_an_end_that_cannot_come_is_refused(desk: Path) -> None:
    """At once, with the character that the model does not know, or what to use instead."""
    make_model(desk / "flat", "ab")
    make_model(desk / "lines", "ab" + END)
    for args, *parts in (
        (("flat", "--stop", r"\n"), r"--stop '\n'", "U+000A"),
        (("flat", "--stop", "a", "--stop", "aé"), "--stop 'aé'", "U+00E9"),
        (("flat", "--stop", r"\\n"), r"--stop '\n'", "U+005C"),
        (("flat", "--lines", "3"), "--lines 3", "no newline"),
        (("lines", "--lines", "3"), "--lines 3", "-N 3"),
        (("flat", "--keep-stop"), "--keep-stop", "--stop TEXT"),
    ):
        assert_refused(call("sample", "-n", "-1", "--json", "-m", *args), 2, *parts)


# numbers


def test_temperature_0_takes_the_likeliest(at_home: Home) -> None:
    """The seed doesn't matter then, and both names of the option mean the same."""
    texts = {call("sample", "-n", "99", "--temp", "0", "--seed", seed).out for seed in "12"}
    texts.add(call("sample", "-n", "99", "--temperature", "0", "--seed", "3").out)
    assert len(texts) == 1


@pytest.mark.parametrize("temperature", ["1e-300", "1e308"])
def test_extreme_temperatures_write_text(at_home: Home, temperature: str) -> None:
    """No temperature in the allowed range breaks the arithmetic."""
    outcome = call("sample", "-n", "99", "--temp", temperature, "--seed", "1", "-0")
    assert (outcome.code, len(outcome.text), outcome.err) == (0, 100, "")


def test_weights_can_be_stored_in_bfloat16(at_home: Home) -> None:
    """If the processor has such products; the settings say so, and the text is about as likely."""
    args = ("sample", "-n", "200", "--seed", "4", "--json")
    exact = call(*args).objects[0]
    assert exact["settings"]["precision"] == "float32"
    assert_refused(call(*args, "--precision", "half"), 2, "--precision", "half")
    outcome = call(*args, "--precision", "bfloat16")
    if not has_fast_bfloat16():
        assert_refused(outcome, 6, "--precision float32")
        return
    assert outcome.objects[0]["settings"]["precision"] == "bfloat16"
    assert outcome.objects[0]["bits_per_char"] == pytest.approx(exact["bits_per_char"], rel=0.5)
    assert call(*args, "--precision", "auto").objects[0]["text"] == outcome.objects[0]["text"]


# models


def test_the_newest_model_is_the_default(desk: Path) -> None:
    """Without -m the model written last is used."""
    for age, char in enumerate("abc"):
        model = make_model(Path("checkpoints") / char / "model.safetensors", "abc", likeliest=char)
        os.utime(model, (1e9 - age, 1e9 - age))
    assert call("sample", "-n", "3", "-q").out == b"aaa\n"


@pytest.mark.parametrize("which", ["b", "checkpoints/b", "checkpoints/b/model.safetensors", "copy.bin"])
def test_a_model_is_named_by_run_folder_or_file(desk: Path, which: str) -> None:
    """-m takes a run's name, its folder, or a model file wherever it is."""
    for char in "ab":
        make_model(Path("checkpoints") / char / "model.safetensors", "ab", likeliest=char)
    shutil.copy("checkpoints/b/model.safetensors", "copy.bin")
    assert call("sample", "-n", "3", "-q", "-m", which).out == b"bbb\n"


# interruption


@posix
@pytest.mark.parametrize(
    ("several", "number", "code"),
    [
        ((), signal.SIGINT, -signal.SIGINT),
        (("-N", "70", "--stop", "kkkkkkkk", "--threads", "2"), signal.SIGTERM, -signal.SIGTERM),
    ],
    ids=["one", "several"],
)
def test_an_interrupted_sample_ends_quietly(
    home: Home, several: tuple[str, ...], number: signal.Signals, code: int
) -> None:
    """The signal ends the process, so that a shell ends its loop; there is no message."""
    process = start("sample", "-n", "-1", "--seed", "1", *several, cwd=home.path)
    assert process.stdout is not None
    assert len(process.stdout.read(100)) > 0
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, without_notices(err)) == (code, "")


@posix
def test_a_reader_that_has_enough_ends_the_stream_quietly(home: Home) -> None:
    """`| head` ends an endless text without a message."""
    script = '"${charrnn[@]}" | head -c 100; echo " ${PIPESTATUS[0]}"'
    outcome = in_shell(script, "sample", "-n", "-1", "--seed", "1", cwd=home.path)
    assert outcome.err == ""
    assert outcome.out.endswith(b" 141\n")
    assert len(outcome.out) == 105


SHOW_NOTICES_AT_ONCE = """
from charrnn.__main__ import main
from charrnn.terminal import console
console.NOTICE_DELAY = 0.0
main()
"""


@posix
def test_reading_a_long_prompt_can_be_interrupted(home: Home, tmp_path: Path) -> None:
    """A notice says what is being done."""
    (tmp_path / "long.txt").write_text(POEMS * 1000, encoding="utf-8")
    model = home.path / "checkpoints/poems/model.safetensors"
    args = ("sample", "-m", str(model), "--seed", "1", "-f", "long.txt", "-n", "9")
    process = start(*args, cwd=tmp_path, program=("-c", SHOW_NOTICES_AT_ONCE))
    assert process.stderr is not None
    try:
        while (line := process.stderr.readline()) != "reading the prompt …\n".encode():
            assert line, "the prompt was not read"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()


# bytes


@posix
def test_a_terminal_is_shown_control_characters_as_escapes(desk: Path) -> None:
    """A model that learned an escape character can't control the terminal; a pipe gets the text itself."""
    make_model(desk / "m.safetensors", "a\x1b\x9b\u202e", likeliest="\x1b")
    args = ("sample", "-m", "m.safetensors", "-n", "3", "--seed", "1", "-p", "a\x9b\u202e")
    code, shown = call_on_terminal(*args)
    assert code == 0
    assert shown.rstrip() == rb"a\x9b\u202e\x1b\x1b\x1b"
    assert call(*args).out == "a\x9b\u202e\x1b\x1b\x1b\n".encode()


@posix
def test_a_model_of_bytes_writes_its_bytes(desk: Path) -> None:
    """In a pipe as they are; on a terminal as escapes; in JSON as valid text and base64."""
    make_model(desk / "m.safetensors", "a\udce9\udcff", likeliest="\udce9")
    (desk / "prompt").write_bytes(b"\xff\xe9")
    args = ("sample", "-m", "m.safetensors", "-n", "3", "--seed", "1", "-p", "a")
    assert call(*args).out == b"a\xe9\xe9\xe9\n"
    assert call(*args, "-f", "prompt").out == b"\xff\xe9a\xe9\xe9\xe9\n"
    code, shown = call_on_terminal(*args)
    assert (code, shown.rstrip()) == (0, rb"a\xe9\xe9\xe9")
    outcome = call(*args, "-f", "prompt", "--stop", "\udcff", "--json")
    (facts,) = outcome.objects
    assert r"\ud" not in outcome.text
    assert (facts["text"], facts["num_chars"]) == ("\ufffd" * 3, 3)
    assert base64.b64decode(facts["bytes"]) == b"\xe9\xe9\xe9"
    assert (facts["prompt"], facts["settings"]["stop"]) == ("\ufffd\ufffda", ["\ufffd"])


@pytest.mark.parametrize("option", ["--null", "--no-echo"])
def test_json_has_neither_terminators_nor_prompts_to_choose(at_home: Home, option: str) -> None:
    """An option without effect is refused."""
    assert_refused(call("sample", "--json", option), 2, option, "--json")


@posix
def test_output_is_utf8_in_every_locale(desk: Path) -> None:
    """A C locale changes neither the text nor the message about it."""
    make_model(desk / "m.safetensors", "é漢", likeliest="漢")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = '"${charrnn[@]}" && "${charrnn[@]}" -p x'
    outcome = in_shell(script, "sample", "-m", "m.safetensors", "-n", "3", "--seed", "1", cwd=desk, **plain)
    assert (outcome.code, outcome.out) == (3, "漢漢漢\n".encode())
    line = outcome.err.splitlines()[-1]  # on a busy machine a notice may stand before it
    assert line.startswith("charrnn: ")
    assert "U+0078" in line
