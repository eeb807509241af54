"""Saving: what the writer's thread writes and when, and training on a disk that fails or is slow."""

import errno
import itertools
import os
import threading
from dataclasses import replace

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.errors import CharrnnError, Interrupted, ModelFileError
from charrnn.events import Evaluated, Finished, Plan, Progress, Saved, Warned
from charrnn.model.file import load_model
from charrnn.runs import writer as writer_module
from charrnn.runs.folder import Run
from charrnn.runs.writer import MAX_FAILURES, StateSnapshot, Writer
from charrnn.training import loop, saving
from charrnn.training.loop import train
from charrnn.training.recipe import StopRequest
from charrnn.training.saving import finished_event
from tests.conftest import SynchronousWriter, digests, make_model_file, plan_again, run_through, with_settings

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))
TIMEOUT = 60.0  # seconds after which a test has failed


def slow(*values):
    """Parameters that only repeat a proof."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(chosen, *lists):
    """All combinations of parameters; all but the chosen ones only repeat a proof."""
    return [values if values in chosen else slow(*values) for values in itertools.product(*lists)]


# the writer


def model(number):
    """A model that differs from others by its number."""
    config = ModelConfig(cell="gru", vocab_size=3, embedding_dim=2, hidden_size=2, num_layers=1)
    return replace(make_model_file(config), scores={"step": number})


def state(number):
    """A state of that step."""
    return StateSnapshot(number, {"x": np.full(3, number, np.float32)}, {"step": number})


class FakeDisk:
    """Between a writer and the disk: records what is written, and can be slow or fail."""

    def __init__(self):
        self.tried, self.written = [], []
        self.failures = []  # of the next writes; None: success
        self.ready, self.started = threading.Event(), threading.Event()
        self.ready.set()

    def write(self, name, write):
        """Called in the writer's thread: write, unless this one is to fail."""
        self.tried.append(name)
        self.started.set()
        assert self.ready.wait(TIMEOUT)
        failure = self.failures.pop(0) if self.failures else None
        if failure:
            raise failure
        write()
        self.written.append(name)

    def hold(self, writer, item):
        """Start writing this and be slow from now on, until `ready` is set."""
        self.started.clear()
        self.ready.clear()
        writer.put(item)
        assert self.started.wait(TIMEOUT)


@pytest.fixture
def disk(monkeypatch):
    """A fake disk between every writer and every run's files."""
    disk, save_model, save_state = FakeDisk(), writer_module.save_model, Run.save_state

    def watched_model(path, file):
        disk.write(f"model {file.scores['step']}", lambda: save_model(path, file))

    def watched_state(run, step, tensors, meta):
        disk.write(f"state {step}", lambda: save_state(run, step, tensors, meta))

    monkeypatch.setattr(writer_module, "save_model", watched_model)
    monkeypatch.setattr(Run, "save_state", watched_state)
    return disk


@pytest.fixture
def run(tmp_path):
    """A run with an empty folder."""
    run = Run("poems", root=tmp_path)
    run.folder.mkdir()
    return run


@pytest.fixture
def writer(run, disk):
    """A running writer for that folder; its thread must have ended afterwards."""
    with Writer(run) as writer:
        yield writer
        disk.ready.set()
    assert not any(thread.name == "writer" for thread in threading.enumerate())


def test_items_are_on_the_disk_after_waiting(run, writer):
    """Reading finds them."""
    writer.put(model(7))
    writer.put(state(7))
    assert writer.wait()
    assert load_model(run.model_path).scores == {"step": 7}
    saved = run.newest_state()
    assert saved.meta["step"] == 7
    assert saved.tensors["x"].tolist() == [7, 7, 7]
    assert writer.problem() is None


def test_a_model_is_written_before_its_state(disk, writer):
    """A run that resumes from the state finds the weights that it calls the best; an older state is dropped."""
    disk.hold(writer, state(0))
    writer.put(state(4))
    writer.put(model(5))
    writer.put(state(5))
    disk.ready.set()
    writer.wait()
    assert disk.written == ["state 0", "model 5", "state 5"]


def test_a_newer_item_replaces_a_waiting_one(disk, writer):
    """A slow disk doesn't get a queue to work through; an item being written is completed."""
    disk.hold(writer, state(0))
    for item in (model(1), state(1), state(2), model(3), state(3), state(4)):
        writer.put(item)
    disk.ready.set()
    writer.wait()
    assert disk.written == ["state 0", "model 3", "state 4"]


def test_an_item_that_replaces_the_one_being_written_follows_it(disk, writer):
    """It doesn't count as written with it."""
    disk.hold(writer, model(1))
    writer.put(model(2))
    disk.ready.set()
    writer.wait()
    assert disk.written == ["model 1", "model 2"]
    disk.hold(writer, state(3))
    writer.put(state(4))
    disk.ready.set()
    writer.wait()
    assert disk.written[2:] == ["state 3", "state 4"]


def test_nothing_is_written_twice(disk, writer):
    """A state doesn't write the model before it again."""
    for item in (model(1), state(1), state(2), model(3)):
        writer.put(item)
        writer.wait()
    writer.finish()
    assert disk.written == ["model 1", "state 1", "state 2", "model 3"]


def test_a_slow_disk_delays_nobody(disk, writer):
    """`put` returns at once, and `wait` returns after its time with whether all is done."""
    assert writer.wait(0.0)
    disk.hold(writer, state(1))
    assert not writer.wait(0.01)
    writer.put(model(2))
    writer.put(state(2))
    assert not writer.wait(0.01)
    assert writer.problem() is None
    assert disk.written == []
    disk.ready.set()
    assert writer.wait(TIMEOUT)
    assert writer.wait(0.0)
    assert disk.written == ["state 1", "model 2", "state 2"]


def test_an_idle_writer_writes_nothing(run, disk):
    """Another rank's does."""
    with Writer(run, idle=True) as writer:
        writer.put(model(1))
        writer.put(state(1))
        writer.finish()
    assert disk.tried == []


@pytest.mark.parametrize("failure", [None, ZeroDivisionError])
def test_waiting_items_are_written_before_the_thread_ends(disk, run, failure):
    """Even if the work around it failed."""

    def work():
        with Writer(run) as writer:
            disk.hold(writer, state(0))
            writer.put(model(1))
            writer.put(state(1))
            threading.Timer(0.05, disk.ready.set).start()
            if failure:
                raise failure

    if failure:
        with pytest.raises(failure):
            work()
    else:
        work()
    assert disk.written == ["state 0", "model 1", "state 1"]
    assert not any(thread.name == "writer" for thread in threading.enumerate())


# failures


def test_a_failure_is_reported_once_and_retried_with_the_next_item(run, disk, writer):
    """Not by itself; once a retry has succeeded, a new failure is reported again."""
    disk.failures = [FULL]
    writer.put(state(1))
    assert writer.wait()
    problem = writer.problem()
    assert problem.startswith(f"{run.state_path(1)}: No space left on device; ")
    assert "training continues" in problem
    assert writer.problem() is None
    assert writer.wait()
    assert disk.tried == ["state 1"]
    writer.put(state(2))
    writer.wait()
    assert (disk.tried, disk.written) == (["state 1", "state 2"], ["state 2"])
    assert writer.problem() is None
    disk.failures = [BROKEN]
    writer.put(model(3))
    writer.wait()
    assert writer.problem().startswith(f"{run.model_path}: Input/output error; ")
    assert writer.problem() is None


def test_a_failure_is_retried_at_once_if_a_newer_item_waits(disk, writer):
    """That is the next item."""
    disk.failures = [FULL]
    disk.hold(writer, state(1))
    writer.put(state(2))
    disk.ready.set()
    writer.wait()
    assert (disk.tried, disk.written) == (["state 1", "state 2"], ["state 2"])


def test_a_state_is_not_written_without_its_model(disk, writer):
    """It refers to it; both are written with the next item."""
    disk.failures = [None, FULL]
    disk.hold(writer, state(0))
    writer.put(model(1))
    writer.put(state(1))
    disk.ready.set()
    writer.wait()
    assert (disk.tried, disk.written) == (["state 0", "model 1"], ["state 0"])
    assert "model.safetensors" in writer.problem()
    writer.put(state(2))
    writer.wait()
    assert disk.written == ["state 0", "model 1", "state 2"]


def test_only_the_failed_item_is_retried(disk, writer):
    """A model that is on the disk isn't written again because its state isn't there."""
    writer.put(model(1))
    writer.wait()
    disk.failures = [FULL]
    writer.put(state(1))
    writer.wait()
    writer.put(state(2))
    writer.wait()
    assert disk.tried == ["model 1", "state 1", "state 2"]
    assert disk.written == ["model 1", "state 2"]


def save_states(disk, writer, *failures):
    """Save a state for each failure, or success (None); return the problems that are reported."""
    problems = []
    for number, failure in enumerate(failures):
        disk.failures = [failure]
        writer.put(state(number))
        writer.wait()
        problems.append(writer.problem())
    return problems


def test_three_failures_in_a_row_are_an_error(disk, writer):
    """It has the last reason, and says that earlier files are intact."""
    assert MAX_FAILURES == 3
    first, second = save_states(disk, writer, FULL, FULL)
    assert "No space" in first
    assert second is None
    with pytest.raises(CharrnnError, match=r"state-0.*Input/output error.*3 times in a row.*same command") as caught:
        save_states(disk, writer, BROKEN)
    assert caught.value.exit_code == 1
    with pytest.raises(CharrnnError, match="3 times"):
        writer.problem()


def test_a_model_that_fails_with_its_state_counts_once(disk, writer):
    """A run whose weights improve often gets as many chances on a full disk as any other."""
    disk.failures = [FULL] * 4
    for step in (1, 2):
        for item in (model(step), state(step)):
            writer.put(item)
            writer.wait()
            assert (writer.problem() is None) == (disk.failures != [FULL] * 3)
    assert disk.tried == ["model 1", "model 1", "model 2", "model 2"]
    disk.failures = [FULL]
    writer.put(state(3))
    writer.wait()
    with pytest.raises(CharrnnError, match="3 times"):
        writer.problem()


def test_a_success_ends_a_series_of_failures(disk, writer):
    """Two, a success and two more are no error; each series is reported once."""
    problems = save_states(disk, writer, FULL, FULL, None, FULL, FULL, None, None, FULL)
    assert [problem is not None for problem in problems] == [True, False, False, True, False, False, False, True]


def test_a_success_counts_even_if_a_newer_item_waits(disk, writer):
    """On a disk so slow that something always waits, failures in a row are counted as on a fast one."""
    save_states(disk, writer, FULL, FULL)
    disk.failures = [None, FULL, FULL]
    disk.hold(writer, state(3))
    writer.put(state(4))
    disk.ready.set()
    writer.wait()
    assert disk.written == ["state 3"]
    assert "No space" in writer.problem()
    writer.put(state(5))
    writer.wait()
    assert writer.problem() is None


# finishing


def test_finishing_retries_once(disk, writer):
    """Then all is on the disk, or there is an error."""
    disk.failures = [FULL]
    writer.put(model(1))
    writer.put(state(1))
    writer.finish()
    assert disk.written == ["model 1", "state 1"]
    assert writer.problem() is None


def test_finishing_with_a_failure_is_an_error(run, disk, writer):
    """After two attempts; what was on the disk stays."""
    writer.put(model(1))
    writer.finish()
    before = run.model_path.read_bytes()
    disk.tried.clear()
    disk.failures = [FULL, BROKEN]
    writer.put(model(2))
    with pytest.raises(CharrnnError, match=r"model\.safetensors: Input/output error; .*same command"):
        writer.finish()
    assert disk.tried == ["model 2", "model 2"]
    assert run.model_path.read_bytes() == before


def test_finishing_does_not_repeat_successes(disk, writer):
    """And does nothing if nothing was put."""
    writer.finish()
    writer.put(state(1))
    writer.finish()
    writer.finish()
    assert disk.tried == ["state 1"]


def test_finishing_waits_for_a_slow_disk(disk, writer):
    """However slow it is."""
    disk.hold(writer, model(1))
    writer.put(state(1))
    threading.Timer(0.05, disk.ready.set).start()
    writer.finish()
    assert disk.written == ["model 1", "state 1"]


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), MemoryError("no memory"), SystemExit("odd")], ids=repr)
@pytest.mark.parametrize("method", ["wait", "problem", "finish"])
def test_any_other_error_is_raised_in_the_caller(disk, run, bug, method):
    """By the next call and by later ones; nothing hangs, and nothing counts as written."""
    with Writer(run) as writer:
        disk.failures = [bug]
        writer.put(state(1))
        while writer._thread.is_alive():
            writer._thread.join(TIMEOUT)
        for _ in range(2):
            writer.put(state(2))
            with pytest.raises(type(bug), match=str(bug)):
                getattr(writer, method)()
    assert disk.written == []


def test_a_bug_wakes_a_caller_that_waits(disk, run):
    """Not only the next one."""
    with Writer(run) as writer:
        disk.failures = [ZeroDivisionError("a bug")]
        disk.hold(writer, state(1))
        threading.Timer(0.05, disk.ready.set).start()
        with pytest.raises(ZeroDivisionError):
            writer.wait(TIMEOUT)


@pytest.mark.parametrize("record", [{}, {"step": 3}, {"nats_per_char": 1.0, "step": 3}, {"test": None}], ids=str)
def test_a_model_that_is_not_finished_has_no_last_event(run, record):
    """The error names the file and a way out."""
    with pytest.raises(ModelFileError, match=r"model\.safetensors: has no scores of a finished run; --fresh"):
        finished_event(run, 24, record, "character")


# training on a disk that fails


def good_files(run):
    """The contents of a run's folder under their final names, the log aside."""
    return {path.name: path.read_bytes() for path in run.folder.glob("*.safetensors")}


class FailingCall:
    """A system call that fails in the writer's thread from some time on, a number of times."""

    def __init__(self, run):
        self.run, self.times_left = run, 0
        self.before = None  # the good files when it first failed

    def fail(self, times):
        """Start to fail."""
        self.before, self.times_left = None, times

    def wrap(self, original):
        """The call, which may fail."""

        def call(*arguments):
            if self.times_left > 0 and threading.current_thread().name == "writer":
                self.times_left -= 1
                self.before = good_files(self.run) if self.before is None else self.before
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments)

        return call


@pytest.fixture
def failing(request, plan, uninterrupted, monkeypatch):
    """A disk that fails when bytes are flushed (fsync), or when a file gets its name (replace)."""
    uninterrupted(plan)  # trained on a good disk
    name = getattr(request, "param", "fsync")
    failing = FailingCall(plan.run)
    monkeypatch.setattr(os, name, failing.wrap(getattr(os, name)))
    return failing


both_calls = pytest.mark.parametrize("failing", ["fsync", slow("replace")], indirect=True)


def train_and_fail(plan, failing, *, at, times, save_every=60.0, events=None):
    """Train and let the disk fail so many times after that step's progress event; return the events."""
    events = [] if events is None else events
    for event in train(plan, save_every=save_every):
        events.append(event)
        if isinstance(event, Progress) and event.step == at:
            failing.fail(times)
    return events


def warnings(events):
    """The warnings of a run."""
    return [event.message for event in events if isinstance(event, Warned)]


CALLS, OFTEN = ["fsync", "replace"], [0.0, 60.0]
WRITERS = [Writer, SynchronousWriter]


@pytest.mark.parametrize(
    ("failing", "save_every", "writer_class", "times"),
    slow_but(
        [("fsync", 0.0, Writer, 1), ("replace", 0.0, SynchronousWriter, 2), ("fsync", 60.0, SynchronousWriter, 2)],
        CALLS,
        OFTEN,
        WRITERS,
        [1, 2],
    ),
    indirect=["failing"],
)
def test_a_disk_that_fails_for_a_while_costs_nothing(
    plan, failing, uninterrupted, monkeypatch, writer_class, save_every, times
):
    """There is at most one warning, and in the end the files are those of a run on a good disk."""
    monkeypatch.setattr(loop, "Writer", writer_class)
    events = train_and_fail(plan, failing, at=10, times=times, save_every=save_every)
    messages = warnings(events)
    must_warn = times == 2 and writer_class is SynchronousWriter  # else it may be over before anybody looks
    assert must_warn <= len(messages) <= 1
    assert all("No space left on device" in message and "training continues" in message for message in messages)
    assert failing.times_left == 0
    assert [event.step for event in events if isinstance(event, Progress)] == list(range(1, 25))
    found, expected = good_files(plan.run), good_files(uninterrupted(plan).plan.run)
    for name in ("model.safetensors", "state-24.safetensors"):
        assert found[name] == expected[name]
    assert not list(plan.run.folder.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("failing", "save_every", "at"),
    slow_but(
        [("fsync", 0.0, 1), ("replace", 60.0, 10), ("replace", 0.0, 23), ("fsync", 60.0, 24)],
        CALLS,
        OFTEN,
        [1, 10, 23, 24],
    ),
    indirect=["failing"],
)
def test_a_disk_that_keeps_failing_ends_the_run(plan, failing, uninterrupted, save_every, at):
    """After three failures or at the end. Earlier files are intact, and on a good disk the run resumes exactly."""
    events = []
    with pytest.raises(CharrnnError, match=r"No space left on device.*same command resumes") as caught:
        train_and_fail(plan, failing, at=at, times=10**6, save_every=save_every, events=events)
    assert type(caught.value) is CharrnnError
    assert caught.value.exit_code == 1
    assert not any(isinstance(event, Finished) for event in events)
    assert len(warnings(events)) <= 1
    assert good_files(plan.run) == failing.before
    assert not list(plan.run.folder.glob(".*.tmp"))
    failing.times_left = 0
    saved = plan.run.newest_state()
    assert saved.damaged == ()
    assert saved.meta["step"] <= at
    again = run_through(plan_again(plan))
    assert isinstance(again[-1], Finished)
    assert digests(plan)[0] == uninterrupted(plan).digests[0]


@both_calls
@pytest.mark.parametrize("save_every", [0.0, slow(60.0)])
def test_a_full_disk_ends_a_run_early(plan, failing, save_every, monkeypatch):
    """After three failures, although there are steps left."""
    monkeypatch.setattr(loop, "Writer", SynchronousWriter)  # so that each failure is seen in its step
    plan, events = with_settings(plan, steps=120), []
    with pytest.raises(CharrnnError, match="3 times in a row"):
        train_and_fail(plan, failing, at=20, times=10**6, save_every=save_every, events=events)
    assert events[-1].step < 100


@both_calls
def test_a_disk_that_is_full_at_the_start_is_found_before_the_first_step(plan, failing):
    """Nothing is trained, and no file is left."""
    failing.fail(10**6)
    events = []
    with pytest.raises(CharrnnError, match="No space left on device"):
        train_and_fail(plan, failing, at=-1, times=0, events=events)
    assert [type(event) for event in events] == [Plan]
    assert os.listdir(plan.run.folder) == []


@both_calls
def test_a_disk_that_fails_at_the_end_is_tried_again(plan, failing, monkeypatch):
    """The last save can fail once; if it fails twice, the run is not finished."""
    original = loop.finish_run

    def finish_run(*arguments):
        failing.fail(times)
        return original(*arguments)

    plan = with_settings(plan, steps=8)
    monkeypatch.setattr(loop, "finish_run", finish_run)
    times = 1
    assert isinstance(list(train(plan))[-1], Finished)
    plan.run.clear()
    times = 10**6
    with pytest.raises(CharrnnError, match="No space left on device"):
        list(train(plan))
    assert good_files(plan.run) == failing.before
    times = failing.times_left = 0
    events = list(train(plan_again(plan)))
    assert isinstance(events[-1], Finished)
    assert plan.run.newest_state().meta["finished"]


@both_calls
@pytest.mark.parametrize("times", [1, 10**6])
def test_a_stop_request_is_answered_on_a_failing_disk(plan, failing, times):
    """The state is saved at the second attempt, or the error says that it wasn't."""
    stop, events = StopRequest(), []

    def train_until_step_5():
        for event in train(plan, stop=stop):
            events.append(event)
            if isinstance(event, Progress) and event.step == 5:
                failing.fail(times)
                stop.signal_number = 15

    expected = Interrupted if times == 1 else CharrnnError
    with pytest.raises(expected) as ended:
        train_until_step_5()
    assert type(ended.value) is expected
    newest = plan.run.newest_state().meta["step"]
    assert newest == events[-1].step if times == 1 else newest < events[-1].step


@both_calls
def test_the_saved_model_is_never_worse_than_a_state_says(plan, failing, monkeypatch):
    """Whatever failed and when: a run that resumes from a state finds its best weights, or better ones."""
    monkeypatch.setattr(loop, "Writer", SynchronousWriter)  # so that no file is deleted while this test reads it
    for event in train(plan, save_every=0.0):
        if event.step in (5, 11, 17) and isinstance(event, Progress):
            failing.fail(2)
        if plan.run.model_path.exists():
            best = plan.run.newest_state().meta["best_nats"]
            assert best is None or load_model(plan.run.model_path).scores["nats_per_char"] <= best


# training on a slow disk


@pytest.fixture
def slow_disk(plan, uninterrupted, monkeypatch):
    """A disk that writes nothing until somebody waits for it without a time limit, or the writer ends."""
    uninterrupted(plan)  # trained on a fast disk
    ready, fsync, wait, leave = threading.Event(), os.fsync, Writer.wait, Writer.__exit__

    def slow_fsync(handle):
        if threading.current_thread().name == "writer":
            assert ready.wait(TIMEOUT)
        fsync(handle)

    def watched_wait(writer, seconds=None):
        if seconds is None:
            ready.set()
        done = wait(writer, seconds)
        ready.clear()
        return done

    def watched_leave(writer, *error):
        ready.set()
        leave(writer, *error)
        ready.clear()

    monkeypatch.setattr(saving, "MAX_WAIT", 0.001)
    monkeypatch.setattr(os, "fsync", slow_fsync)
    monkeypatch.setattr(Writer, "wait", watched_wait)
    monkeypatch.setattr(Writer, "__exit__", watched_leave)


@pytest.mark.usefixtures("slow_disk")
def test_a_slow_disk_delays_nothing_and_loses_nothing(plan, uninterrupted):
    """There are warnings; the files and the log in the end are those of a fast disk."""
    events = run_through(plan, save_every=0.0)
    assert digests(plan) == uninterrupted(plan).digests
    best = [event.step for event in events if isinstance(event, Evaluated) and event.best]
    assert [event.step for event in events if isinstance(event, Saved)] == best
    messages = warnings(events)
    assert any("has not written it yet" in message for message in messages)
    assert any("waiting for the disk" in message for message in messages)


@pytest.mark.usefixtures("slow_disk")
def test_a_run_killed_on_a_slow_disk_resumes_exactly(plan, uninterrupted):
    """Only items that were still waiting are lost."""
    run_through(plan, stop_after=23, save_every=0.0)
    run_through(plan_again(plan), stop_after=20, save_every=0.0)
    run_through(plan_again(plan), save_every=0.0)
    assert digests(plan) == uninterrupted(plan).digests
