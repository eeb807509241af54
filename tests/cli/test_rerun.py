"""`charrnn train` again: finished, unfinished, extended and fresh runs, runs that start from a model, signals."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from charrnn.cli import main as cli
from charrnn.events import Evaluated, Event
from charrnn.runs.folder import Run
from charrnn.terminal.progress import TrainView
from tests.cli.conftest import (
    HELD_OUT,
    POEMS,
    TINY,
    Outcome,
    assert_refused,
    call,
    learned,
    posix,
    read_log,
    start,
    tree,
    without_notices,
)

MODEL = "checkpoints/poems/model.safetensors"
PRINTED_PATH = f"{MODEL}\n".encode()
AGAIN = ("train", "poems.txt", "--steps", "20", *TINY)  # the command of the shared run

# the same command again


def test_a_finished_run_says_so(copied_home: Path) -> None:
    """Nothing is trained, the path is printed, the exit code is 0."""
    before = (copied_home / MODEL).read_bytes()
    outcome = call(*AGAIN)
    assert (outcome.code, outcome.out) == (0, PRINTED_PATH)
    assert "finished after 20 steps" in outcome.err
    assert (copied_home / MODEL).read_bytes() == before


@posix
@pytest.mark.parametrize("options", [(), ("--fresh",)], ids=" ".join)
def test_a_folder_with_a_link_in_it_is_refused(copied_home: Path, options: tuple[str, ...]) -> None:
    """A downloaded folder may hold links; neither the run nor the file at the link's end changes."""
    victim, link = copied_home / "victim.txt", copied_home / "checkpoints/poems/log.jsonl"
    victim.write_text("mine\n")
    link.unlink()
    link.symlink_to(victim)
    before = tree(copied_home)
    assert_refused(call(*AGAIN, *options), 1, "checkpoints/poems/log.jsonl is a symbolic link", "delete it")
    assert tree(copied_home) == before


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
def test_other_settings_are_refused(copied_home: Path, other: tuple[str, str]) -> None:
    """A setting that differs from the run's is a usage error that names the two ways out."""
    before = tree(copied_home)
    assert_refused(call(*AGAIN, *other), 2, other[0], "--run", "--fresh")
    assert tree(copied_home) == before


def test_another_text_under_the_same_name_is_refused(copied_home: Path) -> None:
    """A changed text does not continue the run of the old one."""
    (copied_home / "poems.txt").write_text(POEMS + "One line more.\n", encoding="utf-8")
    assert_refused(call(*AGAIN), 2, "text", "--run", "--fresh")


def test_settings_that_are_not_given_are_the_runs(copied_home: Path) -> None:
    """The bare command finds the finished run, whatever its settings were."""
    outcome = call("train", "poems.txt")
    assert (outcome.code, outcome.out) == (0, PRINTED_PATH)
    assert "finished" in outcome.err


def test_more_steps_extend_a_finished_run(copied_home: Path) -> None:
    """The run continues from its last step, and says that the learning rate starts again."""
    outcome = call("train", "poems.txt", "--steps", "30", *TINY)
    assert (outcome.code, outcome.out) == (0, PRINTED_PATH)
    assert "from step 20 to step 30" in outcome.err
    assert "the learning rate rises to its peak again" in outcome.err
    log = read_log(copied_home / "checkpoints/poems")
    added = log[[event["event"] for event in log].index("resumed") :]
    assert [event["step"] for event in added if event["event"] == "progress"] == list(range(21, 31))
    assert (added[-1]["event"], added[-1]["step"]) == ("finished", 30)


def cut_short(home: Path) -> int:
    """Make the finished run look as if it had died after its last state but one; return that state's step."""
    folder = home / "checkpoints/poems"
    (folder / "state-20.safetensors").unlink()
    (left,) = folder.glob("state-*.safetensors")
    return int(left.stem.removeprefix("state-"))


def test_an_unfinished_run_resumes(copied_home: Path) -> None:
    """It starts from the newest state, says so, and ends with the same weights and score."""
    whole, step = learned(copied_home / MODEL), cut_short(copied_home)
    outcome = call(*AGAIN)
    assert (outcome.code, outcome.out) == (0, PRINTED_PATH)
    assert re.match(rf".*\bstep {step}\b", outcome.err.splitlines()[0])
    assert learned(copied_home / MODEL) == whole


def test_another_budget_for_an_unfinished_run_is_refused(copied_home: Path) -> None:
    """A run is extended when it is finished; until then its budget is a setting like any other."""
    cut_short(copied_home)
    for budget in (("--steps", "30"), ("--steps", "10"), ("--minutes", "1")):
        assert_refused(call("train", "poems.txt", *budget, *TINY), 2, "finished", "--run", "--fresh")


def test_a_damaged_state_is_skipped_with_a_warning(copied_home: Path) -> None:
    """The run resumes from the state before it and ends with the same model; the log has the warning."""
    folder = copied_home / "checkpoints/poems"
    whole, newest = learned(copied_home / MODEL), folder / "state-20.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    outcome = call(*AGAIN, "--json")
    assert outcome.code == 0
    assert [event["event"] for event in outcome.objects][:2] == ["warning", "resumed"]
    assert "state-20.safetensors" in outcome.objects[0]["message"]
    assert learned(copied_home / MODEL) == whole
    assert {"warning", "resumed"} <= {event["event"] for event in read_log(folder)}


def test_a_run_whose_states_are_all_damaged_is_refused(copied_home: Path) -> None:
    """The line names a file and the way out."""
    for path in (copied_home / "checkpoints/poems").glob("state-*"):
        path.write_bytes(b"nothing")
    assert_refused(call(*AGAIN), 4, "state-20.safetensors", "--fresh")


def test_a_model_without_a_state_is_not_overwritten(copied_home: Path) -> None:
    """A model that was copied here alone is no run to resume."""
    for path in (copied_home / "checkpoints/poems").glob("state-*"):
        path.unlink()
    assert_refused(call(*AGAIN), 2, "--run", "--fresh")


def test_a_run_in_minutes_finishes_and_can_be_extended(desk: Path) -> None:
    """The same minutes find it finished; more minutes continue it."""
    settings = ("train", "poems.txt", *TINY)
    assert call(*settings, "-q", "--minutes", "0.01").code == 0
    first = read_log(desk / "checkpoints/poems")
    assert (first[0]["minutes"], first[0]["steps"]) == (0.01, None)
    assert first[-1]["event"] == "finished"
    again = call(*settings, "--minutes", "0.01")
    assert again.code == 0
    assert "finished" in again.err
    assert read_log(desk / "checkpoints/poems") == first
    more = call(*settings, "--minutes", "0.02")
    assert more.code == 0
    assert "from 0.01 to 0.02 minutes" in more.err
    assert read_log(desk / "checkpoints/poems")[-1]["step"] > first[-1]["step"]


def test_fresh_starts_over(copied_home: Path) -> None:
    """--fresh discards the run and its log, and trains with the settings given now."""
    outcome = call("train", "poems.txt", "--fresh", "--steps", "3", "--seed", "5", *TINY)
    assert (outcome.code, outcome.out) == (0, PRINTED_PATH)
    log = read_log(copied_home / "checkpoints/poems")
    assert (log[0]["event"], log[0]["training"]["seed"]) == ("plan", 5)
    assert [event["event"] for event in log].count("plan") == 1
    assert log[-1]["step"] == 3
    states = {path.name for path in (copied_home / "checkpoints/poems").glob("state-*")}
    assert "state-20.safetensors" not in states


def test_fresh_with_a_bad_setting_leaves_the_old_run(copied_home: Path) -> None:
    """A usage error must not cost what was learned."""
    before = tree(copied_home)
    assert_refused(call("train", "poems.txt", "--fresh", "--hidden-size", "-1"), 2, "--hidden-size")
    assert tree(copied_home) == before


def test_a_dry_run_with_fresh_plans_a_new_run(copied_home: Path) -> None:
    """--dry-run --fresh shows what --fresh would do, and leaves the old run as it is."""
    before = tree(copied_home)
    outcome = call("train", "poems.txt", "--fresh", "--dry-run", "--json", "--hidden-size", "24", "--steps", "5")
    assert (outcome.code, outcome.err) == (0, "")
    (plan,) = outcome.objects
    assert (plan["step"], plan["steps"], plan["model"]["hidden_size"]) == (0, 5, 24)
    assert tree(copied_home) == before


def test_a_run_that_another_process_trains_is_refused(copied_home: Path) -> None:
    """Training in the same folder ends with 5 and names the process; reading the model still works."""
    with Run("poems").locked():
        outcome = call("train", "poems.txt", "--steps", "30", *TINY)
        sampled = call("sample", "-n", "5", "--seed", "1", "-0")
    assert_refused(outcome, 5, "checkpoints/poems", f"process {os.getpid()}", "--run")
    assert (sampled.code, len(sampled.out)) == (0, 6)


def test_a_run_that_was_killed_before_its_last_line_logs_it_later(copied_home: Path) -> None:
    """All was on the disk except the log's last line: the same command writes it, once."""
    log = copied_home / "checkpoints/poems/log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    for _ in range(2):
        outcome = call(*AGAIN)
        assert (outcome.code, outcome.out) == (0, PRINTED_PATH)
        assert log.read_bytes() == whole


# starting from a model


def test_a_run_starts_from_a_model(copied_home: Path) -> None:
    """Named as a run, a file or a folder; the plan says so and names new characters."""
    (copied_home / "more.txt").write_text(POEMS.replace("dor", "dör"), encoding="utf-8")
    path = copied_home / MODEL
    for name in ("poems", str(path), "checkpoints/poems"):
        outcome = call("train", "more.txt", "--init-from", name, "--fresh", "--steps", "5", "--json", "--threads", "1")
        assert outcome.code == 0
        plan = outcome.objects[0]
        assert plan["training"]["init_from"] == str(path)
        assert plan["model"]["hidden_size"] == 16
        assert "U+00F6 'ö'" in plan["notes"][-1]
    shown = call("train", "more.txt", "--init-from", "poems", "--dry-run", "--fresh")
    assert f"starting from {path}" in shown.text
    assert "init from poems" in call("info", "more").text
    assert call("eval", "-m", "more", "--json").objects[0]["num_chars"] == len(HELD_OUT)


def test_a_run_that_started_from_a_model_resumes_without_it(copied_home: Path) -> None:
    """The command no longer needs the model, whether it is named or not."""
    settings = ("train", "more.txt", "-q", "--threads", "1")
    (copied_home / "more.txt").write_text(POEMS, encoding="utf-8")
    assert call(*settings, "--init-from", "poems", "--steps", "5").code == 0
    again = call(*settings, "--init-from", "poems", "--steps", "8")
    assert (again.code, again.out) == (0, b"checkpoints/more/model.safetensors\n")
    shutil.rmtree(copied_home / "checkpoints/poems")
    assert call(*settings, "--steps", "11").code == 0
    gone = call(*settings, "--init-from", "poems", "--steps", "14")
    assert gone.code == 0, gone.err


def test_a_run_may_start_from_its_own_model(copied_home: Path) -> None:
    """--fresh discards the run after the model has been read."""
    outcome = call("train", "poems.txt", "--fresh", "--init-from", "poems", "--steps", "5", "-q", "--threads", "1")
    assert (outcome.code, outcome.err) == (0, "")
    log = read_log(copied_home / "checkpoints/poems")
    assert log[-1]["step"] == 5
    assert log[0]["training"]["init_from"].endswith(MODEL)


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (("--init-from", "gone"), 4, ("gone", "charrnn info")),
        (("--init-from", "poems.txt"), 4, ("poems.txt", "not a charrnn model")),
        (("--init-from", "checkpoints/poems/state-20.safetensors"), 4, ("state-20", "not a model")),
        (("--init-from", "poems", "--hidden-size", "32"), 2, ("--hidden-size 32", "16")),
        (("--init-from", "poems", "--cell", "lstm"), 2, ("--cell lstm", "gru")),
        (("--init-from", "poems", "--run", "poems"), 2, ("--init-from", "--run NAME", "--fresh")),
        (("--save-every", "-1"), 2, ("--save-every",)),
        (("--min-count", "99999"), 2, ("--min-count 99999", "held-out text", "lower count")),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_what_a_run_can_not_start_from_is_refused(
    copied_home: Path, args: tuple[str, ...], code: int, parts: tuple[str, ...]
) -> None:
    """Before anything is made: no such model, not a model, other sizes, or too late."""
    assert_refused(call("train", "poems.txt", "--run", "other", *args), code, *parts)
    assert {path.name for path in Path("checkpoints").iterdir()} == {"poems"}


# signals

LONG = ("train", "poems.txt", "--steps", "120", "--json", *TINY)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of 120 steps that nothing disturbed."""
    path = tmp_path_factory.mktemp("signals")
    (path / "poems.txt").write_text(POEMS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert call(*LONG, "--run", "whole").code == 0
    return path


def interrupt(process: "subprocess.Popen[bytes]", number: signal.Signals) -> Outcome:
    """Send a signal after the first evaluation.

    Nothing reads stdout from then on until the signal is sent, and the pipe is short, so the run
    can't end before it.
    """
    import fcntl

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
    return Outcome(process.returncode, out + rest, without_notices(err))


def log_of_training(folder: Path) -> list[tuple[object, ...]]:
    """Return a run's log without paths, clock and speed, and without what a resumed session adds."""
    events = [event for event in read_log(folder) if event["event"] != "resumed"]
    return [(event["event"], event["step"], event.get("nats_per_char"), event.get("text")) for event in events]


def check_resume(folder: Path, message: str, resume: Callable[[], Outcome], whole: Path) -> None:
    """Check a run that stopped with this message: its state is saved, and it ends like the undisturbed run."""
    assert message.startswith("charrnn: stopped after step ")
    step = int(re.findall(r"step (\d+)", message)[0])
    assert 0 < step < 120
    assert (folder / f"state-{step}.safetensors").is_file()
    resumed = resume()
    assert resumed.code == 0
    assert (resumed.objects[0]["event"], resumed.objects[0]["step"]) == ("resumed", step)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {event["step"] for event in read_log(folder) if event["event"] == "resumed"} == {step}
    assert log_of_training(folder) == log_of_training(whole)


@posix
def test_a_signal_saves_and_the_same_command_resumes(uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends by the signal; the resumed run makes the same files as an undisturbed one."""
    monkeypatch.chdir(uninterrupted)
    run = (*LONG, "--run", "ended")
    stopped = interrupt(start(*run, cwd=uninterrupted), signal.SIGTERM)
    assert stopped.code == -signal.SIGTERM  # a shell shows 143
    assert "stopping after this step; press again to stop at once without saving\n" in stopped.err
    assert "Traceback" not in stopped.err
    check_resume(Path("checkpoints/ended"), stopped.err.splitlines()[-1], lambda: call(*run), Path("checkpoints/whole"))


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_every_signal_saves(uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Ctrl-C and a closed terminal too, and with --quiet, which leaves only the last line."""
    monkeypatch.chdir(uninterrupted)
    show, ended, number = TrainView.show, list[int](), signal.Signals[name]

    def show_and_signal(view: TrainView, event: Event) -> None:
        show(view, event)
        if isinstance(event, Evaluated) and event.step < 120 and len(ended) == 0:
            ended.append(0)
            signal.raise_signal(number)

    args = (*LONG, "--run", name)
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(TrainView, "show", show_and_signal)
            patch.setattr(cli, "end_by", ended.append)
            stopped = call(*args, "-q")
    finally:
        signal.signal(number, before)
    assert (stopped.code, ended[1:]) == (128 + number, [number])
    assert stopped.err.count("\n") == 1
    check_resume(Path("checkpoints") / name, stopped.err, lambda: call(*args), Path("checkpoints/whole"))
