"""Options: help and usage, each setting has an option, bad numbers are refused."""

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import typer

from charrnn.cli.main import build_app
from charrnn.config import CorpusConfig, ListConfig, ModelConfig, SampleConfig, SourceConfig, TrainConfig, flag
from tests.cli.conftest import Home, assert_refused, call, call_on_terminal, posix

COMMANDS = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]

# settings and options

SET_BY_THE_TEXT = {"--vocab-size", "--reset-id", "--label-id", "--known"}  # or by the model that a run starts from
SET_BY_OTHERS = {"--keep-empty"}  # by --per-line


def fields(*kinds: type[Any]) -> set[str]:
    """Return the options that settings should have."""
    return {flag(field.name) for kind in kinds for field in dataclasses.fields(kind)}


OPTIONS = {
    "train": (
        fields(ModelConfig, TrainConfig, SourceConfig, CorpusConfig) - SET_BY_THE_TEXT - SET_BY_OTHERS,
        {"--minutes", "--run", "--fresh", "--device", "--threads", "--precision", "--save-every", "--dry-run"}
        | {"--report", "--export", "--json", "--quiet"},
    ),
    "sample": (
        fields(SampleConfig, ListConfig),
        {"--model", "--prompt-file", "--prompts", "--train-text", "--echo", "--null", "--threads", "--precision"}
        | {"--json", "--per-char", "--quiet"},
    ),
    "eval": (
        {"--documents", "--encoding", "--errors", "--max-bytes", "--column", "--label", "--label-from", "--format"},
        {"--model", "--train-text", "--yardsticks", "--adapt", "--adapt-rate", "--per-line", "--per-char", "--worst"}
        | {"--inside", "--by-label", "--html", "--device", "--threads", "--json"},
    ),
    "info": (set[str](), {"--cache", "--json"}),
    "export": (set[str](), {"--output", "--precision", "--ngrams", "--with-names", "--json", "--quiet"}),
}


def options_of(command: str) -> dict[str, Any]:
    """Return a command's options by name; Python's own names have an underscore, the options don't."""
    return {
        flag(parameter.name.rstrip("_")): parameter
        for parameter in COMMANDS[command].params
        if parameter.param_type_name == "option"
    }


def test_every_command_is_in_the_table() -> None:
    """A new command needs a row."""
    assert OPTIONS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("command", OPTIONS)
def test_options_are_the_settings(command: str) -> None:
    """A command's options are the fields of its settings, and those of presentation and place."""
    settings, others = OPTIONS[command]
    options = options_of(command)
    assert options.keys() == settings | others
    for name, parameter in options.items():
        assert name in parameter.opts
        if name in settings:
            assert parameter.default is None, "defaults live in config.py"


# help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_on_stdout(command: str) -> None:
    """Plain text; -h and --help are the same."""
    words = [command] if command else []
    outcome = call(*words, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert call(*words, "-h") == outcome
    assert outcome.text.startswith(f"Usage: charrnn {f'{command} ' if command else ''}[OPTIONS]")
    assert "\x1b" not in outcome.text


def test_the_bare_command_is_a_usage_error_with_help() -> None:
    """As if --help had been given, but for the exit code."""
    assert call() == (2, call("--help").out, "")


@pytest.mark.parametrize("columns", [50, 80])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_cuts_no_name_and_fits(monkeypatch: pytest.MonkeyPatch, command: str, columns: int) -> None:
    """Every option is there in full, and only examples may be wider than the terminal."""
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = call(command, "--help").text
    for parameter in options_of(command).values():
        for name in (*parameter.opts, *parameter.secondary_opts):
            assert re.search(rf"(^  |, |/ ){re.escape(name)}\b", shown, re.M), name
    wide = [line for line in shown.splitlines() if len(line) > columns]
    assert all("charrnn" in line for line in wide)
    assert "…" not in shown
    assert "..." not in shown.replace("TEXT...", "")


def test_help_shows_defaults_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written once, in config.py; a float has no more digits than needed."""
    monkeypatch.setenv("COLUMNS", "80")
    sample = " ".join(call("sample", "--help").text.split())
    assert f"3 more to end a character. [default: {SampleConfig().length}, or to the end of a document]" in sample
    assert f"0 always takes the likeliest character. [default: {SampleConfig().temperature}]" in sample
    assert "[default: the newest model]" in sample
    train = " ".join(call("train", "--help").text.split())
    assert "--grad-clip X Maximum gradient norm. [default: 1]" in train
    assert "Mix n-grams into the predictions if that helps. [default: on]" in train
    assert "CPU threads. [default: all available cores]" in train


def test_the_common_options_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the sections; the usage line has the arguments' plain names."""
    monkeypatch.setenv("COLUMNS", "80")
    train = call("train", "--help").text
    assert train.startswith("Usage: charrnn train [OPTIONS] TEXT...\n")
    assert train.index("--minutes X") < train.index("--run NAME") < train.index("\nNetwork:") < train.index("--cell")
    sample = call("sample", "--help").text
    assert sample.index("--length N") < sample.index("--temp, ") < sample.index("\nFilters:") < sample.index("--top-k")
    assert call("eval", "--help").text.startswith("Usage: charrnn eval [OPTIONS] [TEXT]\n")


def test_paragraphs_reflow_and_examples_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paragraph has no line break of the source; each example is on a line of its own."""
    monkeypatch.setenv("COLUMNS", "50")
    shown = call("train", "--help").text
    paragraph = shown.split("\n\n")[2]
    assert max(map(len, paragraph.splitlines()[:-1])) > 40
    assert min(map(len, paragraph.splitlines()[:-1])) > 30
    examples = [line for line in shown.splitlines() if line.startswith("    ") and "charrnn train" in line]
    assert examples == [
        "    charrnn train poems.txt",
        "    charrnn train novels/ --glob '*.txt' --minutes 10",
        "    zcat names.gz | charrnn train - --documents lines --run names",
    ]


@posix
def test_columns_of_0_still_show_help() -> None:
    """As some terminals report it."""
    code, shown = call_on_terminal("train", "--help", COLUMNS="0")
    assert code == 0
    assert b"--embedding-dim N" in shown


# mistakes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "--epochs", "3", "a"], "no option --epochs; use --steps or --minutes"),
        (["train", "--rnn_size", "3", "a"], "no option --rnn_size; use --hidden-size"),
        (["train", "--embeding", "3", "a"], "no option --embeding; did you mean --embedding-dim?"),
        (["sample", "--top_k", "3"], "no option --top_k; did you mean --top-k?"),
        (["sample", "--epochs", "3"], "no option --epochs; did you mean --echo?"),
        (["train", "--min", "3", "a"], "no option --min; did you mean --minutes or --min-count?"),
        (["info", "--frob"], "no option --frob; see charrnn info --help"),
        (["info", "-m", "a"], "no option -m; name the model without it: charrnn info MODEL"),
        (["export", "--model", "a"], "no option --model; name the model without it: charrnn export MODEL"),
        (
            ["eval", "--inside", "memry"],
            "--inside has no part 'memry'; the parts are memory, gradient, units, bits, alike",
        ),
        (["sample", "--temp", "-1"], "--temp must be a finite number of at least 0, not -1.0"),
        (["train"], "TEXT is missing; see charrnn train --help"),
        (["train", "a", "--minutes"], "--minutes needs a value"),
        (["train", "a", "--quiet=3"], "--quiet takes no value"),
        (["train", "a", "--lr", "fast"], "--learning-rate 'fast' is not a number; see charrnn train --help"),
        (["sample", "--temperature", "hot"], "--temp 'hot' is not a number; see charrnn sample --help"),
        (["sample", "-N", "1.5"], "--num-samples '1.5' is not a whole number; see charrnn sample --help"),
        (
            ["sample", "My prompt"],
            "unexpected argument 'My prompt'; name a model with -m 'My prompt', or a prompt with -p 'My prompt'",
        ),
        (["eval", "a", "b\x1b"], r"unexpected argument 'b\\x1b'; see charrnn eval --help"),
        (["trian", "a"], "no command 'trian'; did you mean train?"),
        (["learn", "a"], "no command 'learn'; the commands are train, sample, eval, info, export"),
    ],
    ids=str,
)
def test_a_mistake_is_answered_with_what_to_do(desk: Path, words: list[str], line: str) -> None:
    """In our words, not the parser's."""
    assert call(*words) == (2, b"", f"charrnn: {line}\n")


def test_well_known_names_of_options_are_aliases(at_home: Home) -> None:
    """Where they mean the same."""
    names = ("--layers", "2", "--hidden", "8", "--batch", "4", "--lr", "0.01")
    outcome = call("train", "poems.txt", "--run", "x", "--dry-run", "--json", *names)
    plan = json.loads(outcome.out)
    assert (plan["model"]["num_layers"], plan["model"]["hidden_size"]) == (2, 8)
    assert (plan["training"]["batch_size"], plan["training"]["learning_rate"]) == (4, 0.01)


# numbers

OTHER_NUMBERS = {"--minutes", "--threads", "--save-every", "--adapt-rate", "--worst", "--ngrams"}
UNLIMITED = {("--length", "-1"), ("--temp", "1e308")}


def number_type(command: str, name: str) -> type | None:
    """Return the type of a command's numeric option, int or float; None for other options."""
    hint = typing.get_type_hints(COMMANDS[command].callback).get(name)
    return next((kind for kind in (int, float) if kind in (hint, *typing.get_args(hint))), None)


NUMERIC = [
    (command, name, kind)
    for command in COMMANDS
    for name, parameter in options_of(command).items()
    if (kind := number_type(command, parameter.name))
]


def test_all_numeric_options_are_tried() -> None:
    """The table above is complete."""
    numbers = {
        flag(field.name)
        for kind in (ModelConfig, TrainConfig, SourceConfig, CorpusConfig, SampleConfig, ListConfig)
        for field in dataclasses.fields(kind)
        if "range" in field.metadata
    }
    assert {name for _, name, _ in NUMERIC} == numbers - SET_BY_THE_TEXT | OTHER_NUMBERS
    assert {(command, "--threads", int) for command in ("train", "sample", "eval")} <= set(NUMERIC)


@pytest.mark.parametrize(("command", "option", "kind"), NUMERIC, ids=str)
def test_a_bad_number_is_refused(at_home: Home, command: str, option: str, kind: type) -> None:
    """Every numeric option names itself if a value is no number or out of range."""
    rest = {"train": ["poems.txt", "--run", "other", "--dry-run"], "eval": ["poems.txt"]}.get(command, [])
    for value in ("nan", "inf", "-inf", "-1", "1e308", "abc", "", "1,5"):
        if (option, value) not in UNLIMITED:
            assert_refused(call(command, option, value, *rest), 2, option)


@pytest.mark.parametrize("option", [name for command, name, _ in NUMERIC if command == "sample"])
@pytest.mark.parametrize("value", ["0", "1e-45"])
def test_the_smallest_numbers_mean_what_they_say(at_home: Home, option: str, value: str) -> None:
    """Zero and the smallest float: text as long as asked, or a refusal by the option's name."""
    refuse_zero = {"--num-samples", "--threads", "--resample", "--new-run", "--max-draws", "--best"}
    take_fractions = {"--temp", "--top-p", "--min-p"}
    outcome = call("sample", "-n", "20", "--seed", "1", "-0", option, value)
    if (value == "0" and option in refuse_zero) or (value != "0" and option not in take_fractions):
        assert_refused(outcome, 2, option)
    else:
        length = 0 if option == "--length" else 20
        assert (outcome.code, len(outcome.text), outcome.err) == (0, length + 1, "")


def test_a_setting_that_is_not_given_does_not_reach_the_plan(desk: Path) -> None:
    """So that what the text recommends is used."""
    (plan,) = call("train", "poems.txt", "--dry-run", "--json").objects
    assert plan["training"]["patience"] == TrainConfig.patience
    assert plan["model"]["hidden_size"] != 16
