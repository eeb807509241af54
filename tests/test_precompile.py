"""Kernels that are compiled before a command starts are all that it calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from charrnn import precompile
from charrnn.config import CELLS
from charrnn.numerics.processor import has_fast_bfloat16
from tests.conftest import make_text

PROGRAM = """if True:
    import importlib, pkgutil, sys
    from charrnn import kernels, numerics, precompile
    from charrnn.cli.main import main

    def in_use():
        rooms = (numerics, kernels)
        names = [f"{room.__name__}.{part.name}" for room in rooms for part in pkgutil.iter_modules(room.__path__)]
        found = [kernel for name in names for kernel in vars(importlib.import_module(name)).values()]
        found = [kernel for kernel in found if hasattr(kernel, "signatures")]
        return {f"{kernel.__name__}{kind}" for kernel in found for kind in kernel.signatures}

    def charrnn(*arguments):
        sys.argv = ["charrnn", *arguments]
        try:
            main()
        except SystemExit as end:
            assert not end.code, arguments
"""


def new_kernels(folder: Path, prepare: str, *commands: list[str]) -> str:
    """Return the kernels, with their arguments' types, that commands use beyond those that were prepared."""
    lines = [
        f"precompile.{prepare}",
        "before = in_use()",
        "assert before",
        *(f"charrnn(*{command!r})" for command in commands),
        "open('new', 'w').writelines(sorted(in_use() - before))",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "XDG_CACHE_HOME": str(folder)}
    code = PROGRAM + "".join(f"    {line}\n" for line in lines)
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    return (folder / "new").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_kernel_is_left_to_compile(tmp_path, precision):
    """This holds for all cells and every option that uses other kernels, in training, scoring and sampling."""
    if precision == "bfloat16" and not has_fast_bfloat16():
        pytest.skip("this processor would emulate it")
    (tmp_path / "text.txt").write_text(make_text(60_000), encoding="utf-8")
    sizes = ["--hidden-size", "20", "--num-layers", "2", "--batch-size", "8", "--seq-len", "16", "--steps", "12"]
    train = ["train", "text.txt", "--precision", precision, *sizes, "--dropout", "0.2", "--weight-drop", "0.2"]
    runs = [[*train, "--cell", cell, "--run", cell] for cell in CELLS]
    assert new_kernels(tmp_path, f"for_training({precision!r})", *runs) == ""
    assert new_kernels(tmp_path, "for_scoring()", ["eval", "-m", "gru"], ["eval", "-m", "lstm", "text.txt"]) == ""
    assert new_kernels(tmp_path, "for_adapting()", ["eval", "-m", "rnn", "--adapt"]) == ""
    assert new_kernels(tmp_path, "for_exporting()", ["export", "gru"]) == ""
    filters = ["--top-k", "5", "--top-p", "0.9", "--min-p", "0.01", "--no-repeat-ngram", "4"]
    sample = ["sample", "-m", "gru", "--length", "50", "--precision", precision, "-q", *filters]
    assert new_kernels(tmp_path, f"for_sampling({precision!r})", sample) == ""


@pytest.mark.parametrize(
    ("prepare", "queues"),
    [
        (
            lambda: precompile.for_training("float32"),
            [["train_toy('float32')"], ["sample_toy('float32')", "score_toy()"]],
        ),
        (precompile.for_adapting, [["adapt_toy()"], ["score_toy()", "sample_toy('float32')"]]),
        (precompile.for_inspecting, [["inspect_toy()"], ["score_toy()", "sample_toy('float32')"]]),
        (precompile.for_scoring, [["score_toy()"], ["sample_toy('float32')"]]),
        (precompile.for_exporting, [["measure_toy()"], ["sample_toy('float32')"]]),
        (lambda: precompile.for_sampling("float32"), [["sample_toy('float32')"]]),
    ],
    ids=["training", "adapting", "inspecting", "scoring", "exporting", "sampling"],
)
def test_children_compile_what_this_process_then_loads(monkeypatch, prepare, queues):
    """Each call that children make is made here too; a child that fails causes a warning and nothing else."""
    asked, made = [], []

    def compile_in_children(_kernel, *lines):
        asked.extend([[line.partition("p.")[2] for line in queue] for queue in lines])
        return ["no memory"]

    def make_toy(name):
        def toy(*args):
            made.append(f"{name}({', '.join(map(repr, args))})")

        toy.__name__ = name
        return toy

    monkeypatch.setattr(precompile, "compile_in_children", compile_in_children)
    for name in ("train_toy", "adapt_toy", "inspect_toy", "score_toy", "measure_toy", "sample_toy"):
        monkeypatch.setattr(precompile, name, make_toy(name))
    with pytest.warns(RuntimeWarning, match=r"not be compiled ahead \(no memory\)"):
        prepare()
    assert asked == queues
    assert sorted(made) == sorted(call for queue in queues for call in queue)


def test_the_toys_run():
    """They call the kernels of training, dynamic evaluation, scoring, measuring and sampling."""
    precompile.train_toy("float32")
    precompile.adapt_toy()
    precompile.measure_toy()
    precompile.score_toy()
    precompile.sample_toy("float32")
