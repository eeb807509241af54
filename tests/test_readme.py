"""What the pages promise is what happens: their commands run, their links lead somewhere."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import charrnn
from charrnn import errors, events
from charrnn.config import ModelConfig
from charrnn.model.file import save_model
from tests.cli.conftest import call
from tests.conftest import make_model_file

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "corpora/README.md",
    ROOT / "benchmarks/RESULTS.md",
]


def shell_lines(page: str) -> list[str]:
    """The commands in a page's `sh` blocks."""
    return [line for block in re.findall(r"```sh\n(.*?)```", page, re.S) for line in block.splitlines() if line]


def charrnn_commands() -> list[str]:
    """README's charrnn commands, in order, training shortened to a few steps of a small network."""
    commands = []
    for line in shell_lines(README):
        command = re.sub(r" --minutes [0-9.]+", "", line.split(" && ")[-1])
        if not re.search(r"(^|\| )charrnn ", command):
            continue
        if "charrnn train" in command and "--steps" not in command and "--dry-run" not in command:
            command += " --steps 3 --hidden-size 32"
        commands.append(command)
    return commands


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A checkout's corpora, and the model of a run `poems` with random weights."""
    shutil.copytree(ROOT / "corpora", tmp_path / "corpora")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_set_up_commands_come_first():
    """One to use it, one to test it, before anything else that is code."""
    assert shell_lines(README)[:2] == [
        "pip install -c constraints.txt -e . && charrnn train corpora/poems.txt",
        "pip install -c constraints.txt -e '.[test]' && pytest",
    ]


def test_readmes_commands_run_in_order(folder):
    """Each succeeds, in one process: bash runs only what stands before a charrnn command in its pipeline."""
    commands = charrnn_commands()
    assert len(commands) >= 12
    for command in commands:
        before, ours = re.match(r"(?:(.*) \| )?charrnn (.*?)(?: \| .*)?$", command).groups()
        stdin = subprocess.run(["bash", "-c", before or ""], check=True, capture_output=True).stdout
        arguments = shlex.split(ours.replace("-n -1", "-n 100"))  # what `head` ends in a shell
        outcome = call(*arguments, stdin=stdin)
        assert outcome.code == 0, f"{command}\n{outcome.err}"


@pytest.mark.slow
def test_readmes_commands_run_in_a_shell(folder):
    """The same as they stand, pipes and all."""
    wrapper = folder / "bin" / "charrnn"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m charrnn "$@"\n')
    wrapper.chmod(0o755)
    environment = {**os.environ, "PATH": f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for command in charrnn_commands():
        script = f"{command}; test ${{PIPESTATUS[0]}} -eq 0 -o ${{PIPESTATUS[0]}} -eq 141"
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link names a file that is there."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_stays_short():
    """It is for newcomers; the rest is in docs/."""
    assert len(README.splitlines()) <= 170


def test_the_formats_page_names_every_event_and_exit_code():
    """docs/formats.md knows what events.py and errors.py define."""
    page = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    for kind in events.Event.__subclasses__():
        assert f"| `{kind.event}` |" in page
        for name in kind.__dataclass_fields__:
            assert name == "step" or f"`{name}`" in page, f"{kind.event}: {name}"
    for kind in errors.CharrnnError.__subclasses__():
        assert kind is errors.Interrupted or re.search(rf"\b{kind.exit_code}\b", page), kind


def run_example(page: Path) -> str:
    """Run a page's one Python example beside a run `poems` of random weights; return what it prints."""
    path = Path("checkpoints/poems/model.safetensors")
    path.parent.mkdir(parents=True)
    chars = "".join(sorted(set("The kettle")))
    config = ModelConfig(cell="gru", vocab_size=len(chars), embedding_dim=4, hidden_size=8, num_layers=1)
    save_model(path, make_model_file(config, chars=chars))
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, page.name, "exec"), {})
    return printed.getvalue()


def test_the_formats_pages_example_runs(tmp_path, monkeypatch):
    """It loads a model's tensors into PyTorch."""
    monkeypatch.chdir(tmp_path)
    run_example(ROOT / "docs/formats.md")


def test_readmes_python_runs(tmp_path, monkeypatch):
    """It writes the 500 characters that it asks for after the prompt."""
    monkeypatch.chdir(tmp_path)
    assert len(run_example(ROOT / "README.md")) == len("The kettle") + 500


def test_constraints_pin_everything_exactly():
    """Each line is a name and one version."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), line


def test_the_citation_is_of_this_version():
    """CITATION.cff can't read it from the package."""
    assert f"\nversion: {charrnn.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_requirements_without_torch_are_all_others():
    """What without-torch.txt installs is what pyproject.toml requires, PyTorch aside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "without-torch.txt").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "-c constraints.txt"
    assert lines[2:] == [line for line in project["dependencies"] if not line.startswith("torch")]
