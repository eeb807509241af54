"""Constraints on the command line: what is written, what JSON says, and what is refused in one line."""

import math
import re

import pytest

from tests.cli.conftest import POEMS, Home, assert_refused, call, empty_cache


def test_samples_match_and_are_the_same_with_the_same_seed(at_home: Home) -> None:
    """Whatever the threads; each candidate's weight is in the JSON."""
    words = ["sample", "-N", "5", "--seed", "3", "--match", "[a-z]{3,6}( [a-z]+)?[.]", "--json"]
    one, two = (call(*words, "--threads", threads) for threads in ("1", "2"))
    texts = [record["text"] for record in one.objects]
    assert texts == [record["text"] for record in two.objects]
    assert all(re.fullmatch("[a-z]{3,6}( [a-z]+)?[.]", text) for text in texts)
    assert all(record["log_weight"] < 0 for record in one.objects)
    assert call("sample", "-n", "20", "--json").objects[0]["log_weight"] == 0


def test_lines_characters_and_lengths_are_constrained(at_home: Home) -> None:
    """Escapes as in --stop; several constraints at once."""
    lines = call("sample", "--lines", "3", "--match", "[a-z ]+[.]", "--min-length", "12", "--forbid", "k").text.split(
        "\n"
    )
    assert lines[3:] == ["", ""] or lines[3:] == [""]
    assert all(re.fullmatch("[a-jl-z ]{11,}[.]", line) for line in lines[:3])
    assert set(call("sample", "--allow", r"ab\n", "-n", "40", "-0").text) <= set("ab\n\0")


def test_per_char_lists_what_the_model_predicted(at_home: Home) -> None:
    """Each character with its probability and the likeliest five; the probabilities give the sample's bits."""
    (record,) = call("sample", "-n", "30", "--seed", "2", "--json", "--per-char").objects
    assert "".join(one["char"] for one in record["chars"]) == record["text"]
    bits = -sum(math.log2(one["p"]) for one in record["chars"]) / 30
    assert record["bits_per_char"] == pytest.approx(bits, rel=1e-6)
    for one in record["chars"]:
        likeliest = [p for _, p in one["top"]]
        assert len(likeliest) == 5
        assert likeliest == sorted(likeliest, reverse=True)
        assert one["p"] <= likeliest[0] + 1e-6
    assert call("sample", "-n", "3", "--json").objects[0]["chars"] is None


def test_no_run_is_copied_from_the_training_text(copied_home: None) -> None:
    """The text comes from the cache, from where the run says, or from --train-text; else one line says what to do."""
    source = POEMS[:3600]
    words = ["sample", "-n", "100", "--seed", "1", "--no-copy", "3", "-0"]
    plain, found = call(*words[:5], "-0").text[:-1], call(*words).text[:-1]
    assert any(plain[i : i + 3] in source for i in range(98))
    assert not any(found[i : i + 3] in source for i in range(98))
    empty_cache()
    assert call(*words).text[:-1] == found


def test_no_run_is_copied_from_the_held_out_part(at_home: Home) -> None:
    """It belongs to the text that was read, as for --new."""
    assert "e tu" not in POEMS[:3600]
    assert "e tu" in POEMS[3600:]
    assert "e ta" not in POEMS
    words = ["sample", "-p", "e t", "-n", "1", "-N", "20", "--seed", "1", "--allow", "ua", "--no-echo"]
    assert "u" in call(*words).text
    assert "u" not in call(*words, "--no-copy", "4").text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--match", "a(?=b)"], "look-around is not supported"),
        (["--match", "["], "is not a regular expression"),
        (["--match", "é"], "no text of the model's characters satisfies --match 'é'"),
        (["--match", "[a-z]{30}", "-n", "20"], "takes at least 30 characters, but --length is 20"),
        (["--match", "ba.*", "-p", "dor"], "the prompt is not the beginning"),
        (["--match", "a*", "--stop", "b"], "--stop and --match can't be combined"),
        (["--min-length", "3", "--stop", "b"], "--stop and --min-length can't be combined"),
        (["--min-length", "30", "-n", "20", "--lines", "2"], "--min-length 30 is more than --length 20"),
        (["--min-length", "3"], "--min-length has no effect"),
        (["--allow", "é"], "leaves nothing to draw"),
        (["--allow", ""], "--allow needs at least one character"),
        (["--forbid", "é"], "--forbid 'é' has no effect"),
        (["--resample", "3"], "--resample needs a constraint"),
        (["--resample", "3", "--forbid", "a", "--temp", "0"], "--resample has no effect at --temp 0"),
        (["--no-copy", "1"], "--no-copy 1 has no effect"),
        (["--per-char"], "--per-char needs --json"),
    ],
)
def test_a_constraint_that_cannot_be_met_is_refused(at_home: Home, words: list[str], part: str) -> None:
    """Before the first character."""
    assert_refused(call("sample", *words), 2, part)
