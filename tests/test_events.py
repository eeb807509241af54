"""Events: immutable, with the same names in every log."""

import dataclasses
import json
import math

import pytest

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
    "resumed": Resumed(3, note="resuming from step 3"),
    "progress": Progress(
        4,
        num_steps=None,
        nats_per_char=1.5,
        learning_rate=1e-3,
        chars_per_second=1e5,
        seconds_left=None,
        grad_norm=0.5,
        clipped=0.25,
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


def test_every_event_has_its_own_name():
    """Scripts rely on the names; the table above contains every kind."""
    assert {kind.event: kind for kind in Event.__subclasses__()} == {n: type(event) for n, event in EVENTS.items()}
    names = "plan resumed progress evaluated sample saved warning stopped finished"
    assert set(EVENTS) == set(names.split())


@pytest.mark.parametrize(("name", "event"), EVENTS.items())
def test_a_record_is_a_json_object_with_event_and_step(name, event):
    """One line without NaN; it contains every field under its own name, and nothing else."""
    line = json.dumps(event.record(), allow_nan=False)
    assert "\n" not in line
    record = json.loads(line)
    assert (record["event"], record["step"]) == (name, event.step)
    fields = {field.name for field in dataclasses.fields(event)}
    assert record.keys() == {"event"} | fields
    assert record == {"event": name, **{field: getattr(event, field) for field in fields}}
    assert PROMISED.get(name, set()) <= record.keys()


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_events_are_immutable(event):
    """Several consumers share them."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.step = 1


def test_a_record_is_a_copy():
    """Changing it doesn't change the event."""
    event = EVENTS["plan"]
    event.record()["model"]["cell"] = "lstm"
    assert event.model == {"cell": "gru"}


def test_bits_converts_nats():
    """One nat is 1 / ln 2 bits; a fair coin costs one bit."""
    assert bits(math.log(2)) == 1.0
    assert bits(1.0) == pytest.approx(1.4426950408889634)
    assert bits(0.0) == 0.0
