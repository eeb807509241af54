"""What a shell is told when the user presses Tab."""

from pathlib import Path

import pytest

from charrnn.files import CHECKPOINTS_VARIABLE
from charrnn.inspection.findings import PARTS
from tests.cli.conftest import call


def complete(line: str) -> list[str]:
    """Ask for the completions of a line as bash does, with the cursor at its end."""
    *_, last = words = line.split(" ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_CHARRNN_COMPLETE", "complete_bash")
        patch.setenv("COMP_WORDS", line)
        patch.setenv("COMP_CWORD", str(len(words) - 1))
        outcome = call()
    assert (outcome.code, outcome.err) == (0, "")
    found = outcome.text.split()
    assert all(word.startswith(last.rpartition("=")[2]) for word in found)
    return found


def make_runs(root: Path, *names: str) -> None:
    """Create empty model files, which completion doesn't open."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "model.safetensors").touch()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with three runs."""
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "checkpoints", "poems", "names", "café")
    return tmp_path


def test_commands_and_options_are_completed() -> None:
    """By how they begin."""
    assert complete("charrnn e") == ["eval", "export"]
    assert complete("charrnn --c") == ["--checkpoints", "--cache-dir"]
    assert complete("charrnn sample --te") == ["--temp", "--temperature"]


@pytest.mark.parametrize(
    "line",
    ["sample -m ", "eval --model ", "eval -m poems -m ", "info ", "export ", "train x --init-from ", "train x --run "],
)
def test_runs_are_completed(line: str) -> None:
    """Wherever a model or a run can be named."""
    assert set(complete(f"charrnn {line}")) == {"poems", "names", "café"}
    assert complete(f"charrnn {line}po") == ["poems"]


def test_runs_in_another_folder_are_completed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is named by the variable, or by the option, which wins."""
    make_runs(folder / "a", "one")
    make_runs(folder / "b", "two")
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, "a")
    assert complete("charrnn info ") == ["one"]
    assert complete("charrnn --checkpoints b info ") == ["two"]


@pytest.mark.parametrize("name", ["two words", "$(id)", "a\\$(id)", "`id`", "a;b", "a'b", 'a"b', "-m", "a\nb", "a:b"])
def test_names_that_a_shell_could_evaluate_are_left_out(folder: Path, name: str) -> None:
    """A downloaded folder can have runs of any name, and zsh evaluates what it is given."""
    make_runs(folder / "others", name, "good")
    assert complete("charrnn --checkpoints others sample -m ") == ["good"]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("train x --cell ", ["rnn", "gru", "lstm"]),
        ("train x --cell=l", ["lstm"]),
        ("train x --precision ", ["float32", "bfloat16", "auto"]),
        ("sample --precision b", ["bfloat16"]),
        ("export --precision ", ["int8", "bfloat16", "float32"]),
        ("train x --device ", ["auto", "cpu", "cuda"]),
        ("eval --device c", ["cpu", "cuda"]),
        ("train x --documents ", ["lines", "blank-lines"]),
        ("train x --format ", ["csv", "tsv", "jsonl", "fasta"]),
        ("train x --label-from ", ["file", "folder"]),
        ("train x --errors ", ["strict", "replace"]),
        ("eval --inside ", [*PARTS, "all"]),
        ("sample --unknown ", ["error", "skip"]),
        ("sample --best-by ", ["char", "total"]),
        ("sample -f ", []),  # so that the shell completes a file
    ],
)
def test_values_are_completed(line: str, values: list[str]) -> None:
    """Of options that have few."""
    assert complete(f"charrnn {line}") == values


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_given_the_same_names(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without help, which costs as much time as all the rest."""
    monkeypatch.setenv("_CHARRNN_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    answers = []
    for line in ("charrnn sample -m po", "charrnn sample --te", "charrnn sa"):
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        answers.append(call().text.strip())
    if shell == "fish":
        assert answers == ["poems", "--temp\n--temperature", "sample"]
    else:
        names = ['"poems"', '"--temp"\n"--temperature"', '"sample"']
        assert answers == [f"_arguments '*: :(({words}))'" for words in names]
