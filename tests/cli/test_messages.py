"""Messages: each event as lines, plans, scores, verdicts and models as rows."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from charrnn.cli import messages
from charrnn.config import ModelConfig
from charrnn.data.characters import END, UNKNOWN
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scores import Assessment, Baseline, Evaluation
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
    reasons={"hidden_size": "as large as this text can use"},
)
FINISHED = Finished(20, "model.safetensors", 15, 1.0, 1.442695, 4070)
SELECTED = "(best weights: step 15 of 20; slightly optimistic: this text chose them)"

# an event, and its lines
DESCRIBED: list[tuple[Event, list[str]]] = [
    (
        PLAN,
        [
            "poems.txt: 4,068 characters, 20 distinct; the last 407 held out",
            "gru 1x16, embedding 64, 5,556 parameters, about 12 MB",
            "1,500 steps, 4x32 characters per step; cpu, 2 threads, float32",
            "dropout 0.5, learning rate 0.004, weight decay 0.1",
            "run 'poems'",
        ],
    ),
    (Resumed(5, "resuming from step 5"), ["resuming from step 5"]),
    (Progress(7, 20, 2.0, 0.004, 12345.6, 61.0), [""]),
    (
        Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=True),
        ["step 9: 1.0000 nats, 1.443 bits/char on 1,000 held-out characters, best"],
    ),
    (
        Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=False),
        ["step 9: 1.0000 nats, 1.443 bits/char on 1,000 held-out characters"],
    ),
    (Sample(9, text="\none\n \n\n\ttwo\n"), ["    one", "        two"]),
    (Sample(9, text="\n" * 100), [""]),
    (Sample(9, text="a\n" * 100), ["    a"] * 4),
    (Saved(9, path="checkpoints/poems/model.safetensors"), [""]),
    (Warned(9, "a state is damaged"), ["warning: a state is damaged"]),
    (Stopped(18, best_step=15), ["stopped early: no improvement since step 15"]),
    (FINISHED, ["1.0000 nats, 1.443 bits per character on all 4,070 held-out characters", SELECTED]),
    (
        replace(FINISHED, network_nats_per_char=1.5, ngram_nats_per_char=2.0),
        [
            "1.0000 nats, 1.443 bits per character on all 4,070 held-out characters",
            SELECTED,
            "(with n-grams mixed in; the network alone 1.5000 nats, n-grams alone 2.0000)",
        ],
    ),
    (
        replace(FINISHED, test_nats_per_char=2.0, num_test_chars=1234),
        [
            "1.0000 nats, 1.443 bits per character on all 4,070 held-out characters",
            SELECTED,
            "2.0000 nats, 2.885 bits per character on 1,234 test characters",
            "(unbiased: this text chose nothing)",
        ],
    ),
]


@pytest.mark.parametrize(("event", "lines"), DESCRIBED, ids=lambda value: getattr(value, "event", None))
def test_describe(event: Event, lines: list[str]) -> None:
    """An event says what a person wants to know, or nothing."""
    assert messages.describe(event).split("\n") == lines


@pytest.mark.parametrize(("columns", "width"), [("40", 40), ("300", 100)])
def test_a_sample_never_fills_the_screen(monkeypatch: pytest.MonkeyPatch, columns: str, width: int) -> None:
    """Its lines are cut to the terminal's width, escapes included; in a wide one to 100 columns."""
    monkeypatch.setenv("COLUMNS", columns)
    for text in ("a" * 1000, "\x1b" * 1000):
        shown = messages.describe(Sample(9, text=text))
        assert len(shown) == width
        assert shown.endswith("…")
    fitting = "a" * (width - 4)
    assert messages.describe(Sample(9, text=fitting)) == "    " + fitting


def test_every_event_is_described() -> None:
    """The table above has every kind of event."""
    assert {type(event) for event, _ in DESCRIBED} == set(Event.__subclasses__())


# plans


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"steps": None, "minutes": 2.5}, "\n2.5 minutes, 4x32 characters per step; "),
        ({"steps": None, "minutes": 1.0}, "\n1 minute, 4x32 characters per step; "),
        ({"steps": 1}, "\n1 step, 4x32 characters per step; "),
        ({"processes": 4}, "cpu, 4 processes with 2 threads each, float32"),
        ({"threads": 1}, "cpu, 1 thread, float32"),
        ({"valid": "/x/held.txt"}, "; held.txt held out\n"),
        ({"num_test_chars": 400}, "; the last 407 held out, then 400 for the test\n"),
        ({"training": {**PLAN.training, "weight_drop": 0.4}}, "dropout 0.5, weight drop 0.4, learning rate"),
        ({"training": {**PLAN.training, "init_from": "/a/b"}}, "\nrun 'poems', starting from /a/b"),
        ({"texts": [f"/texts/{number}.txt" for number in range(5)]}, "0.txt, 1.txt, 2.txt, …: 4,068 characters"),
        ({"notes": ["first", "second"]}, "\nrun 'poems'\nfirst\nsecond"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_plan_shows_what_is_special_about_it(changes: dict[str, Any], part: str) -> None:
    """Budget, processes, held-out text, weight drop, base, texts and notes."""
    assert part in messages.plan_lines(replace(PLAN, **changes))


def test_a_plan_gives_reasons_if_asked() -> None:
    """A line for each setting that has one."""
    assert messages.plan_lines(PLAN, with_reasons=True).splitlines()[-1] == "hidden size: as large as this text can use"
    assert "can use" not in messages.plan_lines(PLAN)


def test_a_plan_escapes_names_from_outside() -> None:
    """Neither a text's name nor a run's can break the lines or control a terminal."""
    text = messages.plan_lines(replace(PLAN, texts=["/x/\x1b[31m\nred.txt"], run="\x1b[31m\nred"))
    assert "\x1b" not in text
    assert len(text.splitlines()) == len(messages.plan_lines(PLAN).splitlines())


# scores


def test_score_rows_name_ten_unknown_characters() -> None:
    """The most frequent ones with their counts; the others are counted."""
    unknown = {chr(0x3B1 + number): 20 - number for number in range(12)}
    rows = dict(messages.score_rows("m", "t", Evaluation(100.0, 100, unknown), "character"))
    text = rows["unknown characters"]
    assert text.startswith("174, not scored: U+03B1 'α' 20x, U+03B2 'β' 19x")
    assert text.count("U+") == 10
    assert text.endswith(", and 2 more")


def test_score_rows_without_unknown_characters() -> None:
    """There is no row about them."""
    rows = dict(messages.score_rows("m", "t", Evaluation(69.314718, 100, {}), "character"))
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
    assert messages.comparison_rows(found) == [
        ("this model", "2.000", "perplexity 4.00"),
        ("its network alone", "2.500", ""),
        ("its n-grams alone", "3.000", ""),
        ("adapting to the text", "1.500", "dynamic evaluation: learns from the text as it reads"),
        ("xz", "3.000", "after it"),
    ]
    assert messages.comparison_lines(replace(found, score=score(2.0), adapted=None)).split("\n") == [
        "this model  2.000 bits/char (perplexity 4.00)",
        "xz          3.000 bits/char (after it)",
        "Good: 33% fewer bits than the best baseline (xz). Perplexity 4.0.",
    ]


# models


def small_model(chars: str = "\x1ba", **facts: Any) -> ModelFile:
    """Return a model of few characters, with these scores and provenance."""
    config = ModelConfig(cell="rnn", vocab_size=len(chars), embedding_dim=1, hidden_size=1, num_layers=1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    return ModelFile(config, Vocab(chars), tensors, facts.get("scores", {}), facts.get("provenance", {}))


def test_a_card_of_a_model_without_facts() -> None:
    """Missing scores and provenance are question marks, not a crash."""
    card = messages.card("runs/poems/model.safetensors", small_model())
    assert card["run"] == "poems"
    assert messages.card_line(card) == ("poems", "rnn 1x1", "10", "?", "?", "?")
    rows = dict(messages.card_rows(card))
    assert rows["text SHA-256"] == "?"
    assert rows["vocabulary"] == r"2 characters: \u001ba"


def test_a_card_has_score_and_text() -> None:
    """The list has bits per character and the texts' names; the card says where the weights come from."""
    model = small_model(
        scores={
            "nats_per_char": 0.693147,
            "num_chars": 1200,
            "step": 15,
            "whole": True,
            "test": {"nats_per_char": 2 * 0.693147, "num_chars": 7},
        },
        provenance={
            "text": {"paths": [f"/home/me/{name}.txt" for name in "abcd"], "sha256": "12ab"},
            "training": {"seed": 1, "init_from": None, "mix": True, "batch_size": 4},
        },
    )
    card = messages.card("checkpoints/poems/model.safetensors", model)
    assert messages.card_line(card)[3:] == ("1.000 bits/char", "1,200", "a.txt, b.txt, c.txt, …")
    rows = dict(messages.card_rows(card))
    assert rows["text"].startswith("/home/me/a.txt, /home/me/b.txt")
    assert rows["score"] == (
        "1.000 bits/char on the held-out text (1,200 bits in all), which chose these weights (step 15)"
    )
    assert rows["test score"] == "2.000 bits/char on the test text"
    assert rows["training"] == "seed 1, mix on, batch size 4"
    assert json.loads(json.dumps(card)) == card


def test_a_model_of_bytes_has_bits_per_byte() -> None:
    """In its events, its scores and the list of runs."""
    evaluated = Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=False, unit="byte")
    assert messages.describe(evaluated) == "step 9: 1.0000 nats, 1.443 bits/byte on 1,000 held-out bytes"
    finished = messages.describe(replace(FINISHED, unit="byte"))
    assert finished.startswith("1.0000 nats, 1.443 bits per byte on all 4,070 held-out bytes\n")
    assert messages.plan_lines(replace(PLAN, unit="byte")).startswith("poems.txt: 4,068 bytes, 20 distinct;")
    rows = messages.score_rows("m", "t", Evaluation(10.0, 10, {"a": 1}), "byte")
    assert [name for name, _ in rows[2:]] == [
        "bytes scored",
        "nats per byte",
        "bits per byte",
        "perplexity",
        "unknown bytes",
    ]
    found = Assessment(score(2.0), (baseline("xz", 3.0),), unit="byte")
    assert messages.comparison_lines(found).startswith("this model  2.000 bits/byte (")
    assert messages.comparison_header(found)[1] == messages.line_header([], "byte")[1] == "bits/byte"
    card = messages.card("m", small_model("a\udcff", scores={"nats_per_char": 0.693147}))
    assert messages.card_line(card)[3] == "1.000 bits/byte"


def test_a_vocabulary_shows_its_special_symbols() -> None:
    """The end of a document, the symbol for rare characters, and bytes."""
    model = small_model("".join(sorted(["a", "b", END, UNKNOWN])))
    rows = dict(messages.card_rows(messages.card("m", model)))
    assert rows["vocabulary"] == "2 characters, 1 symbol for end of document, 1 symbol for rare character: ab"
    rows = dict(messages.card_rows(messages.card("m", small_model("a\udcff"))))
    assert rows["vocabulary"].startswith("2 bytes: ")
