"""How kernels are compiled, cached and compiled ahead in child processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from charrnn.config import CELLS, ModelConfig
from charrnn.kernels import cells
from charrnn.model.file import load_model, save_model
from charrnn.numerics import compilation
from charrnn.numerics.compilation import child_command, compile_in_children
from tests.conftest import make_model_file, make_text

ROOT = Path(__file__).parents[2]


def environment(cache):
    """Variables for a process that imports this package and caches kernels in a folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(cache)}


def test_kernels_work_if_nothing_can_be_cached(monkeypatch):
    """Without a folder a kernel is compiled each time, which is slow but correct."""
    monkeypatch.setattr(compilation, "cache_folder", lambda: None)
    step = compilation.compiled(cells.rnn_step.py_func)
    h = np.empty(1, np.float32)
    step(np.full(1, 0.5, np.float32), np.full(1, -0.5, np.float32), h)
    assert h[0] == 0
    assert step.stats.cache_path is None


def test_the_cache_is_the_users_alone(tmp_path, monkeypatch):
    """Its folders are made so, whatever the umask; in a folder that others can write to lies code of others."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find, before = compilation.cache_folder.__wrapped__, os.umask(0)
    try:
        folder = find()
    finally:
        os.umask(before)
    assert folder.parent == tmp_path / "charrnn" / "kernels"
    if os.name != "posix":
        return
    for part in (folder, folder.parent, folder.parent.parent):
        assert part.stat().st_mode & 0o777 == 0o700
        part.chmod(0o770)
        with pytest.warns(RuntimeWarning, match=f"^{part}: other users can write to it"):
            assert find() is None
        part.chmod(0o700)
    assert find() == folder
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert find() is None


def test_kernels_of_old_versions_are_deleted(tmp_path, monkeypatch):
    """But for the latest few; what isn't ours stays."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for age in range(6):
        (tmp_path / f"charrnn-{age}").mkdir()
        os.utime(tmp_path / f"charrnn-{age}", (1e9 - age, 1e9 - age))
    (tmp_path / "other").mkdir()
    folder = compilation.cache_folder.__wrapped__()
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "charrnn-0", "charrnn-1", "charrnn-2", "other"}


def kernel_with_cache(folder, target="x86"):
    """Make what compile_in_children needs of a kernel."""
    return SimpleNamespace(
        stats=SimpleNamespace(cache_path=None if folder is None else str(folder)),
        targetctx=SimpleNamespace(codegen=lambda: SimpleNamespace(magic_tuple=lambda: (target,))),
    )


def test_calls_run_once_in_child_processes(tmp_path):
    """One process per queue runs them; another compiler or processor needs them again."""
    folder, report = tmp_path / "cache", tmp_path / "report"
    folder.mkdir()

    def run(*queues, cache=folder, **options):
        """Return the number of the process that ran each call."""
        report.write_text("")
        line = f"import os; print({{}}, os.getpid(), file=open({str(report)!r}, 'a'))"
        calls = [[line.format(name) for name in queue] for queue in queues]
        assert compile_in_children(kernel_with_cache(cache, **options), *calls) == []
        ran = dict(line.split() for line in report.read_text().splitlines())
        assert str(os.getpid()) not in ran.values()
        return ran

    assert run([]) == {}
    first = run(["1", "2"], ["3"])
    assert first.keys() == {"1", "2", "3"}
    assert first["1"] == first["2"] != first["3"]
    assert run(["2"], ["1", "4"]).keys() == {"4"}
    assert run(["1"], target="arm").keys() == {"1"}
    assert run(["5"], cache=None) == {}


def test_a_child_that_fails_is_reported_and_tried_again(tmp_path, monkeypatch):
    """The reason is the last line of its stderr, its exit status, or why it could not be started."""
    kernel = kernel_with_cache(tmp_path)
    for _ in range(2):
        found = compile_in_children(kernel, ["1 / 0"], ["pass"], ["import os; os._exit(3)"])
        assert found == ["ZeroDivisionError: division by zero", "exit status 3"]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    assert compile_in_children(kernel, ["pass"]) == []  # it succeeded before
    (found,) = compile_in_children(kernel, ["1"])
    assert "No such file" in found


def test_children_import_from_the_same_places_as_this_process(tmp_path, monkeypatch):
    """The working directory is not one of them, unless it is one of this process's places."""
    (tmp_path / "random.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    command = child_command(["import random", "print(sys.path)"])
    assert command[:3] == [sys.executable, "-P", "-c"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(sys.path)


def test_nothing_is_compiled_ahead_for_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """As one that an administrator filled: what is there is loaded, the rest is compiled in this process."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert compile_in_children(kernel_with_cache(tmp_path), ["1 / 0"]) == []


@pytest.mark.slow
def test_files_in_the_working_directory_are_not_executed(tmp_path):
    """`charrnn sample`, which compiles kernels here, runs neither random.py nor charrnn/ of the user's folder."""
    save_model(tmp_path / "m.safetensors", make_model_file(ModelConfig("gru", 5, 2, 3, 1)))
    (tmp_path / "charrnn").mkdir()
    for name in ("random.py", "charrnn/__init__.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'marker')!r}, 'a').write({name!r})\nraise SystemExit(9)\n")
    program = "from charrnn.cli.main import main; main()"
    command = [sys.executable, "-P", "-c", program, "sample", "-m", "m.safetensors", "-n", "5", "--seed", "1"]
    cache = tmp_path / "cache"
    done = subprocess.run(command, cwd=tmp_path, env=environment(cache), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be compiled" not in done.stderr
    assert not (tmp_path / "marker").exists()
    assert list(cache.rglob("*.ready"))


def test_an_edit_reaches_the_kernels_of_other_files(tmp_path):
    """A kernel that was cached is compiled again after a change to a kernel that it calls."""
    numerics, kernels = tmp_path / "parts" / "numerics", tmp_path / "parts" / "kernels"
    numerics.mkdir(parents=True)
    kernels.mkdir()
    shutil.copy(compilation.__file__, numerics / "compilation.py")
    (kernels / "caller.py").write_text(
        "from parts.kernels.callee import value\nfrom parts.numerics.compilation import compiled\n"
        "@compiled\ndef call():\n    return value() + 1\n"
    )
    program = "from parts.kernels.caller import call\nprint(call(), sum(call.stats.cache_hits.values()))"
    variables = {**environment(tmp_path / "cache"), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    seen = []
    for number in (1, 2, None):
        if number is not None:
            source = f"from parts.numerics.compilation import compiled\n@compiled\ndef value():\n    return {number}\n"
            (kernels / "callee.py").write_text(source)
        done = subprocess.run(
            [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True
        )
        seen.append([int(word) for word in done.stdout.split()])
    assert seen == [[2, 0], [3, 0], [3, 1]]  # the result, and whether it came from the cache


def test_variants_that_two_processes_compile_at_once_are_both_cached(tmp_path):
    """Neither is written to the other's file, though both processes read the index before they write."""
    program = """if True:
        import sys, time
        import numpy as np
        from charrnn.numerics.products import values_per_word
        file = values_per_word._cache._cache_file
        load = file._load_index
        file._load_index = lambda: (load(), time.sleep(0.5))[0]
        for kind in sys.argv[1:]:
            print(values_per_word(np.zeros(2, kind)), sum(values_per_word.stats.cache_hits.values()))
    """

    def start(*kinds):
        command = [sys.executable, "-c", program, *kinds]
        return subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True)

    both = [start("float32"), start("uint16")]
    assert [process.communicate()[0].split() for process in both] == [["1", "0"], ["2", "0"]]
    assert start("float32", "uint16").communicate()[0].split() == ["1", "1", "2", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_the_first_run_on_a_machine_equals_any_other(cell, tmp_path):
    """The weights are the same to the last bit, though the kernels are compiled during the first run."""
    (tmp_path / "text.txt").write_text(make_text(6000), encoding="utf-8")
    sizes = ["--hidden-size", "20", "--num-layers", "2", "--batch-size", "8", "--seq-len", "16", "--steps", "60"]
    command = [sys.executable, "-m", "charrnn", "train", "text.txt", "-q", "--precision", "float32", "--cell", cell]
    weights = []
    for name in ("first", "second"):
        subprocess.run([*command, *sizes, "--run", name], cwd=tmp_path, env=environment(tmp_path), check=True)
        weights.append(load_model(tmp_path / "checkpoints" / name / "model.safetensors").tensors)
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
