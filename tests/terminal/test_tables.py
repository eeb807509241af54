"""Tables: scores and comparisons as rows."""

import math
from dataclasses import replace

from charrnn.evaluation.scores import Assessment, Baseline, Evaluation
from charrnn.terminal import tables


def test_score_rows_name_ten_unknown_characters() -> None:
    """The most frequent ones with their counts; the others are counted."""
    unknown = {chr(0x3B1 + number): 20 - number for number in range(12)}
    rows = dict(tables.score_rows("m", "t", Evaluation(100.0, 100, unknown), "character"))
    text = rows["unknown characters"]
    assert text.startswith("174, not scored: U+03B1 'α' 20x, U+03B2 'β' 19x")
    assert text.count("U+") == 10
    assert text.endswith(" and 2 more")


def test_score_rows_without_unknown_characters() -> None:
    """There is no row about them."""
    rows = dict(tables.score_rows("m", "t", Evaluation(69.314718, 100, {}), "character"))
    assert rows == {
        "model": "m",
        "text": "t",
        "characters scored": "100",
        "nats per character": "0.693147",
        "bits per character": "1.000000",
        "perplexity": "2.0000",
    }


def score(bits_per_char: float, num_chars: int = 1000) -> Evaluation:
    """Return a score of so many bits per character."""
    return Evaluation(bits_per_char * num_chars * math.log(2), num_chars, {})


def baseline(name: str, bits_per_char: float, note: str = "") -> Baseline:
    """Return a baseline of so many bits per character."""
    return Baseline(name, bits_per_char * math.log(2), note)


def test_the_comparison_has_the_model_and_its_parts_first() -> None:
    """Then the adapted score, then the baselines."""
    mixed = replace(score(2.0), experts=(2500 * math.log(2), 3000 * math.log(2)))
    found = Assessment(mixed, (baseline("xz", 3.0, "after it"),), adapted=score(1.5))
    assert tables.comparison_rows(found) == [
        ("this model", "2.000", ""),
        ("its network alone", "2.500", ""),
        ("its n-grams alone", "3.000", ""),
        ("adapting to the text", "1.500", "dynamic evaluation: learns from the text as it reads"),
        ("xz", "3.000", "after it"),
    ]
    assert tables.comparison_lines(replace(found, score=score(2.0), adapted=None)).split("\n") == [
        "this model  2.000 bits/char (perplexity 4.00)",
        "xz          3.000 bits/char (after it)",
        "Good: 33% fewer bits than the best baseline (xz).",
    ]


def test_a_model_of_bytes_has_bits_per_byte() -> None:
    """In its score and in comparisons."""
    rows = tables.score_rows("m", "t", Evaluation(10.0, 10, {"a": 1}), "byte")
    assert [name for name, _ in rows[2:]] == [
        "bytes scored",
        "nats per byte",
        "bits per byte",
        "perplexity",
        "unknown bytes",
    ]
    found = Assessment(score(2.0), (baseline("xz", 3.0),), unit="byte")
    assert tables.comparison_lines(found).startswith("this model  2.000 bits/byte (perplexity 4.00)\n")
    assert tables.comparison_header(found)[1] == tables.line_header([], "byte")[1] == "bits/byte"
