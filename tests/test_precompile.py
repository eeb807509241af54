"""What is compiled before a command begins is all that it calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from charrnn.config import CELLS
from charrnn.kernels.products import has_fast_bfloat16
from tests.conftest import make_text

PROGRAM = """if True:
    import importlib, pkgutil, sys
    from charrnn import cli, kernels, precompilation

    def in_use():
        names = [f"charrnn.kernels.{part.name}" for part in pkgutil.iter_modules(kernels.__path__)]
        found = [kernel for name in names for kernel in vars(importlib.import_module(name)).values()]
        found = [kernel for kernel in found if hasattr(kernel, "signatures")]
        return {f"{kernel.__name__}{kind}" for kernel in found for kind in kernel.signatures}

    def charrnn(*arguments):
        sys.argv = ["charrnn", *arguments]
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, arguments
"""


def new_kernels(folder: Path, prepare: str, *commands: list[str]) -> str:
    """The kernels, each with its arguments' types, that commands took out of the cache after something was prepared."""
    lines = [
        f"precompilation.{prepare}",
        "before = in_use()",
        "assert before",
        *(f"charrnn(*{command!r})" for command in commands),
        "open('new', 'w').writelines(sorted(in_use() - before))",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "XDG_CACHE_HOME": str(folder)}
    code = PROGRAM + "".join(f"    {line}\n" for line in lines)
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    return (folder / "new").read_text()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_is_left_to_compile(tmp_path, precision):
    """Of all cells, with everything that may be switched on, for training; then for a score and for a sample."""
    if precision == "bfloat16" and not has_fast_bfloat16():
        pytest.skip("this processor would emulate it")
    (tmp_path / "text.txt").write_text(make_text(60_000), encoding="utf-8")
    sizes = ["--hidden-size", "20", "--num-layers", "2", "--batch-size", "8", "--seq-len", "16", "--steps", "12"]
    train = ["train", "text.txt", "--precision", precision, *sizes, "--dropout", "0.2", "--weight-drop", "0.2"]
    runs = [[*train, "--cell", cell, "--run", cell] for cell in CELLS]
    assert new_kernels(tmp_path, f"for_training({precision!r}, 'cpu')", *runs) == ""
    assert new_kernels(tmp_path, "for_scoring('cpu')", ["eval", "-m", "gru"], ["eval", "-m", "lstm", "text.txt"]) == ""
    assert new_kernels(tmp_path, "for_training('float32', 'cpu')", ["eval", "-m", "rnn", "--adapt"]) == ""
    filters = ["--top-k", "5", "--top-p", "0.9", "--min-p", "0.01", "--no-repeat-ngram", "4"]
    sample = ["sample", "-m", "gru", "--length", "50", "--precision", precision, "-q", *filters]
    assert new_kernels(tmp_path, f"for_sampling({precision!r}, 'cpu')", sample) == ""
