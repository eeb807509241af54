"""Facts in words: what is escaped, what each event says, rows of tables."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from charrnn.cli import messages as wording
from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scores import Assessment, Baseline, Copied, CopiedShares, Evaluation
from charrnn.events import Evaluated, Event, Finished, Plan, Progress, Resumed, Sample, Saved, Stopped, Warned
from charrnn.model.file import ModelFile

PLAN = Plan(
    step=0,
    run="poems",
    texts=["/home/me/poems.txt"],
    num_chars=4068,
    num_train_chars=3661,
    num_valid_chars=407,
    num_test_chars=0,
    valid=None,
    vocab_size=20,
    model={"cell": "gru", "vocab_size": 20, "embedding_dim": 64, "hidden_size": 16, "num_layers": 1},
    training={"batch_size": 4, "seq_len": 32, "dropout": 0.5, "learning_rate": 0.004, "weight_decay": 0.1},
    num_parameters=5556,
    memory_bytes=12_000_000,
    steps=1500,
    minutes=None,
    device="cpu",
    threads=2,
    processes=1,
    precision="float32",
    notes=[],
    reasons={"hidden_size": "as many as pay"},
)


PROGRESS = Progress(
    7, num_steps=20, nats_per_char=2.0, learning_rate=0.004, chars_per_second=12345.6, seconds_left=61.0
)

# an event, and what a person must find in its description; None: nothing is said
DESCRIBED: list[tuple[Event, tuple[str, ...] | None]] = [
    (PLAN, ("poems.txt", "4,068", "407 held out", "gru 1x16", "5,556", "1,500 steps of 4x", "12 MB", "'poems'")),
    (replace(PLAN, processes=4), ("cpu, 4 processes of 2 threads, float32",)),
    (Resumed(5, "going on from step 5"), ("going on from step 5",)),
    (PROGRESS, None),
    (
        Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=True),
        ("step 9", "1.0000 nats", "1.443 bits", "1,000"),
    ),
    (Sample(9, text="a rose"), ("    a rose",)),
    (Saved(9, path="checkpoints/poems/model.safetensors"), None),
    (Warned(9, "a state is damaged"), ("warning: a state is damaged",)),
    (Stopped(18, best_step=15), ("stopped", "since step 15")),
    (Finished(20, "model.safetensors", 15, 1.0, 1.442695, 4070), ("1.443 bits", "4,070", "selection score", "15")),
    (
        Finished(20, "model.safetensors", 15, 1.0, 1.442695, 4070, test_nats_per_char=2.0, num_test_chars=1234),
        ("1.443 bits", "selection score", "2.885 bits", "1,234 test characters", "chose nothing"),
    ),
]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, é 漢 😀", "plain text, é 漢 😀"),
        ("new\nline\tand tab", "new\nline\tand tab"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("bell\x07, back\x08, return\r", r"bell\x07, back\x08, return\r"),
        ("\x00\x7f", r"\x00\x7f"),
        ("\x9b31m", r"\x9b31m"),  # CSI as one byte of C1
        ("\u202egnitirw", r"\u202egnitirw"),  # right-to-left override
        ("\ufeff", r"\ufeff"),
        ("\udcff", r"\udcff"),  # a byte that was not UTF-8
        ("\U000e0041", r"\U000e0041"),  # an invisible tag
        ("[/]bold[/]", "[/]bold[/]"),
    ],
)
def test_printable_shows_what_could_steer_a_terminal(text: str, shown: str) -> None:
    """Control, format and surrogate characters become escapes; all else stays."""
    assert wording.printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("a\nb", r"a\nb"), ("a\tb", r"a\tb"), ("a\r\nb", r"a\r\nb"), ("\x1b]0;t\x07", r"\x1b]0;t\x07")]
)
def test_one_line_has_no_newline_or_tab(text: str, shown: str) -> None:
    """In a message newlines and tabs are shown, too."""
    assert wording.one_line(text) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3600, "1:00:00"), (-5, "0:00")],
)
def test_clock(seconds: float, shown: str) -> None:
    """Seconds as m:ss, from an hour on as h:mm:ss, never negative."""
    assert wording.clock(seconds) == shown


def test_a_plan_says_why_when_asked() -> None:
    """A line for each setting that was chosen for a reason, only where somebody asks for the plan alone."""
    assert "hidden size: as many as pay" in wording.plan_lines(PLAN, with_reasons=True).splitlines()
    assert "as many as pay" not in wording.plan_lines(PLAN)


def test_every_event_is_described_or_silent_on_purpose() -> None:
    """The table above names every kind of event there is."""
    assert {type(event) for event, _ in DESCRIBED} == set(Event.__subclasses__())


@pytest.mark.parametrize(("event", "parts"), DESCRIBED, ids=lambda value: getattr(value, "event", None))
def test_describe(event: Event, parts: tuple[str, ...] | None) -> None:
    """An event says what a person wants to know, or nothing."""
    text = wording.describe(event)
    if parts is None:
        assert text == ""
    else:
        assert [part for part in parts if part not in text] == []


def test_only_the_best_evaluation_is_called_so() -> None:
    """What isn't the best so far doesn't say that it is."""
    said = [wording.describe(Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=best)) for best in (True, False)]
    assert ["best" in text for text in said] == [True, False]


def test_a_sample_is_indented_line_by_line() -> None:
    """Every line of a sample stands apart from the program's own words."""
    assert wording.describe(Sample(3, text="\none\ntwo\n")) == "    one\n    two"


def test_a_plan_in_minutes_names_minutes() -> None:
    """A time budget is told as such, without a number of steps."""
    text = wording.plan_lines(Plan(**{**vars(PLAN), "steps": None, "minutes": 2.5}))
    assert "2.5 minutes" in text
    assert "steps" not in text


def test_a_plan_of_many_texts_names_three() -> None:
    """A long list of texts is cut, and says that it is."""
    paths = [f"/texts/{number}.txt" for number in range(5)]
    first = wording.plan_lines(Plan(**{**vars(PLAN), "texts": paths})).splitlines()[0]
    assert first.startswith("0.txt, 1.txt, 2.txt, …:")


def test_a_plan_ends_with_its_notes() -> None:
    """What was adjusted stands at the end, a line each."""
    lines = wording.plan_lines(Plan(**{**vars(PLAN), "notes": ["first", "second"]})).splitlines()
    assert lines[-2:] == ["first", "second"]


def test_a_plan_escapes_names_from_outside() -> None:
    """Neither a text's name nor a run's can break the lines or steer a terminal."""
    plan = Plan(**{**vars(PLAN), "texts": ["/x/\x1b[31m\nred.txt"], "run": "\x1b[31m\nred"})
    text = wording.plan_lines(plan)
    assert "\x1b" not in text
    assert len(text.splitlines()) == len(wording.plan_lines(PLAN).splitlines())


def test_score_rows_name_ten_unknown_characters() -> None:
    """The most frequent unknown characters are named with their counts, the others counted."""
    unknown = {chr(0x3B1 + number): 20 - number for number in range(12)}
    rows = dict(wording.score_rows("m", "t", Evaluation(100.0, 100, unknown)))
    text = rows["outside the vocabulary"]
    assert text.startswith("174, not scored: U+03B1 'α' 20x, U+03B2 'β' 19x")
    assert text.count("U+") == 10
    assert text.endswith("and 2 more")


def test_score_rows_without_unknown_characters() -> None:
    """Nothing is said about unknown characters where there are none."""
    rows = dict(wording.score_rows("m", "t", Evaluation(69.314718, 100, {})))
    assert rows["characters scored"] == "100"
    assert rows["nats per character"] == "0.693147"
    assert rows["bits per character"] == "1.000000"
    assert rows["perplexity"] == "2.0000"
    assert "outside the vocabulary" not in rows


def small_model(**facts: Any) -> ModelFile:
    """A model of two characters, with what a test says about its scores and provenance."""
    config = ModelConfig(cell="rnn", vocab_size=2, embedding_dim=1, hidden_size=1, num_layers=1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    return ModelFile(config, Vocab("\x1ba"), tensors, facts.get("scores", {}), facts.get("provenance", {}))


def test_a_card_of_a_model_that_says_nothing_about_itself() -> None:
    """Missing scores and provenance are question marks, not a crash."""
    card = wording.card("runs/poems/model.safetensors", small_model())
    assert card["run"] == "poems"
    assert wording.card_line(card) == ("poems", "rnn 1x1", "10", "?", "?")
    assert dict(wording.card_rows(card))["text SHA-256"] == "?"


def test_a_card_tells_score_and_text() -> None:
    """The list shows bits per character and the text's name; the card where the weights come from."""
    model = small_model(
        scores={
            "nats_per_char": 0.693147,
            "step": 15,
            "whole": True,
            "test": {"nats_per_char": 2 * 0.693147, "num_chars": 7},
        },
        provenance={"text": {"paths": ["/home/me/poems.txt"], "sha256": "12ab"}},
    )
    card = wording.card("runs/poems/model.safetensors", model)
    assert wording.card_line(card)[3:] == ("1.000", "poems.txt")
    rows = dict(wording.card_rows(card))
    assert rows["text"] == "/home/me/poems.txt"
    assert "step 15" in rows["score"]
    assert rows["test score"].startswith("2.000 bits/char")
    assert json.loads(json.dumps(card)) == card


# --- what a score is worth ---


def score(bits_per_char: float, num_chars: int = 1000) -> Evaluation:
    """A score of so many bits a character."""
    return Evaluation(bits_per_char * num_chars * math.log(2), num_chars, {})


def yardstick(name: str, bits_per_char: float, note: str = "") -> Baseline:
    """A yardstick of so many bits a character."""
    return Baseline(name, bits_per_char * math.log(2), note)


@pytest.mark.parametrize(
    ("bits_per_char", "said"),
    [
        (1.0, "Good: it needs 50% fewer bits than the best of the others (7-gram); it is as unsure as between 2.0 "),
        (1.99, "As good as the best of the others (7-gram) and no better; it is as unsure as between 4.0 "),
        (4.0, "Not good yet: the best of the others (7-gram) needs 50% fewer bits; it is as unsure as between 16.0 "),
    ],
)
def test_a_verdict_compares_with_the_best(bits_per_char: float, said: str) -> None:
    """In one sentence, with what perplexity means."""
    others = (yardstick("xz", 3.0), yardstick("7-gram", 2.0))
    assert wording.verdict(score(bits_per_char), others) == f"{said}equally likely characters."


def test_there_is_no_verdict_without_a_yardstick() -> None:
    """And none of the other sentences either, where nothing was counted."""
    assert wording.verdict(score(1.0), ()) == ""
    assert wording.sentences(Assessment(score(1.0))) == []


def test_a_yardstick_that_costs_nothing_is_no_division_by_zero() -> None:
    """A text of one character has nothing to predict."""
    assert wording.verdict(score(0.0), (yardstick("1-gram", 0.0),)).startswith("As good as")


def test_the_adapted_score_is_a_row_of_its_own() -> None:
    """Behind the model's, and called what it is."""
    found = Assessment(score(2.0), (yardstick("xz", 3.0, "after it"),), adapted=score(1.5))
    assert [row[:2] for row in wording.comparison_rows(found)] == [
        ("this model", "2.000"),
        ("adapting to the text", "1.500"),
        ("xz", "3.000"),
    ]
    lines = wording.comparison_lines(found).split("\n")
    assert lines[0] == "this model            2.000 bits per character (perplexity 4.00)"
    assert lines[2] == "xz                    3.000 bits per character (after it)"
    assert lines[3].startswith("Good: it needs 33% fewer bits")


def test_copies_are_told_with_the_longest() -> None:
    """Where there is one."""
    found = Assessment(score(2.0), copied=CopiedShares(Copied(200, 31, 31), Copied(100, 2, 30), Copied(100, 0, 0)))
    (sentence,) = wording.sentences(found)
    assert "15.5% of what it writes" in sentence
    assert "(the longest 31) (the network alone: 2.0%)" in sentence
    assert sentence.endswith("of the text that was scored, 0.0%.")


@pytest.mark.parametrize(
    ("values", "width", "shown"),
    [
        ([], 24, ""),
        ([1.0], 24, "▁"),
        ([2.0, 2.0], 24, "▁▁"),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 24, "█▇▆▅▄▃▂▁"),
        ([4.0, 2.0, 2.0, 0.0, math.nan, math.inf], 2, "█▁"),
    ],
)
def test_a_sparkline_shows_where_numbers_go(values: list[float], width: int, shown: str) -> None:
    """From the lowest to the highest; what is no number is left out."""
    assert wording.sparkline(values, width) == shown
