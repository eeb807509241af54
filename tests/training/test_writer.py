"""A run's files are written by a thread: in which order, what is left out, and what a failing disk costs."""

import errno
import os
import threading
from dataclasses import replace

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.errors import CharrnnError
from charrnn.model.file import load_model
from charrnn.training.folder import Run
from charrnn.training.saving import MAX_FAILURES, StateSnapshot, Writer
from tests.conftest import make_model_file

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))
FINE = None
PATIENCE = 20.0  # seconds after which a test has failed


def model(number):
    """A model that can be told apart by its number."""
    config = ModelConfig(cell="gru", vocab_size=3, embedding_dim=2, hidden_size=2, num_layers=1)
    return replace(make_model_file(config), scores={"step": number})


def state(number):
    """A state of that step."""
    return StateSnapshot(number, {"x": np.full(3, number, np.float32)}, {"step": number})


class Disk:
    """Stands between a writer and the disk: notes what is written, is slow, and fails as often as it is told to."""

    def __init__(self):
        self.tried, self.written, self.failures = [], [], []
        self.ready, self.begun = threading.Event(), threading.Event()
        self.ready.set()

    def write(self, name, really):
        """Write in the thread's place, unless this one is to fail."""
        self.tried.append(name)
        self.begun.set()
        assert self.ready.wait(PATIENCE)
        failure = self.failures.pop(0) if self.failures else FINE
        if failure:
            raise failure
        really()
        self.written.append(name)

    def hold(self, writer, what):
        """Be slow from now on, with this under way."""
        self.begun.clear()
        self.ready.clear()
        writer.put(what)
        assert self.begun.wait(PATIENCE)


@pytest.fixture
def disk(monkeypatch):
    """A disk between every writer and every run's files."""
    from charrnn.training import saving as writer

    disk, save_model, save_state = Disk(), writer.save_model, Run.save_state

    def watched_model(path, file):
        disk.write(f"model {file.scores['step']}", lambda: save_model(path, file))

    def watched_state(run, step, tensors, meta):
        disk.write(f"state {step}", lambda: save_state(run, step, tensors, meta))

    monkeypatch.setattr(writer, "save_model", watched_model)
    monkeypatch.setattr(Run, "save_state", watched_state)
    return disk


@pytest.fixture
def run(tmp_path):
    """An empty run's folder."""
    run = Run("poems", root=tmp_path)
    run.folder.mkdir()
    return run


@pytest.fixture
def writer(run, disk):
    """A writer at work in that folder, and nothing of it left afterwards."""
    with Writer(run) as writer:
        yield writer
        disk.ready.set()
    assert not any(thread.name == "writer" for thread in threading.enumerate())


# order


def test_what_is_put_is_on_the_disk_when_it_was_waited_for(run, writer):
    """The files are those that reading finds."""
    writer.put(model(7))
    writer.put(state(7))
    assert writer.wait()
    assert load_model(run.model_path).scores == {"step": 7}
    saved = run.newest_state()
    assert saved.meta["step"] == 7
    assert saved.tensors["x"].tolist() == [7, 7, 7]
    assert writer.problem() is None


def test_a_model_is_written_before_its_state(disk, writer):
    """Who goes on from a state finds the weights that it takes for the best; an older state is of no use any more."""
    disk.hold(writer, state(0))
    writer.put(state(4))
    writer.put(model(5))
    writer.put(state(5))
    disk.ready.set()
    writer.wait()
    assert disk.written == ["state 0", "model 5", "state 5"]


def test_what_is_newer_takes_the_place_of_what_waits(disk, writer):
    """A slow disk isn't given a queue to work through; what is under way is finished."""
    disk.hold(writer, state(0))
    for what in (model(1), state(1), state(2), model(3), state(3), state(4)):
        writer.put(what)
    disk.ready.set()
    writer.wait()
    assert disk.written == ["state 0", "model 3", "state 4"]


def test_what_replaces_the_one_under_way_is_written_after_it(disk, writer):
    """It isn't taken for written with it."""
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
    """A state alone doesn't bring the model before it again."""
    for what in (model(1), state(1), state(2), model(3)):
        writer.put(what)
        writer.wait()
    writer.finish()
    assert disk.written == ["model 1", "state 1", "state 2", "model 3"]


def test_nobody_waits_for_a_slow_disk(disk, writer):
    """Putting returns at once; waiting says whether all is done when its time is up."""
    assert writer.wait(0.0)
    disk.hold(writer, state(1))
    assert not writer.wait(0.01)
    writer.put(model(2))
    writer.put(state(2))
    assert not writer.wait(0.01)
    assert writer.problem() is None
    assert disk.written == []
    disk.ready.set()
    assert writer.wait(PATIENCE)
    assert writer.wait(0.0)
    assert disk.written == ["state 1", "model 2", "state 2"]


@pytest.mark.parametrize("failure", [None, ZeroDivisionError])
def test_what_waits_is_written_before_the_thread_ends(disk, run, failure):
    """Also where the work around it failed."""

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


def test_a_failure_is_told_once_and_tried_again_with_the_newest(run, disk, writer):
    """Not by itself: the next save brings the next try, and once that went well a new failure is told again."""
    disk.failures = [FULL]
    writer.put(state(1))
    assert writer.wait()
    told = writer.problem()
    assert told.startswith(f"{run.state_path(1)}: No space left on device; ")
    assert "goes on" in told
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


def test_a_failure_under_way_is_tried_again_at_once_where_a_newer_one_waits(disk, writer):
    """Which is what the next save is."""
    disk.failures = [FULL]
    disk.hold(writer, state(1))
    writer.put(state(2))
    disk.ready.set()
    writer.wait()
    assert (disk.tried, disk.written) == (["state 1", "state 2"], ["state 2"])


def test_no_state_is_written_where_its_model_could_not_be(disk, writer):
    """It would count on it; both are written with the next save."""
    disk.failures = [FINE, FULL]
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


def test_only_what_failed_is_tried_again(disk, writer):
    """A model that is on the disk isn't written once more because its state isn't."""
    writer.put(model(1))
    writer.wait()
    disk.failures = [FULL]
    writer.put(state(1))
    writer.wait()
    writer.put(state(2))
    writer.wait()
    assert disk.tried == ["model 1", "state 1", "state 2"]
    assert disk.written == ["model 1", "state 2"]


def fail(disk, writer, *failures):
    """Save a state for each of the failures, or successes; return what is told of them."""
    told = []
    for number, failure in enumerate(failures):
        disk.failures = [failure]
        writer.put(state(number))
        writer.wait()
        told.append(writer.problem())
    return told


def test_three_failures_in_a_row_are_enough(disk, writer):
    """The error has the last reason, and says that what was saved before is whole."""
    assert MAX_FAILURES == 3
    first, second = fail(disk, writer, FULL, FULL)
    assert "No space" in first
    assert second is None
    with pytest.raises(CharrnnError, match=r"state-0.*Input/output error.*3 times in a row.*same command") as caught:
        fail(disk, writer, BROKEN)
    assert caught.value.exit_code == 1
    with pytest.raises(CharrnnError, match="3 times"):
        writer.problem()


def test_a_model_that_fails_with_its_state_counts_once(disk, writer):
    """A full disk has as many chances where the weights get better all the time as where they don't."""
    disk.failures = [FULL] * 4
    for step in (1, 2):
        for what in (model(step), state(step)):
            writer.put(what)
            writer.wait()
            assert (writer.problem() is None) == (disk.failures != [FULL] * 3)
    assert disk.tried == ["model 1", "model 1", "model 2", "model 2"]
    disk.failures = [FULL]
    writer.put(state(3))
    writer.wait()
    with pytest.raises(CharrnnError, match="3 times"):
        writer.problem()


def test_a_success_between_failures_makes_them_count_anew(disk, writer):
    """Two, a success and two more end nothing; each series is told once."""
    told = fail(disk, writer, FULL, FULL, FINE, FULL, FULL, FINE, FINE, FULL)
    assert [what is not None for what in told] == [True, False, False, True, False, False, False, True]


def test_a_success_counts_though_a_newer_one_waits(disk, writer):
    """On a disk so slow that something always waits, failures are no more in a row than on a fast one."""
    fail(disk, writer, FULL, FULL)
    disk.failures = [FINE, FULL, FULL]
    disk.hold(writer, state(3))
    writer.put(state(4))
    disk.ready.set()
    writer.wait()
    assert disk.written == ["state 3"]
    assert "No space" in writer.problem()
    writer.put(state(5))
    writer.wait()
    assert writer.problem() is None


def test_at_the_end_all_is_tried_once_more(disk, writer):
    """And then it is on the disk, or there is an error."""
    disk.failures = [FULL]
    writer.put(model(1))
    writer.put(state(1))
    writer.finish()
    assert disk.written == ["model 1", "state 1"]
    assert writer.problem() is None


def test_at_the_end_a_failure_is_an_error(run, disk, writer):
    """It was tried twice, not for ever; what was on the disk stays."""
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


def test_at_the_end_what_went_well_is_not_tried_again(disk, writer):
    """Nor is there anything to do where nothing was put."""
    writer.finish()
    writer.put(state(1))
    writer.finish()
    writer.finish()
    assert disk.tried == ["state 1"]


def test_the_end_waits_for_a_slow_disk(disk, writer):
    """However slow it is: what is finished is on it."""
    disk.hold(writer, model(1))
    writer.put(state(1))
    threading.Timer(0.05, disk.ready.set).start()
    writer.finish()
    assert disk.written == ["model 1", "state 1"]


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), MemoryError("no memory"), SystemExit("odd")], ids=repr)
@pytest.mark.parametrize("ask", ["wait", "problem", "finish"])
def test_what_is_no_failure_of_the_disk_is_raised_where_somebody_sees_it(disk, run, bug, ask):
    """By whatever is asked next, and again; nothing hangs, and nothing is taken for written."""
    with Writer(run) as writer:
        disk.failures = [bug]
        writer.put(state(1))
        while writer._thread.is_alive():
            writer._thread.join(PATIENCE)
        for _ in range(2):
            writer.put(state(2))
            with pytest.raises(type(bug), match=str(bug)):
                getattr(writer, ask)()
    assert disk.written == []


def test_a_bug_wakes_who_waits(disk, run):
    """Not only who comes after it."""
    with Writer(run) as writer:
        disk.failures = [ZeroDivisionError("a bug")]
        disk.hold(writer, state(1))
        threading.Timer(0.05, disk.ready.set).start()
        with pytest.raises(ZeroDivisionError):
            writer.wait(PATIENCE)
