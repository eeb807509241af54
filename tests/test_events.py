"""Facts: plain, frozen, and the same words in every log."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.evaluation.scores import Evaluation
from charrnn.events import Evaluated, Event, Finished, Plan, Progress, Resumed, Sample, Saved, Stopped, Warned, bits

EVENTS = {
    "plan": Plan(
        step=0,
        run="poems",
        texts=["/poems.txt"],
        num_chars=20,
        num_train_chars=18,
        num_valid_chars=2,
        num_test_chars=1,
        valid=None,
        vocab_size=9,
        model={"cell": "gru"},
        training={"steps": None},
        num_parameters=100,
        memory_bytes=1000,
        steps=None,
        minutes=5.0,
        device="cpu",
        threads=2,
        processes=1,
        precision="float32",
        notes=["a note"],
        reasons={"cell": "a reason"},
    ),
    "resumed": Resumed(3, note="going on from step 3"),
    "progress": Progress(
        4, num_steps=None, nats_per_char=1.5, learning_rate=1e-3, chars_per_second=1e5, seconds_left=None
    ),
    "evaluated": Evaluated(5, nats_per_char=1.5, bits_per_char=2.2, num_chars=1000, whole=False, best=True),
    "sample": Sample(5, text="to be\n\0\udcff\u2028"),
    "saved": Saved(5, path="checkpoints/poems/model.safetensors"),
    "warning": Warned(6, message="a warning"),
    "stopped": Stopped(8, best_step=5),
    "finished": Finished(
        9, model="model.safetensors", best_step=5, nats_per_char=1.4, bits_per_char=2.0, num_chars=2000
    ),
}
PROMISED = {
    "progress": {"nats_per_char", "learning_rate", "chars_per_second"},
    "evaluated": {"nats_per_char", "bits_per_char", "num_chars"},
}


def test_every_event_has_a_name_of_its_own():
    """The names are those that scripts rely on, and the table above holds every kind."""
    assert {kind.event: kind for kind in Event.__subclasses__()} == {n: type(event) for n, event in EVENTS.items()}
    assert set(EVENTS) == {
        "plan",
        "resumed",
        "progress",
        "evaluated",
        "sample",
        "saved",
        "warning",
        "stopped",
        "finished",
    }


@pytest.mark.parametrize(("name", "event"), EVENTS.items())
def test_a_record_is_a_json_object_with_event_and_step(name, event):
    """One line, no NaN; every field is in it under its own name, and nothing else."""
    line = json.dumps(event.record(), allow_nan=False)
    assert "\n" not in line
    record = json.loads(line)
    assert (record["event"], record["step"]) == (name, event.step)
    fields = {field.name for field in dataclasses.fields(event)}
    assert record.keys() == {"event"} | fields
    assert record == {"event": name, **{field: getattr(event, field) for field in fields}}
    assert PROMISED.get(name, set()) <= record.keys()


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_an_event_does_not_change(event):
    """Whoever shows or logs it can't spoil it for the next."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.step = 1


def test_a_record_is_a_copy():
    """What a consumer does to a record stays there."""
    event = EVENTS["plan"]
    event.record()["model"]["cell"] = "lstm"
    assert event.model == {"cell": "gru"}


def test_nats_become_bits():
    """One nat is 1 / ln 2 bits; a fair coin costs one bit."""
    assert bits(math.log(2)) == 1.0
    assert bits(1.0) == pytest.approx(1.4426950408889634)
    assert bits(0.0) == 0.0


@given(nats=st.floats(0, 1e9), num_chars=st.integers(1, 10**9))
def test_an_evaluation_is_sum_over_count(nats, num_chars):
    """Every figure is one of total nats and total characters."""
    score = Evaluation(nats, num_chars, {})
    assert score.nats_per_char == nats / num_chars
    assert score.bits_per_char == pytest.approx(nats / num_chars / math.log(2))
    assert score.perplexity >= 1
    assert math.isfinite(score.perplexity)


def test_perplexity_of_a_uniform_guess_is_the_number_of_characters():
    """Guessing among 65 is as uncertain as 65 faces of a die."""
    score = Evaluation(1000 * math.log(65), 1000, {})
    assert score.perplexity == pytest.approx(65)
    assert score.bits_per_char == pytest.approx(math.log2(65))


def test_unknown_characters_are_counted_apart():
    """They are in no other figure."""
    with_unknown, without = Evaluation(10.0, 5, {"é": 3, "x": 1}), Evaluation(10.0, 5, {})
    assert (with_unknown.num_unknown, without.num_unknown) == (4, 0)
    assert with_unknown.nats_per_char == without.nats_per_char
