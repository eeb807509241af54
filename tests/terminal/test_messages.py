"""Messages: each event as lines."""

from dataclasses import replace
from typing import Any

import pytest

from charrnn.events import Evaluated, Event, Finished, Plan, Progress, Resumed, Sample, Saved, Stopped, Warned
from charrnn.terminal import messages

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
    (Progress(7, 20, 2.0, 0.004, 12345.6, 61.0, 0.3, 0.0), [""]),
    (
        Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=True),
        ["step 9: 1.443 bits/char held out, best"],
    ),
    (
        Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=False),
        ["step 9: 1.443 bits/char held out"],
    ),
    (Sample(9, text="\none\n \n\n\ttwo\n"), ["    one", "        two"]),
    (Sample(9, text="\n" * 100), [""]),
    (Sample(9, text="a\n" * 100), ["    a"] * 4),
    (Saved(9, path="checkpoints/poems/model.safetensors"), [""]),
    (Warned(9, "a state is damaged"), ["warning: a state is damaged"]),
    (Stopped(18, best_step=15), ["stopped early: no improvement since step 15"]),
    (FINISHED, ["1.0000 nats, 1.443 bits per character on 4,070 held-out characters", SELECTED]),
    (
        replace(FINISHED, network_nats_per_char=1.5, ngram_nats_per_char=2.0),
        [
            "1.0000 nats, 1.443 bits per character on 4,070 held-out characters",
            SELECTED,
            "(with n-grams mixed in; the network alone 1.5000 nats, n-grams alone 2.0000)",
        ],
    ),
    (
        replace(FINISHED, test_nats_per_char=2.0, num_test_chars=1234),
        [
            "1.0000 nats, 1.443 bits per character on 4,070 held-out characters",
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


def test_a_model_of_bytes_has_bits_per_byte() -> None:
    """In its plan and its events."""
    evaluated = Evaluated(9, 1.0, 1.442695, 1000, whole=False, best=False, unit="byte")
    assert messages.describe(evaluated) == "step 9: 1.443 bits/byte held out"
    finished = messages.describe(replace(FINISHED, unit="byte"))
    assert finished.startswith("1.0000 nats, 1.443 bits per byte on 4,070 held-out bytes\n")
    assert messages.plan_lines(replace(PLAN, unit="byte")).startswith("poems.txt: 4,068 bytes, 20 distinct;")
