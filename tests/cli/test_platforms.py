"""Other systems, as far as this one can show: calls that they lack, and Windows' rules about open files."""

import errno
import importlib
import io
import os
import pkgutil
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import charrnn
from charrnn.data.cache import Cache
from charrnn.runs.folder import Run
from tests.cli.conftest import TINY, call, make_model, open_terminal, run

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
NOT_ON_MACOS = ("sched_getaffinity", "sched_setaffinity", "O_TMPFILE")
NOT_ON_WINDOWS = (*NOT_ON_MACOS, "fork", "getuid", "geteuid", "getppid", "O_NOFOLLOW", "mkfifo", "fchmod", "statvfs")
SIGNALS_NOT_ON_WINDOWS = ("SIGHUP", "SIGTSTP", "SIGPIPE", "SIGUSR1", "SIGUSR2", "SIGKILL")
MODULES_NOT_ON_WINDOWS = ("fcntl", "termios", "resource", "pwd", "pty")


def without(module: ModuleType, *names: str, **changes: object) -> ModuleType:
    """Return a copy of a module that lacks some names and has others changed."""
    copy = ModuleType(module.__name__)
    vars(copy).update({name: value for name, value in vars(module).items() if name not in names} | changes)
    return copy


def use_modules(patch: pytest.MonkeyPatch, **modules: ModuleType) -> None:
    """Give all modules of charrnn, and only those, other modules in place of the library's."""
    for found in pkgutil.walk_packages(charrnn.__path__, "charrnn."):
        if found.name != "charrnn.__main__":
            module = importlib.import_module(found.name)
            for name, other in modules.items():
                if getattr(module, name, None) is sys.modules[name]:
                    patch.setattr(module, name, other)


def open_here(path: os.PathLike[str] | str) -> bool:
    """Return whether this process has a file open or mapped."""
    real = os.path.realpath(path)
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    opened = [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == real]
    return bool(opened) or any(line.endswith(f" {real}") for line in mapped)


def refuse_if_open(*paths: os.PathLike[str] | str) -> None:
    """Raise the error with which Windows answers to the removal or renaming of an open file."""
    for path in paths:
        if open_here(path):
            raise PermissionError(errno.EACCES, "used by another process", str(path))


def simulate_windows(patch: pytest.MonkeyPatch) -> None:
    """Take from charrnn what Windows lacks, and refuse what Windows refuses."""
    replace, unlink, open_, fsync = os.replace, os.unlink, os.open, os.fsync

    def replace_closed(source: str, target: str) -> None:
        refuse_if_open(source, target)
        replace(source, target)

    def unlink_closed(path: str) -> None:
        refuse_if_open(path)
        unlink(path)

    def open_file(path: str, *args: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_(path, *args)

    def sync_written(handle: int) -> None:
        access = Path(f"/proc/self/fdinfo/{handle}").read_text(encoding="utf-8").split("flags:")[1].split()[0]
        if int(access, 8) & (os.O_WRONLY | os.O_RDWR) == 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fsync(handle)

    windows: dict[str, Any] = {"name": "nt", "replace": replace_closed, "open": open_file, "fsync": sync_written}
    use_modules(
        patch,
        os=without(os, *NOT_ON_WINDOWS, **windows),
        signal=without(signal, *SIGNALS_NOT_ON_WINDOWS),
    )
    patch.setattr(os, "unlink", unlink_closed)  # Path.unlink calls it
    for name in MODULES_NOT_ON_WINDOWS:
        patch.setitem(sys.modules, name, None)


def simulate_macos(patch: pytest.MonkeyPatch) -> None:
    """Take from charrnn what macOS lacks."""
    use_modules(patch, os=without(os, *NOT_ON_MACOS))


@linux
@pytest.mark.parametrize("simulate", [simulate_windows, simulate_macos])
def test_every_command_works_on_other_systems(desk: Path, monkeypatch: pytest.MonkeyPatch, simulate: Any) -> None:
    """A run starts, is extended, sampled, scored and exported; the text is cached, and nothing else is left behind."""
    text = desk / "lines.txt"
    text.write_bytes((desk / "poems.txt").read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(desk / "cache"))
    simulate(monkeypatch)
    for steps in ("10", "20"):
        outcome = call("train", "lines.txt", "--documents", "lines", "--steps", steps, "--save-every", "0", *TINY)
        assert (outcome.code, outcome.text) == (0, f"{Path('checkpoints', 'lines', 'model.safetensors')}\n")
        assert "warning" not in outcome.err
    for args in (
        ("sample", "-N", "3", "--unique", "--new"),
        ("sample", "--prompts", "-", "--json"),
        ("eval", "--html", "report.html"),
        ("eval", "lines.txt", "--per-line"),
        ("export", "-o", "page.html"),
        ("info", "--cache"),
    ):
        outcome = call(*args, stdin=(desk / "lines.txt").read_bytes()[:200])
        assert (outcome.code, b"\r" in outcome.out) == (0, False), outcome.err
    assert {path.suffix for path in (desk / "cache" / "charrnn").glob("*.*")} - {".key"} == {".ids"}
    names = sorted(path.name for path in (desk / "checkpoints" / "lines").iterdir() if ".lock" not in path.name)
    assert names == ["log.jsonl", "model.safetensors", names[-2], "state-20.safetensors"]


@pytest.mark.parametrize("name", [*NOT_ON_MACOS, "fork", "O_NOFOLLOW", "statvfs", "SIGHUP", "SIGTSTP", "SIGUSR1"])
def test_no_single_call_of_posix_is_needed(desk: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each may be missing where the others exist."""
    use_modules(monkeypatch, os=without(os, name), signal=without(signal, name))
    assert call("train", "poems.txt", "--steps", "1", *TINY).code == 0
    assert call("sample", "-N", "64", "-n", "5", "--threads", "2").code == 0
    assert call("eval", "poems.txt", "--no-yardsticks").code == 0


@linux
def test_a_command_that_fails_leaves_no_folder_on_windows(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is released before its file is removed."""
    simulate_windows(monkeypatch)
    with pytest.raises(ZeroDivisionError), Run("new").locked():
        raise ZeroDivisionError
    assert not (desk / "checkpoints").exists()


@linux
def test_two_processes_that_cache_the_same_text_share_it_on_windows(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows replaces no file that another process reads; what it would be replaced with is the same."""
    simulate_windows(monkeypatch)
    cache, facts = Cache(desk), {"num_chars": 3, "dtype": "uint8"}
    first = cache.add("0" * 64, facts, [np.arange(3, dtype=np.uint8)])
    second = cache.add("0" * 64, facts, [np.arange(3, dtype=np.uint8)])
    assert first.ids.tolist() == second.ids.tolist() == [0, 1, 2]
    assert sorted(path.suffix for path in desk.glob("*.*")) == [".ids", ".txt"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_terminal_of_any_encoding_shows_all(
    copied_home: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """What an encoding lacks is escaped there; off a terminal everything is UTF-8."""
    make_model(copied_home / "m.safetensors", "é漢", likeliest="漢")
    (copied_home / "odd.txt").write_text("漢é\n" * 9, encoding="utf-8")
    shown = {}
    for command in ("sample -m m.safetensors -n 3 --seed 1 --quiet", "eval odd.txt -m m.safetensors --worst 1"):
        with monkeypatch.context() as patch:
            screen = open_terminal(patch)
            screen.reconfigure(encoding=encoding)
            assert run(*command.split()) == 0
            shown[command.split()[0]] = screen.reached.getvalue().decode(encoding)
    sample, table = shown.values()
    assert sample == ("漢漢漢\n" if encoding == "utf-8" else "\\u6f22" * 3 + "\n")
    assert ("漢" if encoding == "utf-8" else "\\u6f22") in table
    piped = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert call("sample", "-m", "m.safetensors", "-n", "3", "--seed", "1", stdout=piped).code == 0
    assert piped.buffer.getvalue() == "漢漢漢\n".encode()


def test_a_deep_folder_is_no_obstacle(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of more than 260 characters, and names as long as a system takes."""
    deep = desk.joinpath(*["d" * 100] * 4)
    deep.mkdir(parents=True)
    (desk / "poems.txt").rename(deep / "poems.txt")
    monkeypatch.chdir(deep)
    name = "n" * 250
    assert call("train", "poems.txt", "--run", name, "--steps", "1", *TINY).code == 0
    assert call("sample", "-m", name, "-n", "5").code == 0
    assert call("eval", "-m", name, "--html", f"{name}.html").code == 0
