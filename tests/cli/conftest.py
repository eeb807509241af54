"""Runs the command line, mostly in this process, and a tiny trained model that the tests share."""

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from charrnn.cli.main import main
from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.model.file import ModelFile, load_model, save_model
from charrnn.terminal import console
from tests.conftest import make_text

TINY = ("--hidden-size", "16", "--batch-size", "4", "--seq-len", "16", "--threads", "1")
POEMS = make_text(4000)
HELD_OUT = POEMS[3600:]
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Stdout as text."""
        return self.out.decode()

    @property
    def objects(self) -> list[Any]:
        """Stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Call = Callable[..., Outcome]


# in this process


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let commands use one core; restore PyTorch's number of threads afterwards."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        yield
    torch.set_num_threads(threads)


def run(*args: str) -> int:
    """Call `main`, without notices about what takes long, which depend on the machine; return the exit code."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(sys, "argv", ["charrnn", *args])
        patch.setattr(console, "NOTICE_DELAY", threading.TIMEOUT_MAX)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code is None or isinstance(ended.value.code, int)
    return ended.value.code or 0


def call(*args: str, stdin: bytes | None = b"", stdout: io.TextIOWrapper | None = None) -> Outcome:
    """Run the command line in this process, off any terminal.

    stdin: None is a closed one. stdout: where results go, if not to the outcome.
    """
    out, err = io.BytesIO(), io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setattr(sys, "stdout", stdout or io.TextIOWrapper(out, encoding="utf-8", write_through=True))
        patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding="utf-8", write_through=True))
        return Outcome(run(*args), out.getvalue(), err.getvalue().decode())


def call_on_terminal(*args: str, columns: int = 100, **environment: str) -> tuple[int, bytes]:
    """Run the command line in this process with stdout and stderr on a terminal: exit code, and what it was sent."""
    import pty
    import termios

    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (30, columns))
    received = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # Linux ends a terminal's output with EIO
            while data := os.read(screen, 65536):
                received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with pytest.MonkeyPatch.context() as patch, open(terminal, "w", encoding="utf-8") as stream:
            for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
                patch.delenv(name, raising=False)
            for name, value in {"TERM": "xterm", **environment}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            code = run(*args)
    finally:
        reader.join(timeout=60)
        os.close(screen)
    return code, bytes(received)


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal, with the bytes that reached it."""

    def __init__(self) -> None:
        self.reached = io.BytesIO()
        super().__init__(self.reached, encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        """Return True, as a terminal does."""
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stdout and stderr one recorded terminal of 60 columns; called in the test, after pytest's own capture."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    return screen


# in a process


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment with changes, without what changes colours."""
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**plain, "TERM": "xterm", **changes}


def command_line(*args: str, program: tuple[str, ...] = ("-m", "charrnn")) -> list[str]:
    """Return the arguments that start charrnn as a process. program: what the interpreter runs instead."""
    return [sys.executable, *program, *args]


def restore_signals() -> None:
    """Give a child the default signal handlers, whatever the tests have inherited."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def start(
    *args: str, cwd: Path, program: tuple[str, ...] = ("-m", "charrnn"), stdin: int | None = None
) -> subprocess.Popen[bytes]:
    """Start charrnn as a process with pipes for stdout and stderr, and default signal handlers."""
    return subprocess.Popen(
        command_line(*args, program=program),
        cwd=cwd,
        env=environment(),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        preexec_fn=restore_signals if os.name == "posix" else None,
    )


def in_shell(script: str, *args: str, cwd: Path, **changes: str) -> Outcome:
    """Run a bash script in which `"${charrnn[@]}"` is `charrnn args`; pipefail is off, as in a person's shell."""
    words = " ".join(shlex.quote(word) for word in command_line(*args))
    done = subprocess.run(
        ["bash", "+o", "pipefail", "-c", f"charrnn=({words})\n{script}"],
        cwd=cwd,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, without_notices(done.stderr))


def without_notices(err: bytes) -> str:
    """Return what a process wrote on stderr without the notices about what takes long, which depend on the machine."""
    return "".join(line for line in err.decode().splitlines(keepends=True) if not line.endswith(" …\n"))


# what tests look at


def assert_refused(outcome: Outcome, code: int, *parts: str) -> None:
    """One line on stderr that has all parts, nothing on stdout, and the exit code."""
    assert outcome.err.startswith("charrnn: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    assert "Traceback" not in outcome.err
    assert [part for part in parts if part not in outcome.err] == []
    assert (outcome.code, outcome.out) == (code, b"")


def make_model(path: Path, chars: str, *, likeliest: str = "") -> Path:
    """Write a model for which all characters are equally likely, or that always writes the same one."""
    vocab = Vocab("".join(sorted(set(chars))))
    config = ModelConfig(cell="gru", vocab_size=len(vocab), embedding_dim=2, hidden_size=2, num_layers=1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    if likeliest:
        tensors["head.bias"][vocab.chars.index(likeliest)] = 1000.0
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, ModelFile(config, vocab, tensors, {}, {}))
    return path


def read_log(folder: Path) -> list[Any]:
    """Return the events in a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, by path, without locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".lock" not in path.name
    }


def learned(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return a model's weights and scores, which don't depend on the folder of its text."""
    model = load_model(path)
    return {name: tensor.tobytes() for name, tensor in model.tensors.items()}, model.scores


def empty_cache() -> None:
    """Do what `charrnn info --cache` says."""
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"]) / "charrnn")


# folders


class Home(NamedTuple):
    """A folder with a text, a run of 20 steps, and what the command printed when it made it."""

    path: Path
    trained: Outcome


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Home:
    """The one model that all tests share; tests must not change it."""
    path = tmp_path_factory.mktemp("home")
    (path / "poems.txt").write_text(POEMS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        return Home(path, call("train", "poems.txt", "--steps", "20", *TINY))


@pytest.fixture
def at_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """That folder as the current one."""
    monkeypatch.chdir(home.path)
    return home


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own as the current one, with poems.txt in it."""
    (tmp_path / "poems.txt").write_text(POEMS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copied_home(home: Home, desk: Path) -> Path:
    """A copy of the trained run that a test may change."""
    shutil.copytree(home.path / "checkpoints", desk / "checkpoints")
    return desk
