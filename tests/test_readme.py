"""What README promises is what happens: its commands run, its links lead somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "corpora/README.md",
]


def shell_lines(page: str) -> list[str]:
    """The commands in a page's `sh` blocks."""
    return [line for block in re.findall(r"```sh\n(.*?)```", page, re.S) for line in block.splitlines() if line]


def test_the_two_set_up_commands_come_first():
    """One to use it, one to test it, before anything else that is code."""
    assert shell_lines(README)[:2] == [
        "pip install -c constraints.txt -e . && charrnn train corpora/poems.txt",
        "pip install -c constraints.txt -e '.[test]' && pytest",
    ]


def test_readmes_commands_run_in_order(tmp_path):
    """Every charrnn command in README, training shortened; each succeeds."""
    shutil.copytree(ROOT / "corpora", tmp_path / "corpora")
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "charrnn"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m charrnn "$@"\n')
    wrapper.chmod(0o755)
    environment = {**os.environ, "PATH": f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    commands = [line.split(" && ")[-1] for line in shell_lines(README)]
    commands = [line for line in commands if re.search(r"(^|\| )charrnn ", line)]
    assert len(commands) >= 8
    for command in commands:
        short = re.sub(r" --minutes [0-9.]+", "", command)
        if "charrnn train" in short and "--steps" not in short and "--dry-run" not in short:
            short += " --steps 3"
        done = subprocess.run(
            ["bash", "-c", f"{short}; test ${{PIPESTATUS[0]}} -eq 0 -o ${{PIPESTATUS[0]}} -eq 141"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{short}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link names a file that is there."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_formats_page_names_every_event_and_exit_code():
    """docs/formats.md knows what metrics.py and errors.py define."""
    from charrnn import errors
    from charrnn import events as metrics

    page = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    for kind in metrics.Event.__subclasses__():
        assert f"| `{kind.event}` |" in page
        for name in kind.__dataclass_fields__:
            assert name == "step" or f"`{name}`" in page, f"{kind.event}: {name}"
    for kind in errors.CharrnnError.__subclasses__():
        assert kind is errors.Interrupted or re.search(rf"\b{kind.exit_code}\b", page), kind


def test_the_formats_pages_example_runs(tmp_path, monkeypatch):
    """The Python on docs/formats.md loads a model's tensors into PyTorch."""
    from charrnn.config import ModelConfig
    from charrnn.model.file import save_model
    from tests.conftest import make_model_file

    (tmp_path / "checkpoints" / "poems").mkdir(parents=True)
    config = ModelConfig(cell="gru", vocab_size=20, embedding_dim=4, hidden_size=8, num_layers=1)
    save_model(tmp_path / "checkpoints" / "poems" / "model.safetensors", make_model_file(config))
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_readmes_python_runs(tmp_path, monkeypatch, capsys):
    """The Python in README writes text with a model that is there."""
    from charrnn.config import ModelConfig
    from charrnn.model.file import save_model
    from tests.conftest import make_model_file

    (tmp_path / "checkpoints" / "poems").mkdir(parents=True)
    chars = "".join(sorted(set("The kettle")))
    config = ModelConfig(cell="gru", vocab_size=len(chars), embedding_dim=4, hidden_size=8, num_layers=1)
    save_model(tmp_path / "checkpoints" / "poems" / "model.safetensors", make_model_file(config, chars=chars))
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(example, "README.md", "exec"), {})
    assert len(capsys.readouterr().out) == 500


def test_constraints_pin_everything_exactly():
    """Each line is a name and one version."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), line
