"""Failures: what a user can do wrong ends in one line on stderr and its exit code; closed and full outputs."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from charrnn import __version__, files, precompile
from charrnn.cli import main as cli
from charrnn.errors import Interrupted, PeerError, ResourceError
from charrnn.files import CACHE_VARIABLE, CHECKPOINTS_VARIABLE
from charrnn.model.container import write_tensors
from tests.cli.conftest import (
    POEMS,
    TINY,
    Home,
    assert_refused,
    call,
    command_line,
    environment,
    in_shell,
    posix,
    start,
    tree,
)

INSTALLATION = Path(__file__).parent.parent.parent / "docs/install.md"

# folders


def test_a_variable_names_the_folder_of_all_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command uses it, and the command that `train` suggests works without it too."""
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, "elsewhere")
    trained = call("train", "poems.txt", "--steps", "2", *TINY)
    assert (trained.code, trained.text) == (0, "elsewhere/poems/model.safetensors\n")
    assert "charrnn sample -m elsewhere/poems --temp" in trained.err
    assert call("info").text.splitlines()[1].startswith("poems\t")
    sampled = call("sample", "-m", "poems", "-n", "20", "--seed", "1")
    assert len(sampled.text) == 21
    assert call("export", "--quiet").text == "poems.html\n"
    assert not Path("checkpoints").exists()
    monkeypatch.delenv(CHECKPOINTS_VARIABLE)
    assert call("sample", "-m", "elsewhere/poems", "-n", "20", "--seed", "1") == sampled


def test_the_option_wins_over_the_variable(copied_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error names both and the folder."""
    Path("checkpoints").rename("runs")
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, "nowhere")
    monkeypatch.setenv(CACHE_VARIABLE, "nowhere-either")
    parts = ("nowhere", "--checkpoints", CHECKPOINTS_VARIABLE)
    assert_refused(call("sample"), 4, *parts)
    assert_refused(call("info", "poems"), 4, *parts)
    outcome = call("--checkpoints", "runs", "--cache-dir", "cache", "info", "poems")
    assert dict(line.split("\t") for line in outcome.text.splitlines())["model"] == "runs/poems/model.safetensors"
    assert call("--cache-dir", "cache", "info", "--cache", "--json").objects[0]["folder"] == str(copied_home / "cache")


def test_one_variable_moves_all_caches(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and kernels, whatever numba's own variable says; an empty variable is none."""
    default = files.user_cache()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(desk / "numba"))
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert (files.user_cache(), files.kernel_cache()) == (default, desk / "numba")
    monkeypatch.setenv(CACHE_VARIABLE, "own")
    assert (files.user_cache(), files.kernel_cache()) == (desk / "own", desk / "own" / "kernels")
    assert call("train", "poems.txt", "--dry-run").code == 0
    assert len([*Path("own").glob("*.ids")]) == 1


def test_help_names_the_variables() -> None:
    """They are of all commands, so `charrnn --help` has them."""
    shown = " ".join(call("--help").text.split())
    assert f"--checkpoints FOLDER Folder of all runs. [env: {CHECKPOINTS_VARIABLE}]" in shown
    assert f"[env: {CACHE_VARIABLE}]" in shown


@pytest.mark.parametrize("option", ["--checkpoints", "--cache-dir"])
def test_a_folder_is_named_before_the_command(option: str) -> None:
    """After it the message says so; an empty one is refused."""
    assert_refused(call("info", option, "x"), 2, f"charrnn {option} … info")
    assert_refused(call(option, "", "info"), 2, option, "empty")


def test_runs_elsewhere_are_not_read_as_texts(copied_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of texts may contain the folder of all runs, whose logs are no texts."""
    Path("checkpoints").rename("runs")
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, "runs")
    assert call("train", ".", "--dry-run", "--json").objects[0]["texts"] == [str(copied_home / "poems.txt")]


# a bug report


def test_the_machine_is_described_for_a_bug_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, what was chosen for this processor, and the folders."""
    monkeypatch.setenv(CACHE_VARIABLE, "elsewhere")
    outcome = call("--version", "--verbose")
    first, *rows = outcome.text.splitlines()
    facts = dict(row.split("\t") for row in rows)
    assert (outcome.code, outcome.err, first) == (0, "", f"charrnn {__version__}")
    assert torch.__version__.startswith(facts["torch"])  # which may lack the build, such as +cu130
    assert facts["numpy"] == np.__version__
    assert facts["precision"] in ("float32", "bfloat16")
    assert facts["threads"] == "1"  # all that the tests use
    assert facts["cache"] == os.path.abspath("elsewhere")
    assert facts["kernels"] == os.path.abspath("elsewhere/kernels")
    assert_refused(call("--verbose", "info"), 2, "--version")


# without PyTorch


@pytest.mark.parametrize("args", [("train", "poems.txt"), ("eval", "--adapt"), ("eval", "--device", "cuda")])
def test_without_pytorch_one_line_says_so(copied_home: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str]) -> None:
    """And how to install it, as the documentation does but without a checkout. Nothing is compiled or written."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("charrnn.precompile._load", lambda *queues: pytest.fail(f"{queues} in child processes"))
    before = tree(Path("checkpoints"))
    (advice,) = re.findall(r"^pip install -c constraints\.txt (torch .*)$", INSTALLATION.read_text(), re.M)
    assert_refused(call(*args), 6, "PyTorch", f"pip install {advice};", "otherwise: pip install torch")
    assert tree(Path("checkpoints")) == before


# texts

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
def test_an_unusable_text_is_refused(copied_home: Path, command: str, name: str) -> None:
    """The line names the file, what is wrong with it and, if one helps, the option."""
    data, parts = TEXTS[name]
    Path("folder").mkdir()
    if data is not None:
        Path(name).write_bytes(data)
    outcome = call(command, name, *(["-m", "poems"] if command == "eval" else []))
    assert_refused(outcome, 3, *parts)
    assert "\x1b" not in outcome.err
    assert {path.name for path in Path("checkpoints").iterdir()} == {"poems"}


def test_a_text_that_is_too_short_is_refused(desk: Path) -> None:
    """The line says how much would be enough."""
    Path("short.txt").write_text("a rose\n", encoding="utf-8")
    assert_refused(call("train", "short.txt"), 3, "short.txt", "too few characters", "7", "at least 20")


@pytest.mark.parametrize("encoding", ["utf-9", "", "base64", "rot13", "x\0y"])
def test_an_unknown_encoding_is_refused(desk: Path, encoding: str) -> None:
    """It is a usage error that names the option."""
    assert_refused(call("train", "poems.txt", "--encoding", encoding), 2, "--encoding")


def test_a_codec_that_fails_without_a_position_is_refused(desk: Path) -> None:
    """The line still names the file."""
    assert_refused(call("train", "poems.txt", "--encoding", "utf-16"), 3, "poems.txt", "--encoding")


def test_a_closed_stdin_is_refused(at_home: Home) -> None:
    """`-` without a stdin is unusable input, for every command."""
    assert_refused(call("train", "-", stdin=None), 3, "stdin")
    assert_refused(call("sample", "-f", "-", stdin=None), 3, "stdin")


@posix
def test_a_stdin_that_the_shell_closed_is_refused(home: Home) -> None:
    """A process has no stdin then."""
    assert_refused(in_shell('"${charrnn[@]}" <&-', "sample", "-f", "-", cwd=home.path), 3, "stdin")


# models

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
def test_a_file_that_is_no_model_is_refused(home: Home, desk: Path, command: str, name: str) -> None:
    """Missing, damaged and foreign files end with 4, in one line that names the file."""
    data = MODELS[name]((home.path / "checkpoints/poems/model.safetensors").read_bytes())
    if data is not None:
        Path(name).write_bytes(data)
    assert_refused(call(command, *(["-m"] if command != "info" else []), name), 4, name)


def test_a_folder_a_device_and_a_state_are_no_models(home: Home, desk: Path) -> None:
    """What exists, but can't be a model, is named as such."""
    Path("folder").mkdir()
    state = home.path / "checkpoints/poems/state-20.safetensors"
    for which, part in [("folder", "folder"), (str(state), "state"), (os.devnull, os.devnull)]:
        assert_refused(call("sample", "-m", which), 4, part)


def test_a_newer_format_is_refused(desk: Path) -> None:
    """A file of a later version is not called damaged."""
    write_tensors(desk / "m", {"a": np.zeros(1, np.float32)}, kind="model", meta={"format": 2})
    assert_refused(call("sample", "-m", "m"), 4, "format 2", "newer")


# usage


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("bogus",), ("bogus", "the commands are")),
        (("train",), ("TEXT", "charrnn train --help")),
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
def test_a_usage_error_is_one_line(desk: Path, args: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """What doesn't parse or makes no sense ends with 2 and is named."""
    outcome = call(*args)
    assert_refused(outcome, 2, *parts)
    assert "\x1b" not in outcome.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_is_refused(desk: Path) -> None:
    """With the exit code for resources, and what to use instead."""
    assert_refused(call("train", "poems.txt", "--device", "cuda", "--dry-run"), 6, "--device cuda", "--device cpu")


def test_only_train_runs_in_several_processes(at_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun the other commands are refused."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert_refused(call("sample"), 2, "rank 1: ", "train", "charrnn sample alone")


# errors of the system, and of other processes


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ResourceError("no such device"), 6, "charrnn: no such device\n"),
        (PeerError(3), 3, ""),
        (
            OSError(28, "No space left on device", "checkpoints/a"),
            1,
            "charrnn: checkpoints/a: No space left on device\n",
        ),
        (OSError("odd"), 1, "charrnn: odd\n"),
        (MemoryError(), 6, "charrnn: out of memory; train with a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 6, "charrnn: out of memory; "),
        (RuntimeError("can't start new thread"), 6, "charrnn: out of memory; "),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 6, "charrnn: out of memory; "),
        (OSError(12, "Cannot allocate memory"), 6, "charrnn: out of memory; "),
    ],
    ids=repr,
)
def test_an_error_becomes_a_line_and_an_exit_code(
    at_home: Home, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    """Also those that no other place can say better."""
    from charrnn.runs import models

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(models, "find_model", fail)
    outcome = call("info", "poems")
    assert (outcome.code, outcome.out) == (code, b"")
    assert outcome.err.startswith(line)
    assert outcome.err.count("\n") == (1 if line else 0)


def test_a_bug_is_not_hidden(at_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that no user can cause has its traceback."""
    from charrnn.runs import models

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(models, "find_model", fail)
    monkeypatch.setattr(sys, "argv", ["charrnn", "info", "poems"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


def test_an_interrupted_run_ends_by_its_signal(at_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system can; the exit code is the same."""

    def fail(**_: object) -> None:
        raise Interrupted("stopped", signal_number=15)

    ended: list[int] = []
    monkeypatch.setattr(cli, "build_app", lambda: fail)
    monkeypatch.setattr(cli, "end_by", ended.append)
    outcome = call("info")
    assert (outcome.code, outcome.err, ended) == (143, "charrnn: stopped\n", [15])


@posix
def test_end_by_a_signal(tmp_path: Path) -> None:
    """The parent sees the signal."""
    script = "import charrnn.cli.main as m, signal; m.end_by(signal.SIGTERM); print('still here')"
    pid = os.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", script])
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM


# outputs that are closed or full


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "args",
    [("sample", "-n", "9", "--seed", "1"), ("sample", "--json"), ("info",), ("--version",), ("sample", "--help")],
    ids=" ".join,
)
def test_a_full_disk_is_one_line(at_home: Home, args: tuple[str, ...]) -> None:
    """A result that can't be written is an error with exit code 1."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        assert_refused(call(*args, stdout=full), 1, "No space left")


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_interpreter_does_not_write_again_when_it_exits(desk: Path) -> None:
    """A process whose stdout is full or closed writes one line."""
    script = '"${charrnn[@]}" > /dev/full; echo $? >&2; "${charrnn[@]}" >&-; echo $? >&2'
    full, code, closed, other_code = in_shell(script, "--version", cwd=desk).err.splitlines()
    assert full.startswith("charrnn: can't write to stdout: No space left")
    assert closed == "charrnn: can't write to stdout: it is closed"
    assert (code, other_code) == ("1", "1")


@posix
def test_a_closed_stderr_leaves_stdout_clean(home: Home) -> None:
    """What was meant for stderr must not end up in the result."""
    outcome = in_shell('"${charrnn[@]}" 2>&-', "sample", "-n", "9", "-0", cwd=home.path)
    assert (outcome.code, len(outcome.out)) == (0, 10)


@posix
def test_a_reader_that_has_enough_of_the_help_ends_it_quietly(desk: Path) -> None:
    """`| head -1` is no error."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stdout:
        assert call("train", "--help", stdout=stdout) == (141, b"", "")


# names from outside


def test_markup_in_a_name_is_only_a_name(desk: Path) -> None:
    """Brackets that rich would read as markup go through every command."""
    path = Path("poems[/]x.txt")
    path.parent.mkdir()
    path.write_text(POEMS, encoding="utf-8")
    outcome = call("train", str(path), "--steps", "2", *TINY)
    assert (outcome.code, outcome.out) == (0, b"checkpoints/]x/model.safetensors\n")
    assert "]x.txt: 4,000 characters" in outcome.err
    assert call("eval", str(path), "--json").objects[0]["text"] == str(path)
    assert call("info", "]x").text.count("]x.txt") == 1


def test_an_escape_in_a_name_is_shown(desk: Path) -> None:
    """What is written for people has the escape spelled out; JSON has it in JSON's own way."""
    name = "a\x9b31mb.txt"
    Path(name).write_text(POEMS, encoding="utf-8")
    outcome = call("train", name, "--steps", "2", *TINY)
    assert outcome.code == 0
    assert r"a\x9b31mb.txt: 4,000 characters" in outcome.err
    shown = outcome.err.encode() + call("info").out + call("info", "a\x9b31mb").out + call("eval", name).out
    assert "\x9b" not in shown.decode()
    facts = call("eval", name, "--json")
    assert "\x9b" not in facts.text
    assert facts.objects[0]["text"] == name


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
def test_a_name_that_is_not_utf8_comes_out_unchanged(desk: Path) -> None:
    """The path on stdout has the bytes of the file system."""
    name = os.fsdecode(b"po\xffms.txt")
    Path(name).write_text(POEMS, encoding="utf-8")
    outcome = call("train", name, "--steps", "2", *TINY)
    assert (outcome.code, outcome.out) == (0, b"checkpoints/po\xffms/model.safetensors\n")
    assert Path(os.fsdecode(outcome.out.rstrip())).is_file()
    assert call("info", os.fsdecode(b"po\xffms")).code == 0


def test_the_version(at_home: Home) -> None:
    """Name and version, for scripts."""
    assert call("--version") == (0, f"charrnn {__version__}\n".encode(), "")


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that can't be compiled ahead are reported without a place in our source."""
    monkeypatch.setattr(warnings, "showwarning", None)
    monkeypatch.setattr(precompile, "compile_in_children", lambda *_: ["no space left"])
    with pytest.warns(RuntimeWarning, match="no space left"):
        precompile.for_sampling("float32")
    assert call("--version").code == 0
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    warnings.showwarning(RuntimeWarning("two\nlines"), RuntimeWarning, "file.py", 3)
    assert stderr.getvalue() == "warning: two\\nlines\n"


# before a command begins

INTERRUPT_AT_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from charrnn.__main__ import main
sys.argv = ["charrnn", *{args!r}]
main()
"""


@posix
@pytest.mark.parametrize("module", ["typer", "numpy", "numba", "llvmlite", "charrnn.kernels.generation"])
def test_ctrl_c_while_libraries_load_ends_the_process_by_the_signal(home: Home, module: str) -> None:
    """There is no traceback, and a shell's loop ends."""
    program = INTERRUPT_AT_IMPORT.format(module=module, args=("sample", "-n", "10"))
    process = start(cwd=home.path, program=("-c", program))
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == -signal.SIGINT


@posix
def test_ctrl_c_stays_ignored_where_a_shell_ignores_it(home: Home) -> None:
    """As in a script's background job."""
    program = INTERRUPT_AT_IMPORT.format(module="numpy", args=("info",))
    ignoring = f"trap '' INT; exec {shlex.quote(sys.executable)} -c {shlex.quote(program)}"
    done = subprocess.run(["bash", "-c", ignoring], cwd=home.path, env=environment(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@posix
@pytest.mark.parametrize("command", [["info"], ["sample"], ["eval"], ["train", "poems.txt"]], ids=str)
def test_a_working_directory_that_was_deleted_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Before libraries fail on it in their own ways."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        assert_refused(call(*command), 1, "the working directory", "No such file or directory")
        assert call("--version").code == 0
    finally:
        os.chdir(tmp_path)


def test_numbas_switches_do_not_reach_the_kernels(at_home: Home) -> None:
    """Without its compiler they would not run, and it refuses zero threads when it is imported."""
    args = ("sample", "-n", "5", "--seed", "1", "-q")
    switches = environment(NUMBA_DISABLE_JIT="1", NUMBA_NUM_THREADS="0")
    done = subprocess.run(command_line(*args), env=switches, capture_output=True, check=True)
    assert done.stdout == call(*args).out != b""


@posix
@pytest.mark.parametrize(
    ("megabytes", "command", "codes"),
    [(600, ("train", "poems.txt"), [6]), (300, ("sample", "-n", "5", "-q"), [0, 6])],
    ids=["train", "sample"],
)
def test_too_little_address_space_is_one_line(
    home: Home, megabytes: int, command: tuple[str, ...], codes: list[int]
) -> None:
    """Wherever it is noticed; how much numba needs differs between machines."""
    limited = f"ulimit -v {megabytes * 1000}; exec {shlex.join(command_line(*command))}"
    done = subprocess.run(["bash", "-c", limited], cwd=home.path, env=environment(), capture_output=True, check=False)
    assert done.returncode in codes
    assert done.returncode == 0 or done.stderr.startswith(b"charrnn: out of memory")
    assert done.stderr.count(b"\n") == (1 if done.returncode else 0)
