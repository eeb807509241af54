"""The start of a run: what is read once, what is checked, and a run that was trained elsewhere in the meantime."""

import contextlib
import itertools
import os

import pytest

from charrnn.config import TrainConfig
from charrnn.distributed import Ranks
from charrnn.errors import ModelFileError, RunLockedError, UsageError
from charrnn.events import Finished, Resumed, Warned
from charrnn.model.file import load_model
from charrnn.runs.folder import Run
from charrnn.text.sources import STDIN
from charrnn.training.plan import Environment
from charrnn.training.run import check_unchanged, lock, make_plan, train_and_log
from tests.conftest import make_text, run_through

TINY = {"steps": 3, "hidden_size": 8, "embedding_dim": 4, "num_layers": 1, "batch_size": 4, "seq_len": 16}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with two texts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poems.txt").write_text(make_text(2000), encoding="utf-8")
    (tmp_path / "other.txt").write_text(make_text(1000, seed=9), encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(here):
    """A run with an empty folder."""
    run = Run("poems")
    run.folder.mkdir(parents=True)
    return run


def plan_poems(run, *, text="poems.txt", fresh=False, ranks=None, **given):
    """Plan a run on a text."""
    environment = Environment(threads=1, ranks=ranks or Ranks())
    return make_plan(run, [text], {**TINY, **given}, environment, fresh=fresh)


# new and resumed runs


def test_a_new_run_is_planned_from_its_text(run):
    """With the given settings."""
    plan = plan_poems(run, seed=7)
    assert plan.resume is None
    assert plan.task.corpus.vocab.decode(plan.task.corpus.ids) == make_text(2000)
    assert (plan.task.model.hidden_size, plan.task.training.steps, plan.task.training.seed) == (8, 3, 7)
    assert os.listdir(run.folder) == []


def test_a_state_is_read_once(run, monkeypatch):
    """However much of the plan depends on it."""
    run_through(plan_poems(run), stop_after=2)
    reads, newest_state = [], Run.newest_state

    def counted(run):
        reads.append(run)
        return newest_state(run)

    monkeypatch.setattr(Run, "newest_state", counted)
    assert plan_poems(run).first_step == 0
    assert len(reads) == 1


def test_a_damaged_newest_state_is_skipped_with_a_warning(run):
    """The run resumes from the state before it, and ends as if nothing had happened."""
    run_through(plan_poems(run), save_every=0.0)
    expected = load_model(run.model_path).scores
    newest = run.state_path(3)
    newest.write_bytes(newest.read_bytes()[:-1])
    plan = plan_poems(run)
    assert plan.newest_step == 3
    check_unchanged(plan)
    warning, resumed, *_, finished = run_through(plan, save_every=0.0)
    assert isinstance(warning, Warned)
    assert warning.message.startswith(str(newest))
    assert warning.message.endswith("; resuming from the state before it")
    assert plan.first_step < 3
    assert resumed == Resumed(plan.first_step, f"resuming from step {plan.first_step}")
    assert isinstance(finished, Finished)
    assert load_model(run.model_path).scores == expected


@pytest.mark.parametrize("state", ["model", "unfinished", "finished", "damaged", "other text"])
def test_a_fresh_run_is_planned_as_in_an_empty_folder(run, state):
    """Whatever the folder contains; planning deletes nothing."""
    new = plan_poems(run)
    if state == "model":
        run.model_path.touch()
    else:
        run_through(plan_poems(run, cell="lstm"), stop_after=None if state == "finished" else 5)
    if state == "damaged":
        for path in run.folder.glob("state-*"):
            path.write_bytes(b"damaged")
    before = sorted(run.folder.iterdir())
    text = "other.txt" if state == "other text" else "poems.txt"
    plan = plan_poems(run, text=text, fresh=True)
    assert plan.task.model == plan_poems(Run("new"), text=text).task.model
    assert (plan.task.training, plan.budget) == (new.task.training, new.budget)
    assert (plan.resume, plan.extends, plan.is_finished) == (None, False, False)
    assert sorted(run.folder.iterdir()) == before


# a run in the same folder in the meantime


def test_an_unchanged_folder_is_accepted(run):
    """Without states, with a state, or with a finished run."""
    check_unchanged(plan_poems(run))
    run_through(plan_poems(run), stop_after=2)
    check_unchanged(plan_poems(run))
    run_through(plan_poems(run))
    check_unchanged(plan_poems(run))


def assert_changed(plan):
    """Check that the plan is refused with one line that says what to do."""
    with pytest.raises(RunLockedError, match="another run trained here in the meantime; repeat the command") as caught:
        check_unchanged(plan)
    assert str(plan.run.folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_first_state_written_in_the_meantime_is_an_error(run):
    """The plan was for an empty folder."""
    plan = plan_poems(run)
    assert plan.newest_step is None
    run_through(plan_poems(run), stop_after=2)
    assert_changed(plan)


def test_a_newer_state_written_in_the_meantime_is_an_error(run):
    """The plan would repeat its steps."""
    run_through(plan_poems(run), stop_after=2)
    plan = plan_poems(run)
    assert plan.newest_step == 0
    run_through(plan_poems(run))
    assert_changed(plan)


def test_a_run_started_over_in_the_meantime_is_an_error(run):
    """The plan would resume a run that is no longer there."""
    run_through(plan_poems(run))
    plan = plan_poems(run)
    run.clear()
    run_through(plan_poems(run), stop_after=2)
    assert_changed(plan)


def test_a_state_written_while_the_plan_reads_it_is_an_error(run, monkeypatch):
    """The number of the newest state is taken before the state is read."""
    newest_state = Run.newest_state

    def late(run):
        found = newest_state(run)
        run.save_state(0, {}, {"step": 0})
        return found

    monkeypatch.setattr(Run, "newest_state", late)
    plan = plan_poems(run)
    monkeypatch.setattr(Run, "newest_state", newest_state)
    assert plan.resume is None
    assert_changed(plan)


# settings that contradict each other


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"minutes": 5.0}, "--minutes and --steps"),
        ({"minutes": 0.001, "steps": None}, r"--minutes must lie between 0\.01 and 1,000,000, not 0\.001"),
        ({"minutes": 1e7, "steps": None}, "--minutes must lie between"),
        ({"minutes": float("nan"), "steps": None}, "--minutes must lie between"),
        ({"valid": "other.txt", "valid_fraction": 0.1}, "--valid FILE and --valid-fraction"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(run, given, message):
    """Before any text is read."""
    with pytest.raises(UsageError, match=message):
        plan_poems(run, text="gone.txt", **given)


@pytest.mark.parametrize("given", [{"text": STDIN}, {"valid": STDIN}], ids=str)
def test_several_processes_cannot_share_stdin(run, given):
    """Neither for the text nor for the held-out text."""
    with pytest.raises(UsageError, match="stdin"):
        plan_poems(run, ranks=Ranks(rank=1, size=2), **given)


def test_a_held_out_file_is_named_by_its_absolute_path(run, here):
    """So that the same command from another folder names the same file."""
    plan = plan_poems(run, valid="other.txt")
    assert plan.task.corpus_config.valid == str(here / "other.txt")


# --init-from


def test_the_model_to_start_from_must_exist(run):
    """For a new run."""
    with pytest.raises(ModelFileError, match=r"gone\.safetensors"):
        plan_poems(run, init_from="gone.safetensors")


def test_the_model_to_start_from_is_named_by_its_absolute_path(run, here):
    """It can be given as a run; a run that resumes no longer needs it."""
    run_through(plan_poems(run))
    second = Run("second")
    second.folder.mkdir()
    plan = plan_poems(second, text="other.txt", init_from="poems")
    assert plan.base is not None
    assert plan.task.training.init_from == str(here / "checkpoints" / "poems" / "model.safetensors")
    run_through(plan, stop_after=2)
    for deleted in (False, True):
        if deleted:
            run.model_path.unlink()
        again = plan_poems(second, text="other.txt", init_from="poems")
        assert again.base is None
        assert again.task.training == plan.task.training
    assert TrainConfig.init_from is None


# a run that fails at once


def fail_while_locked(plan, *, num_events):
    """Train for so many events under the folder's lock, then fail."""
    with contextlib.suppress(MemoryError), lock(plan):
        list(itertools.islice(train_and_log(plan), num_events))
        raise MemoryError


@pytest.mark.parametrize("num_events", [0, 1])
def test_a_run_that_fails_before_its_first_step_leaves_nothing(run, num_events):
    """With or without a log; the same command with other settings is then a new run."""
    fail_while_locked(plan_poems(run, steps=9), num_events=num_events)
    assert not run.root.exists()
    assert plan_poems(run, steps=9, cell="lstm").resume is None


def test_a_run_that_fails_later_can_be_resumed(run):
    """It has logged its progress."""
    fail_while_locked(plan_poems(run, steps=9), num_events=2)
    assert plan_poems(run, steps=9).resume is not None


def test_a_resumed_run_that_fails_at_once_stays(run):
    """Whatever its step."""
    fail_while_locked(plan_poems(run, steps=9), num_events=2)
    fail_while_locked(plan_poems(run, steps=9), num_events=0)
    assert plan_poems(run, steps=9).resume is not None
