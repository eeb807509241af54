"""A run's folder: whose it is, what is in it, and which of its states is good."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from charrnn.cli.signals import catching_signals
from charrnn.errors import CharrnnError, ModelFileError, RunLockedError, UsageError
from charrnn.training.folder import (
    MODEL_NAME,
    SESSION_EVENTS,
    Log,
    Run,
    find_model,
    list_models,
    list_without_model,
    run_name,
)
from charrnn.training.recipe import StopRequest

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


@pytest.fixture
def run(tmp_path):
    """An empty run's folder."""
    run = Run("poems", root=tmp_path / "checkpoints")
    run.folder.mkdir(parents=True)
    return run


def save(run, *steps):
    """Write states that can be told apart by their step."""
    for step in steps:
        run.save_state(step, {"x": np.array([step], np.float32)}, {"step": step, "note": f"né {step}"})


def state_files(run):
    """The names of the states there are."""
    return sorted(path.name for path in run.folder.glob("state-*"))


def damage(path):
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_models(root, *names, times=None):
    """Empty model files, each a second younger than the one before it."""
    for index, name in enumerate(names):
        path = root / name / MODEL_NAME
        path.parent.mkdir(parents=True)
        path.touch()
        time = 1_000_000_000 + (times[index] if times else index)
        os.utime(path, (time, time))


# names


@pytest.mark.parametrize("name", ["poems", "a b", "né", "-x", ".hidden", "[b]", "...", "a.b", "x" * 200])
def test_a_usable_name_is_a_folder_below_the_root(tmp_path, name):
    """Anything that is one folder name on this system will do."""
    run = Run(name, root=tmp_path)
    with run.locked():
        assert run.folder == tmp_path / name
        assert run.folder.is_dir()
    assert run.model_path.parent == run.log_path.parent == run.folder


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "/etc", "../x", "a\\b", "a\0b", "a/"])
def test_a_name_that_leaves_the_root_is_refused(name):
    """A run's name is no path; the error names the flag."""
    with pytest.raises(UsageError, match="--run"):
        Run(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("poems.txt", "poems"),
        ("a/b/poems.txt", "poems"),
        ("/a/poems", "poems"),
        ("poems.tar.gz", "poems.tar"),
        (".poems", ".poems"),
        ("folder/", "folder"),
        ("folder/..", "here"),
        (".", "here"),
        ("né è.txt", "né è"),
        ("-", "stdin"),
        ("./-", "-"),
    ],
)
def test_a_run_is_named_after_its_first_text(tmp_path, monkeypatch, text, name):
    """By the file's stem or the folder's name; a text on stdin has none."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_name(text) == name
    Run(name)


# finding models


def test_runs_are_listed_oldest_first(tmp_path):
    """By the time of the model file, not by name; folders without one are no models."""
    make_models(tmp_path, "b", "c", "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / MODEL_NAME).touch()
    assert list_models(root=tmp_path) == [tmp_path / name / MODEL_NAME for name in "bca"]


def test_a_root_without_runs_lists_nothing(tmp_path):
    """Nor does one that isn't there."""
    assert list_models(root=tmp_path) == []
    assert list_models(root=tmp_path / "gone") == []


@pytest.mark.parametrize("which", ["file", "folder", "name", None])
def test_a_model_is_found_in_four_ways(tmp_path, monkeypatch, which):
    """By file, by run's folder, by run's name, or, if nothing is said, the newest."""
    make_models(tmp_path / "checkpoints", "wanted", "other", times=[5, 3] if which is None else [3, 5])
    monkeypatch.chdir(tmp_path)
    wanted = Path("checkpoints") / "wanted"
    said = {"file": str(wanted / MODEL_NAME), "folder": str(wanted), "name": "wanted", None: None}[which]
    assert find_model(said) == wanted / MODEL_NAME


def test_a_copied_file_is_found_under_any_name(tmp_path):
    """A model is one file, copied anywhere."""
    (tmp_path / "copy.bin").touch()
    assert find_model(str(tmp_path / "copy.bin"), root=tmp_path / "gone") == tmp_path / "copy.bin"


def test_a_text_does_not_hide_the_run_that_is_named_after_it(tmp_path, monkeypatch):
    """`charrnn train poems` makes the run poems, so `-m poems` beside that text must find it."""
    monkeypatch.chdir(tmp_path)
    Path("poems").write_text("a text without a suffix")
    make_models(Path("checkpoints"), run_name("poems"))
    assert find_model("poems") == Path("checkpoints") / "poems" / MODEL_NAME


@pytest.mark.parametrize("which", ["gone", "checkpoints", "checkpoints/empty", "empty", "gone.safetensors"])
def test_what_is_no_model_is_named(tmp_path, monkeypatch, which):
    """The error says what was looked for, and how to find out what there is."""
    make_models(tmp_path / "checkpoints", "other")
    (tmp_path / "checkpoints" / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match=rf"^{which}: .*charrnn info"):
        find_model(which)


def test_no_model_at_all_says_how_to_make_one(tmp_path, monkeypatch):
    """The first thing a new user meets is a command to try."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match=r"\./checkpoints.*charrnn train"):
        find_model(None)


# the lock

HOLD = """
import sys
from pathlib import Path
from charrnn.runs import Run
with Run("poems", root=Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(run):
    """Another process holds the run's folder until the block ends."""
    command = [sys.executable, "-c", HOLD, str(run.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def test_a_run_in_use_is_refused_with_who_uses_it(run):
    """A second process gets an error at once that names the folder, the first process and a way out."""
    with held_elsewhere(run) as process:
        with pytest.raises(RunLockedError) as caught, run.locked():
            pytest.fail("both hold the folder")
        assert str(run.folder) in str(caught.value)
        assert f"process {process.pid};" in str(caught.value)
        assert "--run" in str(caught.value)
        with Run("other", root=run.root).locked():
            assert (run.root / "other").is_dir()


def test_a_dead_process_holds_nothing(run):
    """Killed with the lock in hand, it is not in anybody's way."""
    with held_elsewhere(run) as process:
        process.kill()
        process.wait()
        with run.locked():
            assert run.folder.is_dir()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, None])
def test_the_lock_is_given_back(run, failure):
    """However the work ended; the folder can be locked again, and what was raised is raised."""
    if failure:
        with pytest.raises(failure), run.locked():
            raise failure
    else:
        with run.locked():
            pass
    with Run("poems", root=run.root).locked():
        assert run.folder.is_dir()


def test_locking_makes_the_folder(tmp_path):
    """And those above it; a run's first act is to lock."""
    run = Run("new", root=tmp_path / "a" / "b")
    with run.locked():
        assert run.folder.is_dir()
    with run.locked():
        assert run.folder.is_dir()


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/poems"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path, place):
    """A file in its place is the user's to move, so it is an error line and no traceback."""
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")
    with pytest.raises(CharrnnError, match="poems"), Run("poems", root=tmp_path / "checkpoints").locked():
        pytest.fail("locked a folder that isn't there")


def test_a_name_too_long_for_the_system_is_told(tmp_path):
    """The error names the folder, as for any other that can't be made."""
    with pytest.raises(CharrnnError, match="xxx"), Run("x" * 1000, root=tmp_path).locked():
        pytest.fail("locked a folder that isn't there")


# states


def test_a_state_comes_back_as_it_was(run):
    """Tensors by name and bit for bit, and the plain values beside them."""
    arrays = {"weights.a": np.arange(6, dtype=np.float32).reshape(2, 3), "hidden.0": np.zeros((1, 2, 3), np.float32)}
    meta = {"step": 3, "best_nats": 1 / 3, "num_steps": None, "finished": False, "cursor": {"time": 5}}
    run.save_state(3, arrays, meta)
    state = run.newest_state()
    assert state.path == run.state_path(3)
    assert state.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (state.tensors[name].dtype, state.tensors[name].shape) == (array.dtype, array.shape)
        assert state.tensors[name].tobytes() == array.tobytes()
    assert {name: state.meta[name] for name in meta} == meta


def test_a_new_run_has_no_state(run, tmp_path):
    """Nor has one whose folder isn't there; files of other names are none."""
    for name in ("state-.safetensors", "state-x.safetensors", "state-1.safetensors.tmp", MODEL_NAME):
        (run.folder / name).touch()
    assert run.newest_state() is None
    assert Run("gone", root=tmp_path).newest_state() is None


def test_the_newest_state_is_that_of_the_largest_step(run):
    """By number, not by name, which sorts 9 after 10."""
    save(run, 9, 10)
    assert run.newest_state().meta["step"] == 10


def test_only_the_newest_two_states_are_kept(run):
    """Older ones go as new ones come; the model and the log stay."""
    run.model_path.touch()
    log_all(run, "plan")
    kept = []
    for step in (0, 5, 10, 100, 1000):
        save(run, step)
        kept = [*kept, f"state-{step}.safetensors"][-2:]
        assert state_files(run) == sorted(kept)
    assert run.model_path.exists()
    assert run.log_path.exists()


def test_saving_the_same_step_again_replaces_it(run):
    """A run that goes on writes the state it came from anew."""
    save(run, 5, 10, 10)
    assert state_files(run) == ["state-10.safetensors", "state-5.safetensors"]
    run.save_state(10, {"x": np.array([0])}, {"step": 10, "note": "again"})
    assert run.newest_state().meta["note"] == "again"


def test_a_damaged_newest_state_is_passed_over(run):
    """The one before it is used, and what was skipped is told by name."""
    save(run, 5, 10)
    damage(run.state_path(10))
    state = run.newest_state()
    assert state.meta["step"] == 5
    assert len(state.damaged) == 1
    assert str(run.state_path(10)) in state.damaged[0]
    save(run, 10)
    assert run.newest_state().meta["step"] == 10
    assert run.newest_state().damaged == ()


@pytest.mark.parametrize("content", [b"", b"\0" * 100])
def test_an_empty_newest_state_is_passed_over(run, content):
    """So is one that a crash left without its content, or with zeros."""
    save(run, 5, 10)
    run.state_path(10).write_bytes(content)
    assert run.newest_state().meta["step"] == 5


def test_a_damaged_older_state_does_not_matter(run):
    """Nothing is skipped where the newest is whole."""
    save(run, 5, 10)
    damage(run.state_path(5))
    assert run.newest_state().meta["step"] == 10
    assert run.newest_state().damaged == ()


def test_good_states_are_not_given_up_for_damaged_ones(run):
    """After falling back, the state gone on from is kept until there are two good ones."""
    save(run, 20, 30)
    damage(run.state_path(30))
    assert run.newest_state().meta["step"] == 20
    save(run, 20, 25)
    damage(run.state_path(25))
    assert run.newest_state().meta["step"] == 20


def test_where_all_states_are_damaged_there_is_an_error(run):
    """Starting over in silence would throw away what a person may still save."""
    save(run, 5, 10)
    for step in (5, 10):
        damage(run.state_path(step))
    with pytest.raises(ModelFileError, match=r"state-10.*--fresh"):
        run.newest_state()
    assert state_files(run) == ["state-10.safetensors", "state-5.safetensors"]


def test_clearing_forgets_a_run(run):
    """States, model and log go; another run's stay, and clearing twice is nothing."""
    other = Run("other", root=run.root)
    other.folder.mkdir()
    for each in (run, other):
        save(each, 5, 10)
        each.model_path.touch()
        log_all(each, "plan")
    run.clear()
    run.clear()
    assert os.listdir(run.folder) == []
    assert run.newest_state() is None
    assert other.newest_state().meta["step"] == 10
    assert other.model_path.exists()
    assert other.log_path.exists()


def test_clearing_works_under_the_lock(run):
    """--fresh clears while it holds the folder, and goes on holding it."""
    save(run, 5)
    with run.locked():
        run.clear()
        assert state_files(run) == []
        script = HOLD.replace("sys.stdin.read()", "")
        done = subprocess.run(
            [sys.executable, "-c", script, str(run.root)], capture_output=True, text=True, check=False
        )
        assert "RunLockedError" in done.stderr


# the log


def test_the_log_is_one_json_object_a_line(run):
    """In the order of logging, whatever the values hold, and on disk at once."""
    records = [{"event": "sample", "step": 1, "text": 'a\r\n"\u2028\udcff\0é'}, {"event": "saved", "step": None}]
    log = Log(run)
    for count, record in enumerate(records, start=1):
        assert log.append(record) is None
        lines = run.log_path.read_bytes().split(b"\n")
        assert [json.loads(line) for line in lines[:-1]] == records[:count]
        assert lines[-1] == b""


def events(run):
    """The names of the logged events."""
    return [json.loads(line)["event"] for line in run.log_path.read_text().splitlines()]


def log_all(run, *names):
    """Log an event of each name, with a text that tries to look like another."""
    for name in names:
        assert Log(run).append({"event": name, "step": 1, "text": '"event": "warning"\u2028é\n'}) is None


def count_events(run):
    """How many events of the run, whichever sittings it took, the log has: what a state of the moment would say."""
    return sum(name not in SESSION_EVENTS for name in events(run))


def test_rewinding_drops_what_was_logged_after_a_state(run):
    """The lines before it stay byte for byte, and logging goes on after them."""
    log_all(run, "plan", "sample")
    before, count = run.log_path.read_bytes(), count_events(run)
    log_all(run, "progress", "evaluated", "sample")
    run.rewind_log(count)
    assert run.log_path.read_bytes() == before
    log_all(run, "resumed", "progress")
    assert events(run) == ["plan", "sample", "resumed", "progress"]


def test_what_belongs_to_a_sitting_does_not_count(run):
    """That a run resumed and was warned is no event of the run: it neither counts nor goes."""
    log_all(run, "warning", "plan", "progress", "resumed", "warning", "evaluated")
    count = count_events(run)
    assert count == 3
    log_all(run, "progress", "resumed", "progress")
    run.rewind_log(count)
    assert events(run) == ["warning", "plan", "progress", "resumed", "warning", "evaluated", "resumed"]


def test_the_events_of_a_run_are_counted(run):
    """Those of its sittings left out; nothing is logged before there is a log."""
    assert run.num_logged() == 0
    log_all(run, "warning", "plan", "progress", "resumed", "finished")
    assert run.num_logged() == 3


def test_the_last_step_is_told_whether_its_state_is_good_or_not(run):
    """By the name of the newest file."""
    assert run.last_step() is None
    save(run, 9, 10)
    assert run.last_step() == 10
    damage(run.state_path(10))
    assert run.last_step() == 10


def test_a_line_cut_by_a_crash_is_dropped(run):
    """What was logged after the state goes, whole or not, so that the log stays one object a line."""
    log_all(run, "plan")
    with run.log_path.open("a") as file:
        file.write('{"event": "progr')
    run.rewind_log(1)
    log_all(run, "resumed")
    assert events(run) == ["plan", "resumed"]


def test_rewinding_never_makes_a_log_longer(run):
    """A log that was cut or deleted by hand stays as it is."""
    run.rewind_log(10)
    assert not run.log_path.exists() or run.log_path.read_bytes() == b""
    log_all(run, "plan", "progress")
    before = run.log_path.read_bytes()
    run.rewind_log(1000)
    assert run.log_path.read_bytes() == before
    run.rewind_log(0)
    assert run.log_path.read_bytes() == b""


def test_a_damaged_log_stops_no_run(run):
    """It is a record for people; bytes in it that are no text cost nobody a state."""
    log_all(run, "plan")
    with run.log_path.open("ab") as file:
        file.write(b"\xff\0\n")
    before = run.log_path.read_bytes()
    save(run, 5)
    assert run.newest_state().meta["step"] == 5
    log_all(run, "progress")
    run.rewind_log(2)
    assert run.log_path.read_bytes() == before


# a disk that fails


@contextmanager
def largest_file(num_bytes):
    """Until the block ends, no file of this process grows beyond so many bytes: what is more isn't written."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def record(number):
    """An event that can be told apart by its step."""
    return {"event": "progress", "step": number, "text": "é" * 20}


def steps(run):
    """The steps of the logged events; every line must be whole."""
    assert run.log_path.read_bytes().endswith(b"\n")
    return [json.loads(line)["step"] for line in run.log_path.read_text().splitlines()]


@posix
@pytest.mark.parametrize("room", [0, 1, 30])
def test_what_a_full_disk_does_not_take_is_logged_later(run, room):
    """Told once; no line is torn meanwhile, and with the first that fits all come, in their order."""
    log = Log(run)
    log.append(record(0))
    before = run.log_path.read_bytes()
    with largest_file(len(before) + room):
        told = log.append(record(1))
        assert run.log_path.read_bytes() == before
        assert log.append(record(2)) is None
        assert log.append(record(3)) is None
        assert run.log_path.read_bytes() == before
    assert told.startswith(f"{run.log_path}: ")
    assert "goes on" in told
    assert log.append(record(4)) is None
    assert steps(run) == [0, 1, 2, 3, 4]


@posix
def test_each_time_a_disk_begins_to_fail_it_is_told(run):
    """Once a series, not once for all."""
    log, told = Log(run), []
    for number, room in enumerate((10**6, 1, 1, 10**6, 10**6, 1, 10**6)):
        with largest_file(room):
            told.append(log.append(record(number)))
    assert [what is not None for what in told] == [False, True, False, False, False, True, False]
    assert steps(run) == list(range(7))


@posix
def test_a_first_line_that_does_not_fit_leaves_nothing(run):
    """Not even its beginning."""
    log = Log(run)
    with largest_file(20):
        assert log.append(record(0)) is not None
        assert run.log_path.read_bytes() == b""
    log.finish()
    assert steps(run) == [0]


@posix
def test_a_log_that_never_fits_is_an_error_at_the_end(run):
    """With the file and the reason, and exit code 1; where nothing waits there is none."""
    log = Log(run)
    log.append(record(0))
    log.finish()
    with largest_file(run.log_path.stat().st_size):
        log.finish()
        log.append(record(1))
        with pytest.raises(CharrnnError, match=r"log\.jsonl: File too large") as caught:
            log.finish()
    assert caught.value.exit_code == 1
    assert steps(run) == [0]
    log.finish()
    assert steps(run) == [0, 1]


@posix
def test_a_torn_line_does_not_join_what_waited(run):
    """A crash's line stays alone, also where the disk is full at first."""
    log_all(run, "plan")
    with run.log_path.open("ab") as file:
        file.write(b'{"event": "progr')
    log = Log(run)
    with largest_file(run.log_path.stat().st_size + 5):
        assert log.append(record(1)) is not None
    assert log.append(record(2)) is None
    lines = run.log_path.read_bytes().splitlines()
    assert lines[1] == b'{"event": "progr'
    assert [json.loads(line)["step"] for line in lines[2:]] == [1, 2]


def test_a_log_whose_folder_went_away_stops_nothing(run):
    """It is told; what waits is written when the folder is back."""
    log = Log(run)
    run.folder.rmdir()
    assert "No such file" in log.append(record(0))
    assert log.append(record(1)) is None
    run.folder.mkdir()
    log.finish()
    assert steps(run) == [0, 1]


def test_a_log_that_cannot_be_opened_loses_nothing(run, monkeypatch):
    """Neither what was in it before this sitting, nor what was written just before."""
    log_all(run, "plan", "evaluated")
    with monkeypatch.context() as patch:
        log = Log(run)
        patch.setattr(Path, "open", refuse)
        assert "Too many open files" in log.append(record(1))
        assert log.append(record(2)) is None
    log.append(record(3))
    assert steps(run) == [1, 1, 1, 2, 3]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert log.append(record(4)) is not None
    log.append(record(5))
    assert steps(run) == [1, 1, 1, 2, 3, 4, 5]


def refuse(*_arguments, **_options):
    """What opening a file does where too many are open."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_line_written_though_its_file_could_not_be_closed_is_not_written_twice(run, monkeypatch):
    """As on a network's disk, which tells only then that it is full."""
    log, original = Log(run), Path.open
    log.append(record(0))

    @contextmanager
    def ill(path, *arguments, **options):
        with original(path, *arguments, **options) as file:
            yield file
        refuse()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", ill)
        assert log.append(record(1)) is not None
        assert log.append(record(2)) is None
    log.append(record(3))
    assert steps(run) == [0, 1, 2, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_reason_is_that_of_the_write(run):
    """Not that of undoing it, which a device that is full can't do either."""
    run.log_path.symlink_to("/dev/full")
    assert "No space left" in Log(run).append(record(0))


# where a run may write


def test_a_folder_that_can_be_written_to_is_fine(run, tmp_path):
    """Whether it is there or is to be made; nothing is made."""
    run.check_writable()
    Run("new", root=tmp_path / "a" / "b").check_writable()
    assert not (tmp_path / "a").exists()


def test_the_folder_that_would_be_written_to_is_asked(tmp_path, monkeypatch):
    """The nearest that is there; relative ones begin at the current folder."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((Path(path).absolute(), mode)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "run").mkdir(parents=True)
    for root, name in (("there", "run"), ("there", "new"), ("gone", "new"), ("gone/far", "new")):
        with pytest.raises(CharrnnError, match="can't be written to"):
            Run(name, root=Path(root)).check_writable()
    folders = [tmp_path / "there" / "run", tmp_path / "there", tmp_path, tmp_path]
    assert asked == [(folder, os.W_OK | os.X_OK) for folder in folders]


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/poems"])
def test_a_file_in_the_folders_place_is_told(tmp_path, place):
    """By name, before a long text is read."""
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")
    with pytest.raises(CharrnnError, match=place):
        Run("poems", root=tmp_path / "checkpoints").check_writable()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user who isn't root")
def test_a_folder_of_somebody_else_is_told(tmp_path):
    """Read-only ones are named."""
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(CharrnnError, match="can't be written to"):
            Run("poems", root=tmp_path / "checkpoints").check_writable()
    finally:
        tmp_path.chmod(0o755)


# signals

CAUGHT = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
HANDLED = [*CAUGHT, *(name for name in ("SIGTSTP",) if hasattr(signal, name))]


@contextmanager
def handlers_put_back():
    """What a test does to signal handlers ends with it."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in HANDLED}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


@posix
@pytest.mark.parametrize("name", CAUGHT)
def test_the_first_signal_is_a_request(name):
    """It ends nothing at once; it is noted, for the run to end after its step."""
    number = getattr(signal, name)
    with handlers_put_back(), catching_signals() as request:
        assert request.signal_number is None
        os.kill(os.getpid(), number)
        assert request.signal_number == number


def test_handlers_are_put_back():
    """Whether a signal came or not, and also when the block raises."""
    with handlers_put_back():
        numbers = [getattr(signal, name) for name in HANDLED]
        mine = {number: lambda *_: None for number in numbers}
        for number in numbers:
            signal.signal(number, mine[number])
        with catching_signals():
            assert all(signal.getsignal(number) is not mine[number] for number in numbers)
        assert {number: signal.getsignal(number) for number in numbers} == mine
        with pytest.raises(ZeroDivisionError), catching_signals():
            raise ZeroDivisionError(signal.raise_signal(signal.SIGTERM))
        assert {number: signal.getsignal(number) for number in numbers} == mine


@posix
def test_an_ignored_signal_stays_ignored():
    """As SIGHUP is under nohup: the run outlives its terminal, before another signal and after it."""
    with handlers_put_back():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with catching_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal_number is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.signal_number == signal.SIGTERM
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@posix
@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGTERM")])
def test_a_second_signal_ends_the_process(first, second):
    """Who asks twice doesn't want to wait; the process ends by that signal."""
    script = (
        "import os, signal\n"
        "from charrnn.runs import catching_signals\n"
        "with catching_signals() as request:\n"
        f"    os.kill(os.getpid(), signal.{first})\n"
        f"    assert request.signal_number == signal.{first}\n"
        "    print('still here', flush=True)\n"
        f"    os.kill(os.getpid(), signal.{second})\n"
        "    print('never said')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "still here\n"
    assert done.returncode == -getattr(signal, second)


PAUSED = """
import signal, sys, time
from charrnn.runs import catching_signals
with catching_signals() as request:
    for _ in range(2):
        paused, clock, real = request.paused, request.clock(), time.perf_counter()
        print("ready", flush=True)
        while request.paused == paused and time.perf_counter() < real + 20:
            time.sleep(0.001)
        print(request.paused - paused, request.clock() - clock, time.perf_counter() - real, flush=True)
    print(request.signal_number)
"""


@posix
def test_a_pause_is_not_counted():
    """Ctrl-Z stops the process as ever; the clock goes on where it was when it is continued, each time."""
    command = [sys.executable, "-c", PAUSED]
    # a group of its own, which has a parent outside: the system stops no others by this signal
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            for _ in range(2):
                assert process.stdout.readline() == "ready\n"
                process.send_signal(signal.SIGTSTP)
                _, status = os.waitpid(process.pid, os.WUNTRACED)
                assert os.WIFSTOPPED(status)
                time.sleep(0.4)
                process.send_signal(signal.SIGCONT)
                paused, counted, real = map(float, process.stdout.readline().split())
                assert paused >= 0.4
                assert counted == pytest.approx(real - paused, abs=0.1)
            assert process.stdout.readline() == "None\n"
            assert process.wait(10) == 0
        finally:
            process.kill()


@posix
def test_an_ignored_pause_stays_ignored():
    """Who started the process so wants it never to stop."""
    script = (
        "import os, signal\n"
        "from charrnn.runs import catching_signals\n"
        "signal.signal(signal.SIGTSTP, signal.SIG_IGN)\n"
        "with catching_signals() as request:\n"
        "    os.kill(os.getpid(), signal.SIGTSTP)\n"
        "    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN\n"
        "    print(request.paused, request.signal_number)\n"
        "assert signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFEXITED(status)
            assert os.WEXITSTATUS(status) == 0
            assert process.stdout.read() == "0.0 None\n"
        finally:
            process.kill()


def test_the_clock_runs_where_nothing_pauses():
    """In the seconds of the system's own; what was paused is left out."""
    request = StopRequest()
    before, clock, after = time.perf_counter(), request.clock(), time.perf_counter()
    assert before <= clock <= after
    request.paused += 100.0
    assert before - 100.0 <= request.clock() <= time.perf_counter() - 100.0


def test_a_line_that_a_crash_cut_never_joins_the_next(run):
    """What is logged after it is whole, and the cut line goes when the log is rewound."""
    log_all(run, "plan")
    with run.log_path.open("ab") as file:
        file.write(b'{"event": "progr')
    log_all(run, "resumed")
    run.rewind_log(1)
    assert events(run) == ["plan", "resumed"]


def test_a_run_without_a_model_is_told_from_none(run):
    """Stopped before its first evaluation, it has states, and its train command goes on."""
    save(run, 3)
    assert list_without_model(root=run.root) == [run.name]
    with pytest.raises(ModelFileError, match="goes on"):
        find_model(run.name, root=run.root)
    run.model_path.touch()
    assert list_without_model(root=run.root) == []
