"""`charrnn train`: what it prints and writes, the plan, texts, disks and terminals."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from charrnn.cli import main as cli
from charrnn.config import SECONDS_BETWEEN_STATES, flag
from tests.cli.conftest import (
    POEMS,
    TINY,
    Home,
    assert_refused,
    call,
    call_on_terminal,
    learned,
    posix,
    read_log,
    tree,
)
from tests.conftest import make_text

EVENTS = {"plan", "resumed", "progress", "evaluated", "sample", "saved", "warning", "finished"}
MODEL = "checkpoints/poems/model.safetensors"
PRINTED_PATH = f"{MODEL}\n".encode()

# output


def test_stdout_has_only_the_models_path(home: Home) -> None:
    """The result is the model file's path, and the file exists."""
    assert (home.trained.code, home.trained.out) == (0, PRINTED_PATH)
    assert (home.path / MODEL).is_file()


def test_stderr_is_for_people(home: Home) -> None:
    """Plan, evaluations, final score, comparison and the next command go to stderr."""
    err = home.trained.err
    assert "poems.txt: 4,000 characters" in err
    assert re.search(r"step 20: \d\.\d{3} bits/char held out", err)
    assert re.search(r"^this model +\d\.\d{3} bits/char \(perplexity \d+\.\d\d\)$", err, re.M)
    assert re.search(r"^uniform +\d\.\d{3} bits/char", err, re.M)
    assert err.endswith("\nnext: charrnn sample -m poems --temp 0.8\n")
    assert "\x1b" not in err


def test_a_run_leaves_a_model_two_states_and_a_log(home: Home) -> None:
    """The folder contains what the documentation says, and no temporary files."""
    names = sorted(path.name for path in (home.path / "checkpoints/poems").iterdir() if path.name != ".lock")
    assert len(names) == 4
    assert names[:2] == ["log.jsonl", "model.safetensors"]
    assert names[2].startswith("state-")
    assert names[3] == "state-20.safetensors"


def test_json_prints_one_event_per_line(desk: Path) -> None:
    """Every line has `event` and `step` and the fields that scripts rely on; the log has the same."""
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


def test_quiet_leaves_stderr_empty(desk: Path) -> None:
    """--quiet prints the result and nothing else."""
    assert call("train", "poems.txt", "--steps", "3", "--quiet", *TINY) == (0, PRINTED_PATH, "")


def test_the_report_is_written_next_to_the_model(desk: Path) -> None:
    """If asked for, also for a finished run, and with --quiet."""
    words = ("train", "poems.txt", "--steps", "3", *TINY)
    page = Path("checkpoints/poems/report.html")
    assert "wrote checkpoints/poems/report.html\n" in call(*words, "--report").err
    assert "Where the bits go" in page.read_text(encoding="utf-8")
    page.unlink()
    again = call(*words)
    assert "this model" not in again.err  # nothing was trained, so there is nothing to compare
    assert not page.exists()
    assert call(*words, "--report", "-q").err == ""
    assert page.exists()
    assert "wrote checkpoints/poems/report.html\n" in call(*words, "--report").err


def test_n_grams_are_mixed_in(desk: Path) -> None:
    """train, eval and info show the network's and the n-grams' shares; --no-mix leaves n-grams out."""
    Path("long.txt").write_text(make_text(60_000), encoding="utf-8")
    err = call("train", "long.txt", "--steps", "20", *TINY).err
    assert re.search(
        r"^\(with n-grams mixed in; the network alone \d\.\d{4} nats, n-grams alone \d\.\d{4}\)$", err, re.M
    )
    (facts,) = call("eval", "--json").objects
    rows = [line.split("\t")[0] for line in call("eval", "--no-yardsticks").text.splitlines() if "\t" in line]
    assert rows[-3:] == ["this model", "its network alone", "its n-grams alone"]
    assert facts["nats_per_char"] < facts["experts"]["network"]
    assert facts["copied"]["network"]["num_chars"] == facts["copied"]["written"]["num_chars"] == 60_000
    chars = call("eval", "--per-char").objects
    assert sum(one["nats"] for one in chars) == pytest.approx(facts["nats_per_char"] * facts["num_chars"])
    (adapted,) = call("eval", "--json", "--no-yardsticks", "--adapt", "--adapt-rate", "0").objects
    assert adapted["adapted"]["nats_per_char"] == pytest.approx(facts["nats_per_char"], abs=1e-5)
    assert re.search(r"^n-grams\t[\d,]+ of up to \d characters, \d\.\d MB$", call("info", "long").text, re.M)
    (card,) = call("info", "long", "--json").objects
    assert card["ngram"]["num_ngrams"] > 1000
    alone = ("train", "long.txt", "--steps", "3", *TINY, "--run", "alone")
    call(*alone, "--no-mix")
    assert_refused(call(*alone, "--mix"), 2, "--mix: this run was started without it")
    assert_refused(call(*alone, "--no-mix", "--run", "long"), 2, "--no-mix: this run was started with --mix")
    assert "n-grams\t" not in call("info", "alone").text
    assert call("eval", "-m", "alone", "--json").objects[0]["experts"] is None


# the plan


def test_dry_run_shows_the_plan_and_writes_nothing(desk: Path) -> None:
    """The plan is the result, on stdout, with the reasons for what was chosen."""
    before = tree(desk)
    outcome = call("train", "poems.txt", "--dry-run", "--cell", "lstm", "--steps", "77")
    assert (outcome.code, outcome.err) == (0, "")
    assert "poems.txt: 4,000 characters" in outcome.text
    assert "lstm 1x" in outcome.text
    assert "77 steps" in outcome.text
    assert re.search(r"^hidden size: ", outcome.text, re.M)
    assert tree(desk) == before
    assert not (desk / "checkpoints").exists()


def test_dry_run_as_json_is_the_event_that_the_run_logs(desk: Path) -> None:
    """The run does what --dry-run said."""
    settings = ("train", "poems.txt", "--steps", "2", "--cell", "lstm", *TINY)
    planned = call(*settings, "--dry-run", "--json")
    assert (planned.code, planned.err) == (0, "")
    assert not (desk / "checkpoints").exists()
    (plan,) = planned.objects
    assert (plan["event"], plan["step"], plan["steps"], plan["model"]["cell"]) == ("plan", 0, 2, "lstm")
    call(*settings)
    assert read_log(desk / "checkpoints/poems")[0] == plan


def test_every_setting_reaches_the_plan(desk: Path) -> None:
    """What is given replaces what is recommended, field by field."""
    model = {"cell": "rnn", "num_layers": 2, "hidden_size": 9, "embedding_dim": 7}
    training = {
        "dropout": 0.25,
        "weight_drop": 0.125,
        "seq_len": 11,
        "batch_size": 3,
        "learning_rate": 0.001,
        "weight_decay": 0.2,
        "grad_clip": 2.0,
        "patience": 3,
        "steps": 5,
        "seed": 8,
    }
    options = [word for name, value in {**model, **training}.items() for word in (flag(name), str(value))]
    (plan,) = call("train", "poems.txt", "--dry-run", "--json", "--valid-fraction", "0.25", *options).objects
    assert model.items() <= plan["model"].items()
    assert training.items() <= plan["training"].items()
    assert plan["num_valid_chars"] == 1000


def test_minutes_and_steps_exclude_each_other(desk: Path) -> None:
    """Two budgets are a usage error that names both."""
    assert_refused(call("train", "poems.txt", "--minutes", "1", "--steps", "5"), 2, "--minutes", "--steps")


def test_a_usage_error_leaves_no_folder_behind(desk: Path) -> None:
    """A run that never began has no folder."""
    assert_refused(call("train", "poems.txt", "--hidden-size", "-1"), 2, "--hidden-size")
    assert not (desk / "checkpoints").exists()


def test_a_state_is_saved_as_often_as_asked(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--save-every reaches the loop, with a minute as the default; the model is the same."""
    from charrnn.training import loop

    asked: list[float] = []

    class Watched(loop.Pace):
        """Notes what it is asked for."""

        def __init__(self, clock: Callable[[], float], *, save_every: float) -> None:
            asked.append(save_every)
            super().__init__(clock, save_every=save_every)

    monkeypatch.setattr(loop, "Pace", Watched)
    for name, options in (("often", ("--save-every", "0")), ("seldom", ("--save-every", "1e6")), ("default", ())):
        assert call("train", "poems.txt", "--run", name, *options, "--steps", "12", "-q", *TINY).code == 0
    assert asked == [0.0, 1e6, SECONDS_BETWEEN_STATES]
    models = [learned(path) for path in (desk / "checkpoints").glob("*/model.safetensors")]
    assert len(models) == 3
    assert models[0] == models[1] == models[2]


# the text


def test_stdin_is_a_text(desk: Path) -> None:
    """`-` is stdin, and the run is named after it."""
    outcome = call("train", "-", "--steps", "2", "--quiet", *TINY, stdin=POEMS.encode())
    assert outcome == (0, b"checkpoints/stdin/model.safetensors\n", "")


def test_a_folder_is_one_text(desk: Path) -> None:
    """The files of a folder are joined, each on lines of its own, without hidden and binary ones."""
    files = {"a.txt": b"x" * 100, "sub/b.txt": b"y" * 50, ".hidden": b"z" * 10, "picture.png": b"\x89PNG\0\0"}
    for name, data in files.items():
        (desk / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (desk / "texts" / name).write_bytes(data)
    (plan,) = call("train", "texts", "--dry-run", "--json").objects
    assert (plan["num_chars"], plan["vocab_size"], plan["run"]) == (151, 3, "texts")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_an_encoding_can_be_named(desk: Path, encoding: str) -> None:
    """--encoding reads a text in another encoding."""
    (desk / "other.txt").write_bytes(("é" + POEMS[:99]).encode(encoding))
    (plan,) = call("train", "other.txt", "--encoding", encoding, "--dry-run", "--json").objects
    assert plan["num_chars"] == 100


# disks and terminals


@posix
def test_a_disk_that_fills_up_is_one_line(desk: Path) -> None:
    """A state that can't be saved ends the run with 1 and says why."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # bytes of any one file
    try:
        outcome = call("train", "poems.txt", "--steps", "3", "-q", *TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_refused(outcome, 1, "File too large")


def test_a_file_where_the_runs_should_be_is_named(desk: Path) -> None:
    """`checkpoints` must be a folder."""
    Path("checkpoints").write_text("", encoding="utf-8")
    assert_refused(call("train", "poems.txt", "--steps", "2", "-q", *TINY), 1, "checkpoints")


@posix
def test_a_terminal_shows_a_bar_and_a_curve(desk: Path) -> None:
    """A bar with the step and the speed; the held-out losses as bars; the plan above, the path at the end."""
    code, shown = call_on_terminal("train", "poems.txt", "--steps", "30", *TINY)
    assert code == 0
    assert b"Traceback" not in shown
    assert re.search(rb"step \d+/30.* bits, .* chars/s", shown)
    assert re.search("bits/char held out.*[▁▂▃▄▅▆▇█]", shown.decode())
    assert b"4,000 characters" in shown
    assert b"/model.safetensors\r\n" in shown


@posix
def test_a_narrow_terminal_breaks_lines_between_words(desk: Path) -> None:
    """No line is longer than the terminal is wide."""
    code, shown = call_on_terminal("train", "poems.txt", "--steps", "2", *TINY, columns=50)
    lines = shown.decode().split("\r\n")
    assert code == 0
    assert max(len(line.split("\r")[-1]) for line in lines) <= 50
    assert any(line.startswith("gru 1x16, embedding ") for line in lines)
    assert call("train", "poems.txt", "--dry-run").text.count("\n") < len(lines)


@posix
def test_the_name_of_a_text_cannot_control_the_terminal(desk: Path) -> None:
    """Plan, path, next command and info's tables show its escapes as text."""
    name = "a\x9b31m[]b"
    Path("poems.txt").rename(f"{name}.txt")
    for words in (("train", f"{name}.txt", "--steps", "5", *TINY), ("info",), ("info", name)):
        code, shown = call_on_terminal(*words)
        assert code == 0
        assert rb"\x9b31m[]b" in shown
        assert "\x9b" not in shown.decode()


def test_the_installed_command_runs_the_command_line_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """`call` runs the function that the installed command and `python -m charrnn` run."""
    from charrnn import __main__

    ran: list[str] = []
    monkeypatch.setattr(cli, "main", lambda: ran.append("main"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    __main__.main()
    assert ran == ["main"]
