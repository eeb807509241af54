"""Training on a disk that fails for a while, or for ever, or is slow: what is told, and what is on it in the end."""

import errno
import os
import threading
import time
from dataclasses import replace

import pytest

from charrnn.errors import CharrnnError, Interrupted
from charrnn.events import Evaluated, Finished, Plan, Progress, Saved, Warned
from charrnn.model.file import load_model
from charrnn.training import loop as training
from charrnn.training import saving as keeping
from charrnn.training.loop import train
from charrnn.training.recipe import StopRequest
from charrnn.training.saving import Writer
from tests.conftest import SynchronousWriter, digests, plan_again, run_through

OFTEN = [0.0, 60.0]  # seconds between states: one a step, or only with better models


def good_files(run):
    """What is in a run's folder under its final names, but for the log."""
    return {path.name: path.read_bytes() for path in run.folder.glob("*.safetensors")}


class Disk:
    """Fails in a call of the system from some time on, for so many times."""

    def __init__(self, run):
        self.run, self.left = run, 0
        self.before = None  # what was good when it began to fail

    def fail(self, times):
        """Begin to fail."""
        self.before, self.left = None, times

    def watch(self, original):
        """That call, which may fail."""

        def call(*arguments):
            if self.left > 0 and threading.current_thread().name == "writer":
                self.left -= 1
                self.before = good_files(self.run) if self.before is None else self.before
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments)

        return call


@pytest.fixture(params=["fsync", "replace"])
def disk(request, plan, monkeypatch):
    """A disk that fails when bytes are flushed, or when a file gets its name."""
    disk = Disk(plan.run)
    monkeypatch.setattr(os, request.param, disk.watch(getattr(os, request.param)))
    return disk


def train_and_fail(plan, disk, *, at, times, events=None):
    """Train and let the disk fail so many times once that step is told of; return what was told."""
    events = [] if events is None else events
    for event in train(plan):
        events.append(event)
        if isinstance(event, Progress) and event.step == at:
            disk.fail(times)
    return events


def told_of_saving(events):
    """The warnings of a run."""
    return [event.message for event in events if isinstance(event, Warned)]


@pytest.mark.parametrize("writer", [Writer, SynchronousWriter])
@pytest.mark.parametrize("save_every", OFTEN)
@pytest.mark.parametrize("times", [1, 2])
def test_a_disk_that_fails_for_a_while_costs_nothing(plan, disk, monkeypatch, save_every, times, writer):
    """It is told at most once, training goes on, and in the end the files are those of a run on a good disk."""
    monkeypatch.setattr(training, "Writer", writer)
    plan = replace(plan, save_every=save_every)
    list(train(plan))
    expected = good_files(plan.run)
    plan.run.clear()
    events = train_and_fail(plan, disk, at=10, times=times)
    warnings = told_of_saving(events)
    told = times == 2 and writer is SynchronousWriter  # else it may be over before anybody looks
    assert told <= len(warnings) <= 1
    assert all("No space left on device" in warning and "training goes on" in warning for warning in warnings)
    assert disk.left == 0
    assert [event.step for event in events if isinstance(event, Progress)] == list(range(1, 25))
    found = good_files(plan.run)
    assert (found["model.safetensors"], found["state-24.safetensors"]) == (
        expected["model.safetensors"],
        expected["state-24.safetensors"],
    )
    assert not list(plan.run.folder.glob(".*.tmp"))


@pytest.mark.parametrize("save_every", OFTEN)
@pytest.mark.parametrize("at", [1, 10, 23, 24])
def test_a_disk_that_fails_for_ever_ends_the_run(plan, disk, save_every, at):
    """After three times, or at the end; what was on it before is whole, and on a good disk the run goes on exactly."""
    plan = replace(plan, save_every=save_every)
    run_through(plan)
    expected = digests(plan)
    plan.run.clear()
    events = []
    with pytest.raises(CharrnnError, match=r"No space left on device.*same command goes on") as caught:
        train_and_fail(plan, disk, at=at, times=10**6, events=events)
    assert type(caught.value) is CharrnnError
    assert caught.value.exit_code == 1
    assert not any(isinstance(event, Finished) for event in events)
    assert len(told_of_saving(events)) <= 1
    assert good_files(plan.run) == disk.before
    assert not list(plan.run.folder.glob(".*.tmp"))
    disk.left = 0
    state = plan.run.newest_state()
    assert state.damaged == ()
    assert state.meta["step"] <= at
    plan.run.log_path.unlink(missing_ok=True)  # it lacks what was told, as this test logs nothing
    again = run_through(plan_again(plan))
    assert isinstance(again[-1], Finished)
    assert digests(plan)[0] == expected[0]


@pytest.mark.parametrize("save_every", OFTEN)
def test_nobody_trains_for_hours_on_a_full_disk(plan, disk, save_every):
    """It is given up after three failures, while there are steps left to do."""
    plan = replace(plan, save_every=save_every, training=replace(plan.training, steps=120))
    events = []
    with pytest.raises(CharrnnError, match="3 times in a row"):
        train_and_fail(plan, disk, at=20, times=10**6, events=events)
    assert events[-1].step < 100


def test_a_disk_that_is_full_from_the_beginning_is_told_before_the_first_step(plan, disk):
    """Nothing was trained, and nothing is left but the line that a log may have."""
    disk.fail(10**6)
    events = []
    with pytest.raises(CharrnnError, match="No space left on device"):
        train_and_fail(plan, disk, at=-1, times=0, events=events)
    assert [type(event) for event in events] == [Plan]
    assert os.listdir(plan.run.folder) == []


def test_a_disk_that_fails_at_the_end_is_tried_once_more(plan, disk, monkeypatch):
    """The last save of all may go wrong once; if it goes wrong twice, the run hasn't finished."""
    original = training.finish

    def finish(*arguments):
        disk.fail(times)
        return original(*arguments)

    monkeypatch.setattr(training, "finish", finish)
    times = 1
    assert isinstance(list(train(plan))[-1], Finished)
    plan.run.clear()
    times = 10**6
    with pytest.raises(CharrnnError, match="No space left on device"):
        list(train(plan))
    assert good_files(plan.run) == disk.before
    times = disk.left = 0
    events = list(train(plan_again(plan)))
    assert isinstance(events[-1], Finished)
    assert plan.run.newest_state().meta["finished"]


@pytest.mark.parametrize("times", [1, 10**6])
def test_a_request_to_stop_is_answered_on_a_failing_disk(plan, disk, times):
    """Saved with the second try, or told that it wasn't; what the signal ends with is said truly."""
    stop, events = StopRequest(), []
    expected = Interrupted if times == 1 else CharrnnError
    with pytest.raises(expected) as ended:
        stop_on(plan, disk, stop, events, times)
    assert type(ended.value) is expected
    newest = plan.run.newest_state().meta["step"]
    assert newest == events[-1].step if times == 1 else newest < events[-1].step


def stop_on(plan, disk, stop, events, times):
    """Ask for the end in the fifth step, when the disk begins to fail."""
    for event in train(plan, stop=stop):
        events.append(event)
        if isinstance(event, Progress) and event.step == 5:
            disk.fail(times)
            stop.signal_number = 15


def test_the_kept_model_is_never_worse_than_a_state_says(plan, disk, monkeypatch):
    """Whatever failed and when: who goes on from a state finds the weights that it counts on, or better ones."""
    monkeypatch.setattr(training, "Writer", SynchronousWriter)  # so that no file goes while it is being looked at
    plan = replace(plan, save_every=0.0)
    for event in train(plan):
        if event.step in (5, 11, 17) and isinstance(event, Progress):
            disk.fail(2)
        if plan.run.model_path.exists():
            state = plan.run.newest_state()
            best = state.meta["best_nats"]
            assert best is None or load_model(plan.run.model_path).scores["nats_per_char"] <= best


# a slow disk


@pytest.fixture
def slow(monkeypatch):
    """Each flush takes 30 ms in the thread that writes, and nobody waits for more than one."""
    original = os.fsync

    def fsync(handle):
        if threading.current_thread().name == "writer":
            time.sleep(0.03)
        original(handle)

    def arrange():
        monkeypatch.setattr(keeping, "MOST_WAITED", 0.001)
        monkeypatch.setattr(os, "fsync", fsync)

    return arrange


def test_a_slow_disk_delays_nobody_and_loses_nothing(plan, slow):
    """It is told of; training doesn't wait, and in the end the files and the log are those of a fast one."""
    plan = replace(plan, save_every=0.0)
    run_through(plan)
    expected = digests(plan)
    plan.run.clear()
    slow()
    events = run_through(plan)
    assert digests(plan) == expected
    best = [event.step for event in events if isinstance(event, Evaluated) and event.best]
    assert [event.step for event in events if isinstance(event, Saved)] == best
    messages = told_of_saving(events)
    assert any("still not on the disk" in message for message in messages)
    assert any("waiting for the disk" in message for message in messages)


def test_a_run_killed_on_a_slow_disk_goes_on_exactly(plan, slow):
    """What was still to be written is lost, and nothing else."""
    plan = replace(plan, save_every=0.0)
    run_through(plan)
    expected = digests(plan)
    plan.run.clear()
    slow()
    run_through(plan, stop_after=23)
    run_through(plan_again(plan), stop_after=20)
    run_through(plan_again(plan))
    assert digests(plan) == expected
