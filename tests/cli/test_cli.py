"""The command line as a person or a script meets it: stdout, stderr, exit codes, files.

`charrnn` starts a real process; `call` runs the same `main` in this one, where the process
is not the point. Whatever a user can do wrong ends in one line on stderr.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer

from charrnn import __version__
from charrnn.cli import main as cli
from charrnn.config import (
    SECONDS_BETWEEN_STATES,
    CorpusConfig,
    ModelConfig,
    SampleConfig,
    SourceConfig,
    TrainConfig,
    flag,
)
from charrnn.data.vocab import Vocab
from charrnn.kernels.products import has_fast_bfloat16
from charrnn.model.file import ModelFile, load_model, save_model, write_tensors
from charrnn.training.folder import Run
from tests.conftest import make_text

TINY = ("--hidden-size", "16", "--batch-size", "4", "--seq-len", "16", "--threads", "1")
POEMS = make_text(4000)
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
EVENTS = {"plan", "resumed", "progress", "evaluated", "sample", "saved", "warning", "finished"}
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def objects(self) -> list[Any]:
        """Stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Call = Callable[..., Outcome]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what changes colours, and with changes."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "TERM": "xterm", **changes}


def command_line(*args: str) -> list[str]:
    """The arguments that start charrnn as a process."""
    return [sys.executable, "-m", "charrnn", *args]


def charrnn(*args: str, cwd: Path, **changes: str) -> Outcome:
    """Run charrnn in a process of its own, off any terminal."""
    done = subprocess.run(
        command_line(*args), cwd=cwd, env=environment(**changes), input=b"", capture_output=True, timeout=120
    )
    return Outcome(done.returncode, done.stdout, done.stderr.decode())


def in_shell(script: str, *args: str, cwd: Path) -> Outcome:
    """Run a bash script in which `"${charrnn[@]}"` is `charrnn args`; pipefail is off, as in a person's shell."""
    words = " ".join(shlex.quote(word) for word in command_line(*args))
    done = subprocess.run(
        ["bash", "+o", "pipefail", "-c", f"charrnn=({words})\n{script}"],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr.decode())


def on_terminal(*args: str, cwd: Path, interrupt_after: int = 0, **changes: str) -> tuple[int, bytes]:
    """Run charrnn with stdout and stderr on a terminal of 100 columns: exit code and what it was sent.

    interrupt_after: so many bytes are awaited before SIGINT; 0 never sends it.
    """
    import pty
    import termios

    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (30, 100))
    process = subprocess.Popen(
        command_line(*args), cwd=cwd, env=environment(**changes), stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    received = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal's output with EIO
        while select.select([screen], [], [], 120)[0] and (data := os.read(screen, 65536)):
            received += data
            if 0 < interrupt_after <= len(received):
                process.send_signal(signal.SIGINT)
                interrupt_after = 0
    os.close(screen)
    return process.wait(timeout=10), received


def assert_refused(outcome: Outcome, code: int, *parts: str) -> None:
    """One line on stderr that says all parts, nothing on stdout, and the exit code."""
    assert outcome.err.startswith("charrnn: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    assert "Traceback" not in outcome.err
    assert [part for part in parts if part not in outcome.err] == []
    assert (outcome.code, outcome.out) == (code, b"")


def make_model(path: Path, chars: str, *, likeliest: str = "") -> Path:
    """Write a model that finds all characters equally likely, or always writes the same one."""
    vocab = Vocab("".join(sorted(set(chars))))
    config = ModelConfig(cell="gru", vocab_size=len(vocab), embedding_dim=2, hidden_size=2, num_layers=1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    if likeliest:
        tensors["head.bias"][vocab.chars.index(likeliest)] = 1000.0
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, ModelFile(config, vocab, tensors, {}, {}))
    return path


def read_log(folder: Path) -> list[Any]:
    """The events in a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Iterator[Call]:
    """Run the command line in this process, with one thread unless told otherwise; torch's own stay as they were."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)  # two would wait for each other

    def run(*args: str, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["charrnn", *args])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        caught = capsysbinary.readouterr()
        assert ended.value.code is None or isinstance(ended.value.code, int)
        return Outcome(ended.value.code or 0, caught.out, caught.err.decode())

    yield run
    torch.set_num_threads(threads)


class Home(NamedTuple):
    """A folder with a text, a run of 20 steps, and what the command said when it made it."""

    path: Path
    trained: Outcome


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The one model that all tests share; tests must not change it."""
    path = tmp_path_factory.mktemp("home")
    (path / "poems.txt").write_text(POEMS, encoding="utf-8")
    return Home(path, charrnn("train", "poems.txt", "--steps", "20", *TINY, cwd=path))


@pytest.fixture
def at_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """That folder as the current one."""
    monkeypatch.chdir(home.path)
    return home


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own as the current one, with poems.txt in it."""
    (tmp_path / "poems.txt").write_text(POEMS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copied_home(home: Home, desk: Path) -> Path:
    """A copy of the trained run that a test may change."""
    shutil.copytree(home.path / "checkpoints", desk / "checkpoints")
    return desk


# --- training ---


def test_train_prints_only_the_models_path(home: Home) -> None:
    """The result on stdout is the model file's path, and the file is there."""
    assert home.trained.code == 0
    assert home.trained.out == b"checkpoints/poems/model.safetensors\n"
    assert (home.path / "checkpoints/poems/model.safetensors").is_file()


def test_train_tells_a_person_on_stderr(home: Home) -> None:
    """Plan, evaluations, final score and the next command go to stderr."""
    err = home.trained.err
    assert "poems.txt: 4,000 characters" in err
    assert re.search(r"step 20: \d\.\d{4} nats, \d\.\d{3} bits/char", err)
    assert err.rstrip().endswith("next: charrnn sample -m poems --temp 0.8")
    assert "\x1b" not in err


def test_a_run_leaves_model_two_states_and_log(home: Home) -> None:
    """The folder holds what the documentation says, and no temporary files."""
    names = sorted(path.name for path in (home.path / "checkpoints/poems").iterdir() if path.name != ".lock")
    assert names[0] == "log.jsonl"
    assert names[1] == "model.safetensors"
    assert len(names) == 4
    assert names[3] == "state-20.safetensors"
    assert names[2].startswith("state-")


def test_json_prints_one_event_a_line(desk: Path, call: Call) -> None:
    """Every line has `event` and `step` and the fields that scripts rely on; the log says the same."""
    outcome = call("train", "poems.txt", "--steps", "12", "--json", *TINY)
    events = outcome.objects
    assert outcome.code == 0
    assert {event["event"] for event in events} == EVENTS - {"resumed", "warning"}
    assert all(isinstance(event["step"], int) for event in events)
    assert events[0]["event"] == "plan"
    assert events[-1]["event"] == "finished"
    needed = {
        "progress": {"nats_per_char", "learning_rate", "chars_per_second"},
        "evaluated": {"nats_per_char", "bits_per_char", "num_chars"},
    }
    for event in events:
        assert needed.get(event["event"], set()) <= event.keys()
    assert read_log(desk / "checkpoints/poems") == events


def test_quiet_train_says_nothing_on_stderr(desk: Path, call: Call) -> None:
    """--quiet leaves the result on stdout and stderr empty."""
    outcome = call("train", "poems.txt", "--steps", "3", "--quiet", *TINY)
    assert outcome == (0, b"checkpoints/poems/model.safetensors\n", "")


def test_dry_run_shows_the_plan_and_writes_nothing(desk: Path, call: Call) -> None:
    """The plan is the result, on stdout; no folder is made."""
    before = tree(desk)
    outcome = call("train", "poems.txt", "--dry-run", "--hidden-size", "24", "--steps", "77")
    assert (outcome.code, outcome.err) == (0, "")
    assert b"poems.txt: 4,000 characters" in outcome.out
    assert b"1x24" in outcome.out
    assert b"77 steps" in outcome.out
    assert tree(desk) == before
    assert not (desk / "checkpoints").exists()


def test_dry_run_as_json_is_the_event_that_the_run_logs(desk: Path, call: Call) -> None:
    """What --dry-run promises is what the run does."""
    settings = ("train", "poems.txt", "--steps", "2", "--cell", "lstm", *TINY)
    planned = call(*settings, "--dry-run", "--json")
    assert (planned.code, planned.err) == (0, "")
    assert not (desk / "checkpoints").exists()
    (plan,) = planned.objects
    assert (plan["event"], plan["step"], plan["steps"], plan["model"]["cell"]) == ("plan", 0, 2, "lstm")
    call(*settings)
    assert read_log(desk / "checkpoints/poems")[0] == plan


def test_every_setting_reaches_the_plan(desk: Path, call: Call) -> None:
    """What is given overlays what is recommended, field by field."""
    model = {"cell": "rnn", "num_layers": 2, "hidden_size": 9, "embedding_dim": 7}
    training = {
        "dropout": 0.25,
        "seq_len": 11,
        "batch_size": 3,
        "learning_rate": 0.001,
        "weight_decay": 0.2,
        "grad_clip": 2.0,
        "steps": 5,
        "seed": 8,
    }
    options = [word for name, value in {**model, **training}.items() for word in (flag(name), str(value))]
    (plan,) = call("train", "poems.txt", "--dry-run", "--json", "--valid-fraction", "0.25", *options).objects
    assert model.items() <= plan["model"].items()
    assert training.items() <= plan["training"].items()
    assert plan["num_valid_chars"] == 1000


def test_the_same_command_again_says_that_it_is_finished(copied_home: Path, call: Call) -> None:
    """Nothing is trained, the path is printed, the exit code is 0."""
    model = (copied_home / "checkpoints/poems/model.safetensors").read_bytes()
    outcome = call("train", "poems.txt", "--steps", "20", *TINY)
    assert (outcome.code, outcome.out) == (0, b"checkpoints/poems/model.safetensors\n")
    assert "finished after 20 steps" in outcome.err
    assert (copied_home / "checkpoints/poems/model.safetensors").read_bytes() == model


@pytest.mark.parametrize(
    "other",
    [
        ("--hidden-size", "32"),
        ("--cell", "lstm"),
        ("--seed", "2"),
        ("--dropout", "0.1"),
        ("--valid-fraction", "0.2"),
        ("--encoding", "latin-1"),
    ],
    ids=" ".join,
)
def test_other_settings_are_refused(copied_home: Path, call: Call, other: tuple[str, str]) -> None:
    """A setting that differs from the run's is a usage error that names the two ways out."""
    before = tree(copied_home)
    outcome = call("train", "poems.txt", "--steps", "20", *TINY, *other)
    assert_refused(outcome, 2, other[0], "--run", "--fresh")
    assert {name: data for name, data in tree(copied_home).items() if ".lock" not in name} == {
        name: data for name, data in before.items() if ".lock" not in name
    }


def test_another_text_under_the_same_name_is_refused(copied_home: Path, call: Call) -> None:
    """A text that has changed is not trained on in a run of the old one."""
    (copied_home / "poems.txt").write_text(POEMS + "One line more.\n", encoding="utf-8")
    assert_refused(call("train", "poems.txt", "--steps", "20", *TINY), 2, "text", "--run", "--fresh")


def test_what_is_left_open_stays_as_it_was(copied_home: Path, call: Call) -> None:
    """The bare command finds the finished run, whatever its settings were."""
    outcome = call("train", "poems.txt")
    assert (outcome.code, outcome.out) == (0, b"checkpoints/poems/model.safetensors\n")
    assert "finished" in outcome.err


def test_more_steps_extend_a_finished_run(copied_home: Path, call: Call) -> None:
    """The run goes on from its last step, and says that the schedule starts anew."""
    outcome = call("train", "poems.txt", "--steps", "30", *TINY)
    assert (outcome.code, outcome.out) == (0, b"checkpoints/poems/model.safetensors\n")
    assert "from step 20 to step 30" in outcome.err
    assert "anew" in outcome.err
    log = read_log(copied_home / "checkpoints/poems")
    added = log[[event["event"] for event in log].index("resumed") :]
    assert [event["step"] for event in added if event["event"] == "progress"] == list(range(21, 31))
    assert (added[-1]["event"], added[-1]["step"]) == ("finished", 30)


def learned(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A model's weights and scores: what doesn't depend on the folder that its text lies in."""
    model = load_model(path)
    return {name: tensor.tobytes() for name, tensor in model.tensors.items()}, model.scores


def cut_short(home: Path) -> int:
    """Make the finished run look as if it had died after its last state but one; return that state's step."""
    folder = home / "checkpoints/poems"
    (folder / "state-20.safetensors").unlink()
    (left,) = folder.glob("state-*.safetensors")
    return int(left.stem.removeprefix("state-"))


def test_the_same_command_goes_on_with_an_unfinished_run(copied_home: Path, call: Call) -> None:
    """It starts from the newest state, says so, and ends with the same weights and score."""
    model = copied_home / "checkpoints/poems/model.safetensors"
    whole, step = learned(model), cut_short(copied_home)
    outcome = call("train", "poems.txt", "--steps", "20", *TINY)
    assert (outcome.code, outcome.out) == (0, b"checkpoints/poems/model.safetensors\n")
    assert outcome.err.startswith(f"going on from step {step}\n")
    assert learned(model) == whole


def test_another_budget_for_an_unfinished_run_is_refused(copied_home: Path, call: Call) -> None:
    """A run is extended when it is finished; before, a budget is a setting like any other."""
    cut_short(copied_home)
    for budget in (("--steps", "30"), ("--steps", "10"), ("--minutes", "1")):
        assert_refused(call("train", "poems.txt", *budget, *TINY), 2, "isn't finished", "--run", "--fresh")


def test_a_damaged_state_is_passed_over_with_a_warning(copied_home: Path, call: Call) -> None:
    """The run goes on from the state before it and ends as it did; the log tells of it."""
    folder = copied_home / "checkpoints/poems"
    whole, newest = learned(folder / "model.safetensors"), folder / "state-20.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    outcome = call("train", "poems.txt", "--steps", "20", "--json", *TINY)
    assert outcome.code == 0
    assert [event["event"] for event in outcome.objects][:2] == ["warning", "resumed"]
    assert "state-20.safetensors" in outcome.objects[0]["message"]
    assert learned(folder / "model.safetensors") == whole
    assert {"warning", "resumed"} <= {event["event"] for event in read_log(folder)}


def test_a_run_whose_states_are_all_damaged_is_refused(copied_home: Path, call: Call) -> None:
    """Nothing is guessed: the line names a file and the way out."""
    for path in (copied_home / "checkpoints/poems").glob("state-*"):
        path.write_bytes(b"nothing")
    assert_refused(call("train", "poems.txt", "--steps", "20", *TINY), 4, "state-20.safetensors", "--fresh")


def test_a_model_without_a_state_is_not_overwritten(copied_home: Path, call: Call) -> None:
    """A model that was copied here alone is no run to go on with."""
    for path in (copied_home / "checkpoints/poems").glob("state-*"):
        path.unlink()
    assert_refused(call("train", "poems.txt", "--steps", "20", *TINY), 2, "--run", "--fresh")


def test_minutes_are_a_budget_that_can_grow(desk: Path, call: Call) -> None:
    """A run in minutes finishes, says so when it is asked for again, and goes on for more minutes."""
    settings = ("train", "poems.txt", "--quiet", *TINY)
    assert call(*settings, "--minutes", "0.01").code == 0
    first = read_log(desk / "checkpoints/poems")
    assert (first[0]["minutes"], first[0]["steps"]) == (0.01, None)
    assert first[-1]["event"] == "finished"
    again = call("train", "poems.txt", "--minutes", "0.01", *TINY)
    assert again.code == 0
    assert "finished" in again.err
    assert read_log(desk / "checkpoints/poems") == first
    more = call("train", "poems.txt", "--minutes", "0.02", *TINY)
    assert more.code == 0
    assert "from 0.01 to 0.02 minutes" in more.err
    assert read_log(desk / "checkpoints/poems")[-1]["step"] > first[-1]["step"]


def test_fresh_starts_over(copied_home: Path, call: Call) -> None:
    """--fresh forgets the run and its log, and trains with the settings given now."""
    outcome = call("train", "poems.txt", "--fresh", "--steps", "3", "--seed", "5", *TINY)
    assert (outcome.code, outcome.out) == (0, b"checkpoints/poems/model.safetensors\n")
    log = read_log(copied_home / "checkpoints/poems")
    assert (log[0]["event"], log[0]["training"]["seed"]) == ("plan", 5)
    assert [event["event"] for event in log].count("plan") == 1
    assert log[-1]["step"] == 3
    states = {path.name for path in (copied_home / "checkpoints/poems").glob("state-*")}
    assert "state-20.safetensors" not in states


def test_fresh_with_a_bad_setting_keeps_the_old_run(copied_home: Path, call: Call) -> None:
    """A usage error must not cost what was learned."""
    model = (copied_home / "checkpoints/poems/model.safetensors").read_bytes()
    assert_refused(call("train", "poems.txt", "--fresh", "--hidden-size", "-1"), 2, "--hidden-size")
    assert (copied_home / "checkpoints/poems/model.safetensors").read_bytes() == model


def test_a_dry_run_of_a_fresh_start_plans_a_fresh_start(copied_home: Path, call: Call) -> None:
    """--dry-run --fresh shows what --fresh would do, and keeps the old run."""
    before = tree(copied_home)
    outcome = call("train", "poems.txt", "--fresh", "--dry-run", "--json", "--hidden-size", "24", "--steps", "5")
    assert (outcome.code, outcome.err) == (0, "")
    (plan,) = outcome.objects
    assert (plan["step"], plan["steps"], plan["model"]["hidden_size"]) == (0, 5, 24)
    assert tree(copied_home) == before


def test_a_usage_error_leaves_no_folder_behind(desk: Path, call: Call) -> None:
    """A run that never began has no folder."""
    assert_refused(call("train", "poems.txt", "--hidden-size", "-1"), 2, "--hidden-size")
    assert not (desk / "checkpoints").exists()


def test_minutes_and_steps_exclude_each_other(desk: Path, call: Call) -> None:
    """Two budgets at once are a usage error that names both."""
    assert_refused(call("train", "poems.txt", "--minutes", "1", "--steps", "5"), 2, "--minutes", "--steps")


def test_train_reads_stdin(desk: Path, call: Call) -> None:
    """`-` is stdin, and the run is named for it."""
    outcome = call("train", "-", "--steps", "2", "--quiet", *TINY, stdin=POEMS.encode())
    assert outcome == (0, b"checkpoints/stdin/model.safetensors\n", "")


def test_a_folder_of_texts_is_one_text(desk: Path, call: Call) -> None:
    """The files of a folder are joined, hidden and binary ones left out."""
    files = {"a.txt": b"x" * 100, "sub/b.txt": b"y" * 50, ".hidden": b"z" * 10, "picture.png": b"\x89PNG\0\0"}
    for name, data in files.items():
        (desk / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (desk / "texts" / name).write_bytes(data)
    (plan,) = call("train", "texts", "--dry-run", "--json").objects
    assert (plan["num_chars"], plan["vocab_size"], plan["run"]) == (150, 2, "texts")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_a_named_encoding_is_read(desk: Path, call: Call, encoding: str) -> None:
    """With --encoding a text in another encoding is what it is."""
    (desk / "other.txt").write_bytes(("é" + POEMS[:99]).encode(encoding))
    (plan,) = call("train", "other.txt", "--encoding", encoding, "--dry-run", "--json").objects
    assert plan["num_chars"] == 100


def test_a_locked_run_is_refused(copied_home: Path, call: Call) -> None:
    """A second training in the folder ends with 5 and names the process; reading goes on."""
    with Run("poems", root=copied_home / "checkpoints").locked():
        outcome = charrnn("train", "poems.txt", "--steps", "30", *TINY, cwd=copied_home)
        sampled = call("sample", "-n", "5", "--seed", "1")
    assert_refused(outcome, 5, "checkpoints/poems", f"process {os.getpid()}", "--run")
    assert (sampled.code, len(sampled.out)) == (0, 5)


def test_a_run_killed_before_it_could_tell_its_end_tells_it_later(copied_home: Path, call: Call) -> None:
    """All was on the disk but the log's last line: the same command writes it, once."""
    log = copied_home / "checkpoints/poems/log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    for _ in range(2):
        outcome = call("train", "poems.txt", "--steps", "20", *TINY)
        assert (outcome.code, outcome.out) == (0, b"checkpoints/poems/model.safetensors\n")
        assert log.read_bytes() == whole


def test_a_state_is_saved_as_often_as_asked(desk: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many seconds apart, a minute unless they are given; the model is the same."""
    from charrnn.training import loop as training

    asked: list[float] = []

    class Watched(training.Pace):
        """Notes what it is asked for."""

        def __init__(self, clock: Callable[[], float], *, save_every: float) -> None:
            asked.append(save_every)
            super().__init__(clock, save_every=save_every)

    monkeypatch.setattr(training, "Pace", Watched)
    for name, options in (("often", ("--save-every", "0")), ("seldom", ("--save-every", "1e6")), ("as ever", ())):
        assert call("train", "poems.txt", "--run", name, *options, "--steps", "12", "-q", *TINY).code == 0
    assert asked == [0.0, 1e6, SECONDS_BETWEEN_STATES]
    models = [learned(path) for path in (desk / "checkpoints").glob("*/model.safetensors")]
    assert len(models) == 3
    assert models[0] == models[1] == models[2]


# --- beginning with a model ---


def test_a_run_begins_with_a_model(copied_home: Path, call: Call) -> None:
    """Named as a run or a file; the plan says so, new characters are named, and the first score is the model's."""
    (copied_home / "more.txt").write_text(POEMS.replace("dor", "dör"), encoding="utf-8")
    path = copied_home / "checkpoints/poems/model.safetensors"
    for name in ("poems", str(path), "checkpoints/poems"):
        outcome = call("train", "more.txt", "--init-from", name, "--fresh", "--steps", "5", "--json", "--threads", "1")
        assert outcome.code == 0
        plan = outcome.objects[0]
        assert plan["training"]["init_from"] == str(path)
        assert plan["model"]["hidden_size"] == 16
        assert "new to the model: U+00F6 'ö'" in plan["notes"][-1]
    shown = call("train", "more.txt", "--init-from", "poems", "--dry-run", "--fresh")
    assert f"which begins with {path}" in shown.out.decode()
    assert f"init_from {path}" in call("info", "more").out.decode()
    assert call("eval", "-m", "more", "--json").objects[0]["num_chars"] == 400


def test_a_run_that_began_with_a_model_goes_on_without_it(copied_home: Path, call: Call) -> None:
    """The command needs it no more, named or not."""
    settings = ("train", "more.txt", "-q", "--threads", "1")
    (copied_home / "more.txt").write_text(POEMS, encoding="utf-8")
    assert call(*settings, "--init-from", "poems", "--steps", "5").code == 0
    again = call(*settings, "--init-from", "poems", "--steps", "8")
    assert (again.code, again.out) == (0, b"checkpoints/more/model.safetensors\n")
    shutil.rmtree(copied_home / "checkpoints/poems")
    assert call(*settings, "--steps", "11").code == 0
    gone = call(*settings, "--init-from", "poems", "--steps", "14")  # the run has all that it needs
    assert gone.code == 0, gone.err


def test_a_run_may_begin_with_its_own_model(copied_home: Path, call: Call) -> None:
    """--fresh forgets the run once the model has been read."""
    outcome = call("train", "poems.txt", "--fresh", "--init-from", "poems", "--steps", "5", "-q", "--threads", "1")
    assert (outcome.code, outcome.err) == (0, "")
    log = read_log(copied_home / "checkpoints/poems")
    assert log[-1]["step"] == 5
    assert log[0]["training"]["init_from"].endswith("checkpoints/poems/model.safetensors")


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (("--init-from", "gone"), 4, ("gone", "charrnn info")),
        (("--init-from", "poems.txt"), 4, ("poems.txt", "not a charrnn file")),
        (("--init-from", "checkpoints/poems/state-20.safetensors"), 4, ("state-20", "not a model")),
        (("--init-from", "poems", "--hidden-size", "32"), 2, ("--hidden-size 32", "16")),
        (("--init-from", "poems", "--cell", "lstm"), 2, ("--cell lstm", "gru")),
        (("--init-from", "poems", "--run", "poems"), 2, ("--init-from", "--run NAME", "--fresh")),
        (("--save-every", "-1"), 2, ("--save-every",)),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_what_a_run_can_not_begin_with_is_refused(
    copied_home: Path, call: Call, args: tuple[str, ...], code: int, parts: tuple[str, ...]
) -> None:
    """Before anything is made: no such model, no model at all, other sizes, or too late."""
    assert_refused(call("train", "poems.txt", "--run", "other", *args), code, *parts)
    assert {path.name for path in Path("checkpoints").iterdir()} == {"poems"}


# --- signals ---

LONG = ("train", "poems.txt", "--steps", "120", "--json", *TINY)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of 120 steps that nobody disturbed."""
    path = tmp_path_factory.mktemp("signals")
    (path / "poems.txt").write_text(POEMS, encoding="utf-8")
    assert charrnn(*LONG, "--run", "whole", cwd=path).code == 0
    return path


def start_and_interrupt(args: Sequence[str], number: signal.Signals, *, cwd: Path) -> Outcome:
    """Send a signal after the first evaluation.

    Nobody reads stdout from then on until the signal is sent, and the pipe is short, so
    the run can't end before it.
    """
    import fcntl

    process = subprocess.Popen(
        command_line(*args), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert process.stdout is not None
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    out = b""
    while b'"evaluated"' not in out:
        line = process.stdout.readline()
        assert line, "training ended before its first evaluation"
        out += line
    process.send_signal(number)
    rest, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out + rest, err.decode())


def told_of(folder: Path) -> list[tuple[Any, ...]]:
    """A run's log without what belongs to one sitting: places, clock and speed."""
    events = [event for event in read_log(folder) if event["event"] != "resumed"]
    return [(event["event"], event["step"], event.get("nats_per_char"), event.get("text")) for event in events]


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_the_same_command_goes_on(uninterrupted: Path, number: signal.Signals) -> None:
    """A run that saved and ended by the signal, then was started again, makes what an undisturbed one makes."""
    args, folder = (*LONG, "--run", number.name), uninterrupted / "checkpoints" / number.name
    stopped = start_and_interrupt(args, number, cwd=uninterrupted)
    assert stopped.code == -number  # a shell sees 128 more than the number
    last = stopped.err.splitlines()[-1]
    assert last.startswith("charrnn: stopped after step ")
    assert "Traceback" not in stopped.err
    step = int(last.split("step ")[1].split(";")[0])
    assert 0 < step < 120
    assert (folder / f"state-{step}.safetensors").is_file()

    resumed = charrnn(*args, cwd=uninterrupted)
    assert resumed.code == 0
    assert (resumed.objects[0]["event"], resumed.objects[0]["step"]) == ("resumed", step)
    whole = uninterrupted / "checkpoints/whole"
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {event["step"] for event in read_log(folder) if event["event"] == "resumed"} == {step}
    assert told_of(folder) == told_of(whole)


@posix
@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("HUP", 129)])
def test_a_shell_sees_that_a_signal_ended_the_run(desk: Path, name: str, code: int) -> None:
    """As for any program: 128 and the signal's number."""
    script = (
        '"${charrnn[@]}" & until [ -s checkpoints/poems/log.jsonl ]; do sleep 0.05; done; '
        f"kill -{name} $!; wait $!; echo $?"
    )
    outcome = in_shell(script, "train", "poems.txt", "--steps", "1000000", "-q", *TINY, cwd=desk)
    assert (outcome.code, outcome.out) == (0, f"{code}\n".encode())
    assert "stopped after step" in outcome.err


@posix
@pytest.mark.parametrize("several", [(), ("-N", "70", "--stop", "@@@", "--threads", "2")], ids=str)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_an_interrupted_sample_ends_quietly(
    home: Home, several: tuple[str, ...], number: signal.Signals, code: int
) -> None:
    """Ctrl-C ends an endless text with 130 and not a word, and a plea to end does so at once."""
    process = subprocess.Popen(
        command_line("sample", "-n", "-1", "--seed", "1", *several),
        cwd=home.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert len(process.stdout.read(100)) == 100
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, b"")


@posix
def test_an_interrupted_sample_leaves_the_terminal_on_a_new_line(home: Home) -> None:
    """The shell's prompt doesn't follow a half-written word."""
    code, shown = on_terminal(
        "sample", "-n", "-1", "-q", "-p", "ba", "--seed", "1", cwd=home.path, interrupt_after=3000
    )
    assert code == 130
    assert shown.endswith(b"\n")
    assert b"Traceback" not in shown


@posix
@pytest.mark.parametrize("args", [("--json", "-n", "1000000000"), ("-f", "long.txt", "-n", "9")], ids=str)
def test_what_writes_nothing_yet_can_be_interrupted(home: Home, tmp_path: Path, args: tuple[str, ...]) -> None:
    """While a whole sample is drawn, and while a long prompt is read, which is told."""
    (tmp_path / "long.txt").write_text(POEMS * 10_000, encoding="utf-8")
    model = home.path / "checkpoints/poems/model.safetensors"
    process = subprocess.Popen(
        command_line("sample", "-m", str(model), "--seed", "1", *args),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stderr is not None
    try:
        if "-f" in args:
            assert process.stderr.readline() == "reading the prompt …\n".encode()
        else:
            time.sleep(2)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == 130
    finally:
        process.kill()


# --- sampling ---


def test_the_same_seed_writes_the_same_text(at_home: Home, call: Call) -> None:
    """A seed decides the text; another one writes another."""
    first = call("sample", "-n", "300", "--seed", "7")
    assert first.code == 0
    assert call("sample", "-n", "300", "--seed", "7") == first
    assert call("sample", "-n", "300", "--seed", "8").out != first.out


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 1000])
def test_a_sample_has_exactly_the_length_asked_for(at_home: Home, call: Call, length: int) -> None:
    """So many characters after the prompt, and not even a newline more."""
    text = call("sample", "-n", str(length), "--seed", "1", "-p", "ba").out.decode()
    assert text.startswith("ba")
    assert len(text) == 2 + length


def test_the_default_length_is_500(at_home: Home, call: Call) -> None:
    """Without options there is a page to read."""
    assert len(call("sample").out.decode()) == SampleConfig().length == 500


def test_a_longer_sample_begins_with_the_shorter(at_home: Home, call: Call) -> None:
    """The length decides only where the text ends."""
    short, long = (call("sample", "-n", n, "--seed", "3").out for n in ("100", "700"))
    assert long.startswith(short)


def test_the_chosen_seed_is_told_and_writes_the_text_again(at_home: Home, call: Call) -> None:
    """Without --seed the seed is on stderr, alone, and gives the same text."""
    first = call("sample", "-n", "200")
    told = re.fullmatch(r"seed (\d+)\n", first.err)
    assert told
    again = call("sample", "-n", "200", "--seed", told[1])
    assert again == (0, first.out, "")


def test_quiet_sample_says_nothing_on_stderr(at_home: Home, call: Call) -> None:
    """With --quiet the seed is not told."""
    outcome = call("sample", "-n", "20", "--quiet")
    assert (outcome.code, len(outcome.out), outcome.err) == (0, 20, "")


def test_json_sample_is_one_object(at_home: Home, call: Call) -> None:
    """The object has the same text as plain output, and what is needed to write it again."""
    plain = call("sample", "-n", "50", "--seed", "4", "-p", "dor").out.decode()
    outcome = call("sample", "-n", "50", "--seed", "4", "-p", "dor", "--json")
    (facts,) = outcome.objects
    assert (outcome.code, outcome.err) == (0, "")
    assert facts["prompt"] + facts["text"] == plain
    assert (facts["prompt"], facts["seed"], facts["stream"], facts["num_chars"]) == ("dor", 4, 0, 50)


def test_json_sample_tells_the_seed_it_chose(at_home: Home, call: Call) -> None:
    """Without --seed the object has the seed."""
    (facts,) = call("sample", "-n", "50", "--json").objects
    assert call("sample", "-n", "50", "--seed", str(facts["seed"])).out.decode() == facts["text"]


def test_several_samples_are_the_streams_of_one_seed(at_home: Home, call: Call) -> None:
    """-N writes stream 0, 1, … of the seed, each the same whatever N is, a newline or NUL between them."""
    alone = call("sample", "-n", "30", "--seed", "4").out
    three = call("sample", "-n", "30", "--seed", "4", "-N", "3", "-0").out.split(b"\0")
    assert (len(three), len(set(three))) == (3, 3)
    assert three[0] == alone
    assert call("sample", "-n", "30", "--seed", "4", "-N", "3").out == b"\n".join(three)
    objects = call("sample", "-n", "30", "--seed", "4", "-N", "3", "--json").objects
    assert [(o["stream"], o["text"].encode()) for o in objects] == list(enumerate(three))


def test_a_json_sample_says_how_it_was_drawn(at_home: Home, call: Call) -> None:
    """All settings, the time it took, what the text costs, and the model."""
    settings = ("--top-k", "4", "--top-p", "0.9", "--min-p", "0.01", "--no-repeat-ngram", "9", "--temp", "0.5")
    (facts,) = call("sample", "-n", "40", "--seed", "4", "--json", *settings).objects
    names = ("top_k", "top_p", "min_p", "no_repeat_ngram", "temperature", "length", "lines", "stop", "unknown")
    assert [facts["settings"][name] for name in names] == [4, 0.9, 0.01, 9, 0.5, 40, 0, [], "error"]
    assert facts["model"] == "checkpoints/poems/model.safetensors"
    assert facts["seconds"] > 0
    assert 0 < facts["bits_per_char"] < 20


def test_a_prompt_comes_from_a_file_or_stdin(at_home: Home, call: Call, tmp_path: Path) -> None:
    """The file first, then -p, nothing in between; newlines stay; --no-echo leaves the prompt out."""
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"ba dor\n")
    rest = ("-n", "30", "--seed", "4")
    plain = call("sample", *rest, "-p", "ba dor\nba").out
    assert plain.startswith(b"ba dor\nba")
    assert call("sample", *rest, "-f", str(path), "-p", "ba").out == plain
    assert call("sample", *rest, "-f", "-", "-p", "ba", stdin=b"ba dor\n").out == plain
    assert call("sample", *rest, "-f", str(path), "-p", "ba", "--no-echo").out == plain[9:]
    assert_refused(call("sample", "-f", "missing.txt"), 3, "missing.txt")
    assert_refused(call("sample", *rest, "-p", "ba\u00e9"), 3, "U+00E9")
    assert call("sample", *rest, "-p", "b\u00e9a", "--unknown", "skip", "--no-echo").code == 0


def test_a_text_ends_at_a_stop_or_a_line(at_home: Home, call: Call) -> None:
    """Neither the stop nor anything after the last line is written."""
    text = call("sample", "-n", "400", "--seed", "4").out
    stop = text[37:40]
    assert call("sample", "-n", "400", "--seed", "4", "--stop", stop.decode()).out == text[: text.index(stop)]
    assert call("sample", "-n", "-1", "--seed", "4", "--lines", "2").out == b"".join(text.splitlines(True)[:2])


@pytest.mark.parametrize("count", ["1", "3", "70"])
def test_threads_and_neighbours_leave_the_text_alone(at_home: Home, call: Call, count: str) -> None:
    """However many threads and samples there are."""
    texts = {call("sample", "-n", "30", "--seed", "4", "-0", "-N", count, "--threads", n).out for n in "12"}
    assert len(texts) == 1
    assert texts.pop().split(b"\0")[0] == call("sample", "-n", "30", "--seed", "4").out


def test_weights_may_be_stored_in_half(at_home: Home, call: Call) -> None:
    """Where the processor has such products: nearly the same text costs, and the settings say so."""
    args = ("sample", "-n", "200", "--seed", "4", "--json")
    exact = call(*args).objects[0]
    assert exact["settings"]["precision"] == "float32"
    assert_refused(call(*args, "--precision", "half"), 2, "--precision", "half")
    outcome = call(*args, "--precision", "bfloat16")
    if not has_fast_bfloat16():
        assert_refused(outcome, 6, "--precision float32")
        return
    assert outcome.objects[0]["settings"]["precision"] == "bfloat16"
    assert outcome.objects[0]["bits_per_char"] == pytest.approx(exact["bits_per_char"], rel=0.5)
    assert call(*args, "--precision", "auto").objects[0]["text"] == outcome.objects[0]["text"]


def test_json_needs_an_end(at_home: Home, call: Call) -> None:
    """An endless text never becomes an object."""
    assert_refused(call("sample", "-n", "-1", "--json"), 2, "--json", "--length")


def test_temperature_0_takes_the_likeliest(at_home: Home, call: Call) -> None:
    """Without randomness the seed doesn't matter, and both names of the option are one."""
    texts = {call("sample", "-n", "99", "--temp", "0", "--seed", seed).out for seed in "12"}
    texts.add(call("sample", "-n", "99", "--temperature", "0", "--seed", "3").out)
    assert len(texts) == 1


@pytest.mark.parametrize("temperature", ["1e-300", "1e308"])
def test_extreme_temperatures_write_text(at_home: Home, call: Call, temperature: str) -> None:
    """No temperature in the allowed range breaks the arithmetic."""
    outcome = call("sample", "-n", "99", "--temp", temperature, "--seed", "1")
    assert (outcome.code, len(outcome.out.decode()), outcome.err) == (0, 99, "")


@pytest.mark.parametrize(
    ("vocabulary", "prompt", "parts"),
    [
        ("abc\n", "abéa", ("U+00E9", "character 3")),
        ("abc\n", "a\x1b[31m", ("U+001B", "character 2")),
        ("cafe\u0301", "caf\u00e9", ("U+00E9", "NFD")),
        ("caf\u00e9", "cafe\u0301", ("NFC",)),
        ("abc\n", "a\U0001f600", ("U+1F600",)),
        ("abc\n", "a\udcff", ("U+DCFF",)),  # a byte of the command line that is not UTF-8
    ],
)
def test_an_unknown_prompt_character_is_named(
    desk: Path, call: Call, vocabulary: str, prompt: str, parts: tuple[str, ...]
) -> None:
    """The code point, the place, and the normal form that would help."""
    make_model(desk / "m.safetensors", vocabulary)
    outcome = call("sample", "-m", "m.safetensors", "-p", prompt)
    assert_refused(outcome, 3, *parts)
    assert "\x1b" not in outcome.err


def test_the_newest_model_is_the_default(desk: Path, call: Call) -> None:
    """Without -m the model written last is used."""
    for age, char in enumerate("abc"):
        model = make_model(Path("checkpoints") / char / "model.safetensors", "abc", likeliest=char)
        os.utime(model, (1e9 - age, 1e9 - age))
    assert call("sample", "-n", "3", "-q").out == b"aaa"


@pytest.mark.parametrize("which", ["b", "checkpoints/b", "checkpoints/b/model.safetensors", "copy.bin"])
def test_a_model_is_named_by_run_folder_or_file(desk: Path, call: Call, which: str) -> None:
    """-m takes a run's name, its folder, or a model file wherever it is."""
    for char in "ab":
        make_model(Path("checkpoints") / char / "model.safetensors", "ab", likeliest=char)
    shutil.copy("checkpoints/b/model.safetensors", "copy.bin")
    assert call("sample", "-n", "3", "-q", "-m", which).out == b"bbb"


@posix
def test_a_reader_that_has_enough_ends_the_stream_quietly(home: Home) -> None:
    """`| head` ends an endless text without a word."""
    script = '"${charrnn[@]}" | head -c 100; echo " ${PIPESTATUS[0]}"'
    outcome = in_shell(script, "sample", "-n", "-1", "--seed", "1", cwd=home.path)
    assert outcome.err == ""
    assert outcome.out.endswith(b" 141\n")
    assert len(outcome.out) == 105


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "args",
    [("sample", "-n", "9", "--seed", "1"), ("sample", "--json"), ("info",), ("--version",), ("sample", "--help")],
    ids=" ".join,
)
def test_a_full_disk_is_one_line(home: Home, args: tuple[str, ...]) -> None:
    """What can't be written is an error with exit code 1."""
    assert_refused(in_shell('"${charrnn[@]}" > /dev/full', *args, cwd=home.path), 1, "No space left")


@posix
def test_a_closed_stdout_is_one_line(home: Home) -> None:
    """A command started without a stdout fails like one with a full disk."""
    assert_refused(in_shell('"${charrnn[@]}" >&-', "sample", "-n", "9", "--seed", "1", cwd=home.path), 1, "stdout")


@posix
def test_a_closed_stderr_leaves_stdout_clean(home: Home) -> None:
    """What was meant for stderr must not end up in the result."""
    outcome = in_shell('"${charrnn[@]}" 2>&-', "sample", "-n", "9", cwd=home.path)
    assert (outcome.code, len(outcome.out)) == (0, 9)


@posix
def test_output_is_utf8_whatever_the_locale(desk: Path) -> None:
    """A C locale changes neither the text nor what stderr says about it."""
    make_model(desk / "m.safetensors", "é漢", likeliest="漢")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    outcome = charrnn("sample", "-m", "m.safetensors", "-n", "3", "--seed", "1", cwd=desk, **plain)
    assert outcome == (0, "漢漢漢".encode(), "")
    assert_refused(charrnn("sample", "-m", "m.safetensors", "-p", "x", cwd=desk, **plain), 3, "U+0078")


# --- scoring ---


def test_eval_json_has_the_fields_that_scripts_rely_on(copied_home: Path, call: Call) -> None:
    """One object whose figures agree with each other."""
    Path("other.txt").write_text(POEMS[:500], encoding="utf-8")
    outcome = call("eval", "other.txt", "-m", "poems", "--json", "--threads", "1")
    (facts,) = outcome.objects
    assert (outcome.code, outcome.err) == (0, "")
    assert facts["model"] == "checkpoints/poems/model.safetensors"
    assert facts["text"] == "other.txt"
    assert (facts["num_chars"], facts["num_unknown"]) == (499, 0)
    assert facts["bits_per_char"] == pytest.approx(facts["nats_per_char"] / np.log(2), rel=1e-12)
    assert facts["perplexity"] == pytest.approx(np.exp(facts["nats_per_char"]), rel=1e-12)


def test_unknown_characters_are_counted_and_named(at_home: Home, call: Call) -> None:
    """What the model doesn't know is neither fed nor scored, but said."""
    clean, mixed = "dorin bane\n" * 9, "dorXin bané\n" * 4 + "dorin bane\n" * 5
    known = mixed.replace("X", "").replace("é", "")
    (facts,) = call("eval", "-", "--json", stdin=mixed.encode()).objects
    assert (facts["num_chars"], facts["num_unknown"]) == (len(known) - 1, 8)
    assert facts["unknown"] == {"X": 4, "é": 4}
    (same,) = call("eval", "-", "--json", stdin=known.encode()).objects
    assert facts["nats_per_char"] == same["nats_per_char"]
    shown = call("eval", "-", stdin=mixed.encode()).out.decode()
    assert "U+0058 'X' 4x" in shown
    assert "U+00E9 'é' 4x" in shown
    assert "vocabulary" not in call("eval", "-", stdin=clean.encode()).out.decode()


def test_eval_in_a_pipe_is_tab_separated(at_home: Home, call: Call) -> None:
    """Each figure is a line of name, tab, value."""
    outcome = call("eval", "-", "-m", "poems", stdin=POEMS.encode())
    rows = dict(line.split("\t") for line in outcome.out.decode().splitlines() if line.count("\t") == 1)
    assert outcome.code == 0
    assert rows["characters scored"] == "3,999"
    assert float(rows["perplexity"]) == pytest.approx(2 ** float(rows["bits per character"]), rel=1e-4)


def test_eval_reads_stdin(copied_home: Path, call: Call) -> None:
    """`-` and the same text in a file get the same score."""
    Path("piped.txt").write_text(POEMS[:500], encoding="utf-8")
    (piped,) = call("eval", "-", "--json", stdin=POEMS[:500].encode()).objects
    (read,) = call("eval", "piped.txt", "--json").objects
    assert piped == {**read, "text": "-"}


def test_eval_alone_scores_the_held_out_tail(at_home: Home, call: Call) -> None:
    """Without TEXT the figure is the one that training ended with, to the last digit."""
    finished = read_log(at_home.path / "checkpoints/poems")[-1]
    (facts,) = call("eval", "--json", "--threads", "1").objects
    assert finished["event"] == "finished"
    assert facts["nats_per_char"] == finished["nats_per_char"]
    assert facts["num_chars"] == finished["num_chars"] == 400
    assert facts["text"] == str(at_home.path / "poems.txt")


def empty_cache() -> None:
    """Do what `charrnn info --cache` says."""
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"]) / "charrnn")


def test_a_text_that_moved_is_found_by_train_text(desk: Path, call: Call) -> None:
    """The error names the option, and the option gives the score that was there before."""
    assert call("train", "poems.txt", "--steps", "2", "-q", *TINY).code == 0
    before = call("eval", "--json").objects[0]
    Path("poems.txt").rename("moved.txt")
    assert call("eval", "--json").objects == [before]  # from the cache
    empty_cache()
    assert_refused(call("eval"), 3, "poems.txt", "--train-text")
    after = call("eval", "--json", "--train-text", "moved.txt").objects[0]
    assert after["nats_per_char"] == before["nats_per_char"]


def test_a_text_that_changed_is_refused(desk: Path, call: Call) -> None:
    """A tail of another text is not the held-out one; the one that was read is, while the cache has it."""
    assert call("train", "poems.txt", "--steps", "2", "-q", *TINY).code == 0
    before = call("eval", "--json").objects
    Path("poems.txt").write_text(POEMS[:-1] + "!", encoding="utf-8")
    assert call("eval", "--json").objects == before
    empty_cache()
    assert_refused(call("eval"), 3, "poems.txt", "--train-text")
    assert_refused(call("eval", "--train-text", "poems.txt"), 3, "poems.txt", "--train-text")


def test_a_model_trained_on_stdin_asks_for_its_text(desk: Path, call: Call) -> None:
    """Nobody can read stdin a second time, but the cache has it for a while, and the text can be named."""
    assert call("train", "-", "--steps", "2", "-q", *TINY, stdin=POEMS.encode()).code == 0
    assert call("eval", "--json").objects[0]["num_chars"] == 400
    empty_cache()
    assert_refused(call("eval"), 3, "stdin", "--train-text")
    assert call("eval", "--train-text", "poems.txt", "--json").objects[0]["num_chars"] == 400


@pytest.mark.parametrize("text", ["", "é", "ééé", "a", "éaé"])
def test_eval_needs_two_characters_that_the_model_knows(at_home: Home, call: Call, text: str) -> None:
    """A text with nothing to score is unusable input, not a division by zero."""
    assert_refused(call("eval", "-", stdin=text.encode()), 3)


# --- models ---


def test_info_lists_the_runs(copied_home: Path, call: Call) -> None:
    """Oldest first, a line each under a header, with the score in bits."""
    make_model(Path("checkpoints/newer/model.safetensors"), "ab")
    outcome = call("info")
    rows = [line.split("\t") for line in outcome.out.decode().splitlines()]
    bits = read_log(copied_home / "checkpoints/poems")[-1]["bits_per_char"]
    assert (outcome.code, outcome.err) == (0, "")
    assert [row[0] for row in rows] == ["run", "poems", "newer"]
    assert "gru 1x16" in rows[1]
    assert f"{bits:.3f}" in rows[1]
    assert "poems.txt" in rows[1]


def test_info_describes_one_model(at_home: Home, call: Call) -> None:
    """The card tells sizes, text, split and score."""
    outcome = call("info", "poems")
    rows = dict(line.split("\t") for line in outcome.out.decode().splitlines())
    assert (outcome.code, outcome.err) == (0, "")
    assert rows["model"] == "checkpoints/poems/model.safetensors"
    assert rows["network"] == "gru 1x16"
    assert rows["text"] == str(at_home.path / "poems.txt")
    assert "3,600" in rows["split"]
    assert "bits/char" in rows["score"]


@pytest.mark.parametrize("which", [(), ("poems",)])
def test_info_as_json(at_home: Home, call: Call, which: tuple[str, ...]) -> None:
    """The same facts as values, one object a model."""
    outcome = call("info", *which, "--json")
    (card,) = outcome.objects
    assert (outcome.code, outcome.err) == (0, "")
    assert card["run"] == "poems"
    assert card["config"]["hidden_size"] == 16
    assert card["vocab"] == "".join(sorted(set(POEMS)))
    assert card["scores"]["nats_per_char"] == read_log(at_home.path / "checkpoints/poems")[-1]["nats_per_char"]


@pytest.mark.parametrize("args", [("info",), ("info", "--json"), ("sample",), ("eval",)], ids=" ".join)
def test_without_any_model_the_way_to_make_one_is_named(desk: Path, call: Call, args: tuple[str, ...]) -> None:
    """An empty folder is not an empty list."""
    assert_refused(call(*args), 4, "checkpoints", "charrnn train TEXT")


def test_info_lists_good_models_beside_a_damaged_one(copied_home: Path, call: Call) -> None:
    """The damaged one is named on stderr, the others are listed."""
    bad = Path("checkpoints/bad/model.safetensors")
    bad.parent.mkdir()
    bad.write_bytes(b"nothing")
    outcome = call("info")
    assert [line.split("\t")[0] for line in outcome.out.decode().splitlines()] == ["run", "poems"]
    assert outcome.err == f"charrnn: {bad}: not a charrnn file\n"


# --- mistakes ---

TEXTS = {
    "empty.txt": (b"", ("empty",)),
    "latin.txt": ("Gedicht für".encode("latin-1") + b" x" * 20, ("byte 9", "0xfc", "--encoding latin-1")),
    "binary.bin": (b"abc\0def" * 9, ("binary", "byte 3")),
    "missing.txt": (None, ("no such file",)),
    "a\x1b[31m\nb.txt": (None, ("no such file", r"a\x1b[31m\nb.txt")),
    "x" * 300: (None, ()),
    "folder": (None, ("no text files",)),
}


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize("name", TEXTS, ids=lambda name: name.encode("unicode_escape").decode()[:20])
def test_an_unusable_text_is_refused(copied_home: Path, call: Call, command: str, name: str) -> None:
    """The line names the file, what is wrong with it and, where one helps, the option."""
    data, parts = TEXTS[name]
    Path("folder").mkdir()
    if data is not None:
        Path(name).write_bytes(data)
    outcome = call(command, name, *(["-m", "poems"] if command == "eval" else []))
    assert_refused(outcome, 3, *parts)
    assert "\x1b" not in outcome.err
    assert {path.name for path in Path("checkpoints").iterdir()} == {"poems"}


def test_a_text_too_short_to_learn_from_is_refused(desk: Path, call: Call) -> None:
    """The line says how much would be enough."""
    Path("short.txt").write_text("a rose\n", encoding="utf-8")
    assert_refused(call("train", "short.txt"), 3, "short.txt", "7 characters", "at least 20")


@pytest.mark.parametrize("encoding", ["utf-9", "", "base64", "rot13", "x\0y"])
def test_an_encoding_that_is_none_is_refused(desk: Path, call: Call, encoding: str) -> None:
    """An unknown codec is a usage error that names the option."""
    assert_refused(call("train", "poems.txt", "--encoding", encoding), 2, "--encoding")


def test_a_codec_that_fails_in_its_own_way_is_refused(desk: Path, call: Call) -> None:
    """Some codecs raise errors that don't say where; the line still names the file."""
    assert_refused(call("train", "poems.txt", "--encoding", "utf-16"), 3, "poems.txt", "--encoding")


@posix
def test_a_closed_stdin_is_refused(desk: Path) -> None:
    """`-` without a stdin is unusable input."""
    assert_refused(in_shell('"${charrnn[@]}" <&-', "train", "-", cwd=desk), 3, "stdin")


MODELS: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "x" * 300: lambda _: None,
    "empty": lambda _: b"",
    "garbage": lambda _: b"this is not a model, it is a poem\n" * 9,
    "zeros": lambda _: bytes(1000),
    "truncated": lambda whole: whole[:-1],
    "longer": lambda whole: whole + b"\0",
    "flipped": lambda whole: whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
}


@pytest.mark.parametrize("command", ["sample", "eval", "info"])
@pytest.mark.parametrize("name", MODELS, ids=lambda name: name[:10])
def test_a_file_that_is_no_model_is_refused(home: Home, desk: Path, call: Call, command: str, name: str) -> None:
    """Missing, damaged and foreign model files end with 4, in one line that names the file."""
    data = MODELS[name]((home.path / "checkpoints/poems/model.safetensors").read_bytes())
    if data is not None:
        Path(name).write_bytes(data)
    assert_refused(call(command, *(["-m"] if command != "info" else []), name), 4, name)


def test_a_folder_a_device_and_a_state_are_no_models(home: Home, desk: Path, call: Call) -> None:
    """What exists, but can't be a model, is named as such."""
    Path("folder").mkdir()
    state = home.path / "checkpoints/poems/state-20.safetensors"
    for which, part in [("folder", "folder"), (str(state), "state"), (os.devnull, os.devnull)]:
        assert_refused(call("sample", "-m", which), 4, part)


def test_a_newer_format_is_refused_in_clear_words(desk: Path, call: Call) -> None:
    """A file of a later version says so, not that it is damaged."""
    write_tensors(desk / "m", {"a": np.zeros(1, np.float32)}, kind="model", meta={"format": 2})
    assert_refused(call("sample", "-m", "m"), 4, "format 2", "newer")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("bogus",), ("bogus",)),
        (("train",), ("TEXT",)),
        (("train", "poems.txt", "--nonsense"), ("--nonsense",)),
        (("sample", "--nonsense"), ("--nonsense",)),
        (("sample", "--x\x1b[31m\ny"), (r"--x\x1b[31m",)),
        (("sample", "extra[/]"), ("extra[/]",)),
        (("eval", "poems.txt", "extra"), ("extra",)),
        (("sample", "-n"), ("-n",)),
        (("sample", "-n", "-2"), ("--length",)),
        (("sample", "--top-p", "1.5"), ("--top-p",)),
        (("sample", "--unknown", "drop"), ("--unknown", "skip", "drop")),
        (("sample", "--stop", ""), ("--stop",)),
        (("sample", "-N", "0"), ("--num-samples",)),
        (("train", "poems.txt", "--cell", "transformer"), ("--cell", "rnn, gru, lstm", "transformer")),
        (("train", "poems.txt", "--dry-run", "--run", ""), ("--run",)),
        (("train", "poems.txt", "--dry-run", "--run", "a/b"), ("--run", "a/b")),
        (("train", "poems.txt", "--dry-run", "--run", ".."), ("--run",)),
        (("train", "poems.txt", "--steps", "1", "--run", "x" * 300), ("--run",)),
        (("train", "poems.txt", "--device", "abacus"), ("--device", "abacus")),
        (("train", "-", "-"), ("stdin",)),
    ],
    ids=lambda value: ascii(" ".join(value))[:40] if isinstance(value, tuple) else None,
)
def test_a_usage_error_is_one_line(desk: Path, call: Call, args: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """What doesn't parse or makes no sense ends with 2 and names the culprit."""
    outcome = call(*args)
    assert_refused(outcome, 2, *parts)
    assert "\x1b" not in outcome.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused(desk: Path, call: Call) -> None:
    """A missing device is a matter of resources, and the line says what to use instead."""
    assert_refused(call("train", "poems.txt", "--device", "cuda", "--dry-run"), 6, "--device cuda", "--device cpu")


def takes_number(command: Any, name: str) -> bool:
    """Whether a command's parameter is an int or a float, or may be left out."""
    hint = typing.get_type_hints(command.callback).get(name)
    return bool({int, float} & {hint, *typing.get_args(hint)})


NUMERIC = [
    (name, flag(parameter.name))
    for name, command in COMMANDS.items()
    for parameter in command.params
    if takes_number(command, parameter.name)
]
SAID_BY_THE_TEXT = {"--vocab-size", "--reset-id", "--known"}  # or by the model that a run begins with
OTHER_NUMBERS = {"--minutes", "--threads", "--save-every", "--adapt-rate", "--worst"}
BAD_NUMBERS = ("nan", "inf", "-inf", "-1", "1e308", "abc", "", "1,5")
MEANINGFUL = {("--length", "-1"), ("--temperature", "1e308")}


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [(*pair, value) for pair in NUMERIC for value in BAD_NUMBERS if (pair[1], value) not in MEANINGFUL],
)
def test_a_bad_number_is_refused(at_home: Home, call: Call, command: str, option: str, value: str) -> None:
    """Every option that takes a number refuses what isn't one, or lies out of range, by its name."""
    rest = {"train": ["poems.txt", "--run", "other", "--dry-run"], "eval": ["poems.txt"]}.get(command, [])
    assert_refused(call(command, option, value, *rest), 2, option)


@pytest.mark.parametrize("option", [option for command, option in NUMERIC if command == "sample"])
@pytest.mark.parametrize("value", ["0", "1e-45"])
def test_the_smallest_numbers_mean_what_they_say(at_home: Home, call: Call, option: str, value: str) -> None:
    """Zero and the smallest float: text as long as asked, or a refusal by the option's name."""
    refuse_zero = {"--num-samples", "--threads"}
    take_fractions = {"--temperature", "--top-p", "--min-p"}
    outcome = call("sample", "-n", "20", "--seed", "1", option, value)
    if option in refuse_zero if value == "0" else option not in take_fractions:
        assert_refused(outcome, 2, option)
    else:
        length = 0 if option == "--length" else 20
        assert (outcome.code, len(outcome.out.decode()), outcome.err) == (0, length, "")


def test_all_numeric_options_are_tried() -> None:
    """The table above is not short by accident."""
    assert {("train", "--learning-rate"), ("train", "--minutes"), ("sample", "--seed")} <= set(NUMERIC)
    assert {(command, "--threads") for command in ("train", "sample", "eval")} <= set(NUMERIC)
    numbers = {
        flag(field.name)
        for kind in (ModelConfig, TrainConfig, SourceConfig, CorpusConfig, SampleConfig)
        for field in dataclasses.fields(kind)
        if "range" in field.metadata
    }
    assert {option for _, option in NUMERIC} == numbers - SAID_BY_THE_TEXT | OTHER_NUMBERS


@posix
def test_a_disk_that_fills_up_in_training_is_one_line(desk: Path) -> None:
    """What can't be saved ends the run with 1 and says why."""
    script = 'ulimit -f 4; "${charrnn[@]}"'
    assert_refused(in_shell(script, "train", "poems.txt", "--steps", "3", "-q", *TINY, cwd=desk), 1, "File too large")


def test_a_file_where_the_runs_should_be_is_one_line(desk: Path, call: Call) -> None:
    """`checkpoints` that is no folder is named."""
    Path("checkpoints").write_text("", encoding="utf-8")
    assert_refused(call("train", "poems.txt", "--steps", "2", "-q", *TINY), 1, "checkpoints")


# --- names from outside ---


def test_rich_markup_in_a_name_is_only_a_name(desk: Path, call: Call) -> None:
    """Brackets that rich would read as markup go through every command."""
    path = Path("poems[/]x.txt")
    path.parent.mkdir()
    path.write_text(POEMS, encoding="utf-8")
    outcome = call("train", str(path), "--steps", "2", *TINY)
    assert (outcome.code, outcome.out) == (0, b"checkpoints/]x/model.safetensors\n")
    assert "]x.txt: 4,000 characters" in outcome.err
    assert call("eval", str(path), "--json").objects[0]["text"] == str(path)
    assert call("info", "]x").out.decode().count("poems[/]x.txt") == 1


def test_an_escape_in_a_name_is_shown(desk: Path, call: Call) -> None:
    """What is written for people has the escape spelled out; JSON has it in JSON's own way."""
    name = "a\x1b[31mb.txt"
    Path(name).write_text(POEMS, encoding="utf-8")
    outcome = call("train", name, "--steps", "2", *TINY)
    assert outcome.code == 0
    assert r"a\x1b[31mb.txt: 4,000 characters" in outcome.err
    shown = outcome.err.encode() + call("info").out + call("info", "a\x1b[31mb").out + call("eval", name).out
    assert b"\x1b" not in shown
    facts = call("eval", name, "--json")
    assert b"\x1b" not in facts.out
    assert facts.objects[0]["text"] == name


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
def test_a_name_that_is_not_utf8_comes_out_as_it_is(desk: Path, call: Call) -> None:
    """The path on stdout has the bytes of the file system."""
    name = os.fsdecode(b"po\xffms.txt")
    Path(name).write_text(POEMS, encoding="utf-8")
    outcome = call("train", name, "--steps", "2", *TINY)
    assert (outcome.code, outcome.out) == (0, b"checkpoints/po\xffms/model.safetensors\n")
    assert Path(os.fsdecode(outcome.out.rstrip())).is_file()
    assert call("info", os.fsdecode(b"po\xffms")).code == 0


# --- terminals ---

COLOUR = re.compile(rb"\x1b\[[0-9;]*\b(3[0-9]|4[0-9]|9[0-7]|10[0-7])\b[0-9;]*m")


@posix
def test_a_sample_on_a_terminal_shows_control_characters(desk: Path) -> None:
    """A model that has learned an escape character can't steer the terminal; a pipe gets it as it is."""
    make_model(desk / "m.safetensors", "a\x1b\x9b\u202e", likeliest="\x1b")
    args = ("sample", "-m", "m.safetensors", "-n", "3", "--seed", "1", "-p", "a\x9b\u202e")
    code, shown = on_terminal(*args, cwd=desk)
    assert code == 0
    assert shown.rstrip() == rb"a\x9b\u202e\x1b\x1b\x1b"
    assert charrnn(*args, cwd=desk).out == "a\x9b\u202e\x1b\x1b\x1b".encode()


class Screen(NamedTuple):
    """A training on a terminal: its folder, exit code, and what the terminal was sent."""

    path: Path
    code: int
    shown: bytes


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    """Train on a terminal, on a text whose name would turn it red."""
    path = tmp_path_factory.mktemp("screen")
    name = "a\x1b[31m[]b.txt"
    (path / name).write_text(POEMS, encoding="utf-8")
    code, shown = on_terminal("train", name, "--steps", "5", *TINY, cwd=path)
    return Screen(path, code, shown)


@posix
def test_train_on_a_terminal_draws_a_bar(screen: Screen) -> None:
    """A bar with the step and the speed, the plan above it, and the path at the end."""
    assert screen.code == 0
    assert b"Traceback" not in screen.shown
    assert re.search(rb"step \d/5.* bits, .* chars/s", screen.shown)
    assert b"4,000 characters" in screen.shown
    assert b"/model.safetensors\r\n" in screen.shown


@posix
def test_a_name_cannot_steer_the_terminal(screen: Screen) -> None:
    """Neither plan, path nor the next command let an escape through."""
    assert rb"a\x1b[31m[]b" in screen.shown
    assert b"\x1b[31m" not in screen.shown


@posix
@pytest.mark.parametrize("which", [(), ("a\x1b[31m[]b",)], ids=["list", "card"])
def test_info_on_a_terminal_shows_names_as_text(screen: Screen, which: tuple[str, ...]) -> None:
    """The tables neither crash on a name nor let it through."""
    code, shown = on_terminal("info", *which, cwd=screen.path)
    assert code == 0
    assert rb"\x1b[31m[]b" in shown
    assert b"\x1b[31m" not in shown


@posix
def test_no_color_means_no_colour(home: Home) -> None:
    """With NO_COLOR a table on a terminal has no colour codes."""
    code, shown = on_terminal("eval", "poems.txt", "--threads", "1", cwd=home.path, NO_COLOR="1")
    assert code == 0
    assert b"bits per character" in shown
    assert not COLOUR.search(shown)


@posix
def test_a_table_on_a_terminal_shows_all_of_a_long_path(desk: Path) -> None:
    """A path longer than the line is folded, not cut."""
    name = "n" * 150
    make_model(desk / "checkpoints" / name / "model.safetensors", "ab")
    code, shown = on_terminal("info", name, cwd=desk)
    assert code == 0
    assert sum(len(run) for run in re.findall(rb"n{30,}", shown)) == 150


# --- help ---


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(call: Call, command: str, option: str) -> None:
    """Every command explains itself on stdout."""
    outcome = call(*filter(None, [command, option]))
    assert (outcome.code, outcome.err) == (0, "")
    assert b"Usage: " in outcome.out


def test_help_in_a_pipe_is_plain(home: Home) -> None:
    """No colour off a terminal."""
    outcome = charrnn("train", "--help", cwd=home.path)
    assert (outcome.code, outcome.err) == (0, "")
    assert b"--hidden-size" in outcome.out
    assert b"\x1b" not in outcome.out


def test_the_version(call: Call) -> None:
    """Name and version, for scripts."""
    assert call("--version") == (0, f"charrnn {__version__}\n".encode(), "")


def test_the_bare_command_helps(call: Call) -> None:
    """Without arguments there is help, and no empty complaint."""
    outcome = call()
    assert "Usage: " in outcome.out.decode() + outcome.err
    assert "charrnn: ;" not in outcome.err


def fields(*kinds: type[Any]) -> set[str]:
    """The options that settings should have."""
    return {flag(field.name) for kind in kinds for field in dataclasses.fields(kind)}


OPTIONS = {
    "train": (
        fields(ModelConfig, TrainConfig, SourceConfig, CorpusConfig) - SAID_BY_THE_TEXT,
        {"--minutes", "--run", "--fresh", "--device", "--threads", "--precision", "--save-every", "--dry-run"}
        | {"--report", "--json", "--quiet"},
    ),
    "sample": (
        fields(SampleConfig),
        {"--model", "--prompt-file", "--echo", "--null", "--threads", "--precision", "--device", "--json", "--quiet"},
    ),
    "eval": (
        {"--encoding", "--errors"},
        {"--model", "--train-text", "--yardsticks", "--adapt", "--adapt-rate", "--per-line", "--per-char", "--worst"}
        | {"--html", "--device", "--threads", "--json"},
    ),
    "info": (set[str](), {"--cache", "--json"}),
}


def name_of(parameter: Any) -> str:
    """An option's name; Python's own names are avoided by an underscore."""
    return flag(parameter.name.rstrip("_"))


def test_every_command_is_in_the_table() -> None:
    """A new command gets its row."""
    assert OPTIONS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("command", OPTIONS)
def test_options_are_the_settings(command: str) -> None:
    """A command's options are the fields of its configurations, and those of presentation and place."""
    settings, others = OPTIONS[command]
    options = [parameter for parameter in COMMANDS[command].params if parameter.param_type_name == "option"]
    assert {name_of(parameter) for parameter in options} == settings | others
    for parameter in options:
        assert name_of(parameter) in parameter.opts
        if name_of(parameter) in settings:
            assert parameter.default is None, "defaults live in config.py"
