"""A run's folder: its name, its lock, its states, and how models are found."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from charrnn.errors import CharrnnError, ModelFileError, RunLockedError, UsageError
from charrnn.files import MODEL_NAME, list_models
from charrnn.runs.folder import Run
from charrnn.runs.log import Log
from charrnn.runs.models import find_model, list_without_model, run_name

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


@pytest.fixture
def run(tmp_path):
    """A run with an empty folder."""
    run = Run("poems", root=tmp_path / "checkpoints")
    run.folder.mkdir(parents=True)
    return run


def save(run, *steps):
    """Write states that differ by their step."""
    for step in steps:
        run.save_state(step, {"x": np.array([step], np.float32)}, {"step": step, "note": f"né {step}"})


def state_files(run):
    """The names of the state files."""
    return sorted(path.name for path in run.folder.glob("state-*"))


def damage(path):
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_models(*names, times=None):
    """Create empty model files in ./checkpoints, each a second younger than the one before."""
    for index, name in enumerate(names):
        path = Path("checkpoints") / name / MODEL_NAME
        path.parent.mkdir(parents=True)
        path.touch()
        time = 1_000_000_000 + (times[index] if times else index)
        os.utime(path, (time, time))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# names


@pytest.mark.parametrize(
    "name", ["poems", "a b", "né", "-x", ".hidden", "[b]", "...a", "a.b", "x" * 200, "console", "a&b"]
)
def test_a_usable_name_is_a_folder_in_the_root(tmp_path, name):
    """Any name that all systems allow."""
    run = Run(name, root=tmp_path)
    with run.locked():
        assert run.folder == tmp_path / name
        assert run.folder.is_dir()
    assert run.model_path.parent == run.log_path.parent == run.folder


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "/etc", "../x", "a\\b", "a\0b", "a/", "x" * 1000])
def test_a_path_is_not_a_name(name):
    """Nor is a name too long for a folder; the error names the option."""
    with pytest.raises(UsageError, match="--run"):
        Run(name)


@pytest.mark.parametrize(
    "name", ["con", "NUL", "nul.a", "Com1", "lpt9 .x", "com¹", "conin$", "a:b", "a?", "a\nb", "a.", "a ", "..."]
)
def test_a_name_that_windows_refuses_is_refused_everywhere(name):
    """A run's folder may be copied there."""
    with pytest.raises(UsageError, match="choose another --run NAME"):
        Run(name)


def test_a_new_run_differs_from_others_in_more_than_case(tmp_path):
    """Or macOS and Windows would take its folder for the other's; a run that exists can go on."""
    (tmp_path / "Names").mkdir()
    with pytest.raises(UsageError, match="differs from the run 'Names' only in case"):
        Run("names", root=tmp_path).check_writable()
    (tmp_path / "names").mkdir(exist_ok=True)
    Run("names", root=tmp_path).check_writable()
    Run("Names", root=tmp_path).check_writable()


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
    """By the file's stem or the folder's name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_name(text) == name
    Run(name)


# finding models


def test_models_are_listed_oldest_first(here):
    """By the time of the model file, not by name; folders without one are skipped."""
    make_models("b", "c", "a")
    (here / "checkpoints" / "empty").mkdir()
    (here / "checkpoints" / MODEL_NAME).touch()
    assert list_models(Path("checkpoints")) == [Path("checkpoints") / name / MODEL_NAME for name in "bca"]


def test_without_runs_no_model_is_listed(here):
    """Whether or not the folder of all runs exists."""
    assert list_models(Path("checkpoints")) == []
    (here / "checkpoints").mkdir()
    assert list_models(Path("checkpoints")) == []


@pytest.mark.parametrize("which", ["file", "folder", "name", None])
@pytest.mark.usefixtures("here")
def test_a_model_is_found_in_four_ways(which):
    """By file, by the run's folder, by the run's name, or the newest by default."""
    make_models("wanted", "other", times=[5, 3] if which is None else [3, 5])
    wanted = Path("checkpoints") / "wanted"
    given = {"file": str(wanted / MODEL_NAME), "folder": str(wanted), "name": "wanted", None: None}[which]
    assert find_model(given) == wanted / MODEL_NAME


def test_a_copied_file_is_found_under_any_name(here):
    """A model is one file that can be copied anywhere."""
    (here / "copy.bin").touch()
    assert find_model(str(here / "copy.bin")) == here / "copy.bin"


@pytest.mark.usefixtures("here")
def test_a_name_is_the_same_however_its_accents_are_encoded():
    """Two runs whose names look alike would be told apart by nobody."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert Run(decomposed).name == Run(composed).name == composed
    make_models(decomposed)  # by an older version, or copied from another system
    assert find_model(decomposed).parent.name == decomposed
    make_models(composed)
    assert find_model(decomposed).parent.name == find_model(composed).parent.name == composed


@pytest.mark.usefixtures("here")
def test_a_text_does_not_hide_the_run_named_after_it():
    """`charrnn train poems` makes the run poems, so `-m poems` next to that text must find it."""
    Path("poems").write_text("a text without a suffix")
    make_models(run_name("poems"))
    assert find_model("poems") == Path("checkpoints") / "poems" / MODEL_NAME


@pytest.mark.parametrize("which", ["gone", "checkpoints", "checkpoints/empty", "empty", "gone.safetensors"])
def test_the_error_names_what_was_not_found(here, which):
    """And says how to list the runs."""
    make_models("other")
    (here / "checkpoints" / "empty").mkdir()
    with pytest.raises(ModelFileError, match=rf"^{which}: .*charrnn info"):
        find_model(which)


@pytest.mark.usefixtures("here")
def test_without_any_model_the_error_says_how_to_make_one():
    """A new user meets it first."""
    with pytest.raises(ModelFileError, match=r"\./checkpoints.*charrnn train"):
        find_model(None)


@pytest.mark.usefixtures("here")
def test_a_run_without_a_model_is_not_called_missing():
    """It was stopped before its first evaluation; the same train command resumes it."""
    run = Run("poems")
    run.folder.mkdir(parents=True)
    save(run, 3)
    assert list_without_model() == ["poems"]
    with pytest.raises(ModelFileError, match="train command resumes it"):
        find_model("poems")
    run.model_path.touch()
    assert list_without_model() == []


# the lock

HOLD = """
import sys
from pathlib import Path
from charrnn.runs.folder import Run
with Run("poems", root=Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(run):
    """Another process holds the run's folder until the block ends."""
    command = [sys.executable, "-c", HOLD, str(run.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def assert_locked(run):
    """Check that the folder can't be locked; return the error's message."""
    with pytest.raises(RunLockedError) as caught, run.locked():
        pytest.fail("the folder was locked twice")
    return str(caught.value)


def test_a_run_in_use_is_refused_until_its_process_dies(run):
    """The error names the folder, the process and the option for another run; a killed process holds nothing."""
    with held_by_another_process(run) as process:
        message = assert_locked(run)
        assert str(run.folder) in message
        assert f"process {process.pid};" in message
        assert "--run" in message
        with Run("other", root=run.root).locked():
            assert (run.root / "other").is_dir()
        process.kill()
        process.wait()
        with run.locked():
            assert run.folder.is_dir()


@pytest.mark.parametrize("number", ["gone", 2**22 + 1])
def test_a_holder_that_is_not_known_is_another_process(run, number, monkeypatch):
    """Its file says nothing, or still names a process that was killed."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    with run.locked():
        (run.folder / ".lock-holder").write_text(f"process {number}")
        assert "in use by another process;" in assert_locked(run)


def test_the_holder_may_be_another_users_process(run, monkeypatch):
    """It can't be signalled, so it is alive."""

    def refuse(_number, _signal):
        raise PermissionError

    with run.locked():
        monkeypatch.setattr(os, "kill", refuse)
        assert f"in use by process {os.getpid()};" in assert_locked(run)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, None])
def test_the_lock_is_released(run, failure):
    """However the work ended; what was raised is raised."""
    if failure:
        with pytest.raises(failure), run.locked():
            raise failure
    else:
        with run.locked():
            pass
    with Run("poems", root=run.root).locked():
        assert run.folder.is_dir()


def test_locking_creates_the_folder(tmp_path):
    """And those above it; what stays empty is removed."""
    run = Run("new", root=tmp_path / "a" / "b")
    for _ in range(2):
        with run.locked():
            assert run.folder.is_dir()
        assert os.listdir(tmp_path) == ["a"]
        assert os.listdir(tmp_path / "a") == []
    with run.locked():
        run.log_path.touch()
    assert sorted(os.listdir(run.folder)) == [".lock", run.log_path.name]


def test_locking_deletes_temporary_files(run):
    """A process that was killed while writing has left them."""
    leftover = run.folder / ".model.safetensors.0123.tmp"
    leftover.touch()
    with run.locked():
        assert not leftover.exists()


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/poems"])
def test_a_folder_that_cannot_be_created_is_an_error(tmp_path, place):
    """One line that names it, not a traceback."""
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")
    with pytest.raises(CharrnnError, match="poems"), Run("poems", root=tmp_path / "checkpoints").locked():
        pytest.fail("locked a folder that isn't there")


# links


def snapshot(folder):
    """Every path below a folder, with what is there."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


OURS = (".lock", ".lock-holder", "log.jsonl", "model.safetensors", "state-5.safetensors", ".x.0.tmp", "report.html")


@posix
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("target", ["victim", "gone", "fifo"])
def test_a_link_in_the_folder_is_refused(run, tmp_path, name, target):
    """A downloaded folder may hold links; nothing is written, here or where they lead."""
    (tmp_path / "victim").write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    (run.folder / name).symlink_to(tmp_path / target)
    before = snapshot(tmp_path)
    with pytest.raises(CharrnnError, match=rf"{re.escape(name)} is a symbolic link, .* delete it"):
        run.check_writable()
    with pytest.raises(CharrnnError, match=rf"{re.escape(name)} is a symbolic link"), run.locked():
        pytest.fail("locked a folder with a link in it")
    assert snapshot(tmp_path) == before


@posix
@pytest.mark.parametrize("name", OURS)
def test_a_fifo_in_the_folder_is_refused(run, name):
    """Opening it would hang."""
    os.mkfifo(run.folder / name)
    with pytest.raises(CharrnnError, match=rf"{re.escape(name)} is not a regular file"), run.locked():
        pytest.fail("locked a folder with a FIFO in it")


@posix
@pytest.mark.parametrize("target", ["elsewhere", "gone"])
def test_a_run_folder_that_is_a_link_is_refused(tmp_path, target):
    """But the folder of all runs may be on another disk."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to("elsewhere")
    with Run("poems", root=tmp_path / "checkpoints").locked():
        assert (tmp_path / "elsewhere" / "poems").is_dir()
    (tmp_path / "checkpoints" / "verse").symlink_to(tmp_path / target)
    run = Run("verse", root=tmp_path / "checkpoints")
    with pytest.raises(CharrnnError, match="verse is a symbolic link"):
        run.check_writable()
    with pytest.raises(CharrnnError, match="verse is a symbolic link"), run.locked():
        pytest.fail("locked a folder elsewhere")
    assert os.listdir(tmp_path / "elsewhere") == ["verse"]


@posix
def test_a_model_that_is_a_dead_link_is_not_listed(here):
    """Nor does it stop the others from being listed."""
    make_models("good", "bad")
    path = here / "checkpoints" / "bad" / MODEL_NAME
    path.unlink()
    path.symlink_to("gone")
    assert list_models(Path("checkpoints")) == [Path("checkpoints/good") / MODEL_NAME]


# where a run can write


def test_a_writable_folder_is_fine(run, tmp_path):
    """Whether it exists or will be created; nothing is created yet."""
    run.check_writable()
    Run("new", root=tmp_path / "a" / "b").check_writable()
    assert not (tmp_path / "a").exists()


def test_the_nearest_existing_folder_is_checked(tmp_path, monkeypatch):
    """Relative paths start at the current folder."""
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
def test_a_file_in_place_of_the_folder_is_an_error(tmp_path, place):
    """It names the file."""
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")
    with pytest.raises(CharrnnError, match=place):
        Run("poems", root=tmp_path / "checkpoints").check_writable()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user who isn't root")
def test_a_read_only_folder_is_an_error(tmp_path):
    """It names the folder."""
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(CharrnnError, match="can't be written to"):
            Run("poems", root=tmp_path / "checkpoints").check_writable()
    finally:
        tmp_path.chmod(0o755)


# states


def test_a_state_comes_back_unchanged(run):
    """Arrays by name and bit for bit, and the plain values."""
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
    """Whether or not its folder exists; files with other names are ignored."""
    for name in ("state-.safetensors", "state-x.safetensors", "state-1.safetensors.tmp", MODEL_NAME):
        (run.folder / name).touch()
    assert run.newest_state() is None
    assert Run("gone", root=tmp_path).newest_state() is None


def test_the_newest_state_has_the_largest_step(run):
    """By number, not by name, which sorts 9 after 10."""
    save(run, 9, 10)
    assert run.newest_state().meta["step"] == 10


def test_the_last_step_is_that_of_the_newest_file(run):
    """Damaged or not."""
    assert run.last_step() is None
    save(run, 9, 10)
    assert run.last_step() == 10
    damage(run.state_path(10))
    assert run.last_step() == 10


def test_only_the_newest_two_states_stay(run):
    """The model and the log stay too."""
    run.model_path.touch()
    Log(run).append({"event": "plan"})
    expected = []
    for step in (0, 5, 10, 100, 1000):
        save(run, step)
        expected = [*expected, f"state-{step}.safetensors"][-2:]
        assert state_files(run) == sorted(expected)
    assert run.model_path.exists()
    assert run.log_path.exists()


def test_saving_the_same_step_again_replaces_it(run):
    """A resumed run writes the state it started from again."""
    save(run, 5, 10, 10)
    assert state_files(run) == ["state-10.safetensors", "state-5.safetensors"]
    run.save_state(10, {"x": np.array([0])}, {"step": 10, "note": "again"})
    assert run.newest_state().meta["note"] == "again"


def test_a_damaged_newest_state_is_skipped(run):
    """The one before it is used, and what was skipped is named."""
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
def test_an_empty_newest_state_is_skipped(run, content):
    """A crash can leave a file without its content, or with zeros."""
    save(run, 5, 10)
    run.state_path(10).write_bytes(content)
    assert run.newest_state().meta["step"] == 5


def test_a_damaged_older_state_does_not_matter(run):
    """Nothing is skipped if the newest is intact."""
    save(run, 5, 10)
    damage(run.state_path(5))
    assert run.newest_state().meta["step"] == 10
    assert run.newest_state().damaged == ()


def test_good_states_are_not_deleted_in_favour_of_damaged_ones(run):
    """After falling back, the state that the run resumed from stays until there are two good ones."""
    save(run, 20, 30)
    damage(run.state_path(30))
    assert run.newest_state().meta["step"] == 20
    save(run, 20, 25)
    damage(run.state_path(25))
    assert run.newest_state().meta["step"] == 20


def test_all_states_damaged_is_an_error(run):
    """Starting over silently would destroy what a person may still rescue."""
    save(run, 5, 10)
    for step in (5, 10):
        damage(run.state_path(step))
    with pytest.raises(ModelFileError, match=r"state-10.*--fresh"):
        run.newest_state()
    assert state_files(run) == ["state-10.safetensors", "state-5.safetensors"]


def test_clearing_deletes_a_run(run):
    """States, model and log; another run's stay, and clearing twice is harmless."""
    other = Run("other", root=run.root)
    other.folder.mkdir()
    for each in (run, other):
        save(each, 5, 10)
        each.model_path.touch()
        Log(each).append({"event": "plan"})
    run.clear()
    run.clear()
    assert os.listdir(run.folder) == []
    assert run.newest_state() is None
    assert other.newest_state().meta["step"] == 10
    assert other.model_path.exists()
    assert other.log_path.exists()


def test_clearing_keeps_the_lock(run):
    """--fresh clears the folder while it holds it."""
    save(run, 5)
    with run.locked():
        run.clear()
        assert state_files(run) == []
        assert_locked(run)
