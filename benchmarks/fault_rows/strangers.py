"""What others prepared: modules beside the text, links in a run's folder, a model's paths, kernels; and a hasty Ctrl-C.

Each try is a process that starts as the installed command does: Python doesn't look for modules in the current folder.
"""

import functools
import itertools
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fault_rows.hostile import Good
from fault_rows.internals import kernel_cache
from fault_rows.outcome import Outcome, expect, problem_of
from fault_rows.runs import MODEL, PATIENCE, make_text

_SIZES = "--steps 6 --hidden-size 8 --num-layers 1 --batch-size 4 --seq-len 8 --quiet --precision float32"
TRAIN = f"train text.txt --run run {_SIZES}"
COMMANDS = (
    "sample -n 20 --seed 1",
    "eval",
    f"{TRAIN} --run other --fresh",
    "info",
    "eval text.txt --per-line",
    "sample -N 3 --json",
)
_MODULES = ("charrnn/__init__.py", "random.py", "json.py", "numpy.py", "numba.py", "torch.py", "typer.py")
_NAMES = (".lock", ".lock-holder", "log.jsonl", MODEL, "state-3.safetensors", ".x.tmp", "report.html")
_KINDS = ("a link to a file", "a link to nothing", "a FIFO")
_SECRET = "a private sentence that no model knows\n" * 50


class Desk:
    """A folder with a text and a trained run, and caches of its own for texts and kernels."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.marker = folder, folder / "checkpoints" / "run", folder.parent / "executed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "text.txt").write_text(make_text(3000), encoding="utf-8")
        expect(self.call(TRAIN).returncode == 0, "no run to begin with")

    def start(self, command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command as a shell does, with the default signals."""
        words = [sys.executable, "-P", "-m", "charrnn", *command.split()]
        variables = {**os.environ, "XDG_CACHE_HOME": str(self.folder / "cache"), **environment}
        restore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(words, cwd=self.folder, env=variables, preexec_fn=restore, text=True, **pipes)

    def call(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, which it must reach."""
        process = self.start(command, **environment)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def planted_modules(folder: Path, outcome: Outcome, count: int, rng: random.Random) -> None:
    """Files named as modules lie in the current folder while kernels are compiled."""
    for number in range(count):
        desk = Desk(folder / "desk")
        for name in _MODULES:
            (desk.folder / name).parent.mkdir(exist_ok=True)
            (desk.folder / name).write_text(f"open({str(desk.marker)!r}, 'w').close()\nraise SystemExit(9)\n")
        command = COMMANDS[number % 3]
        outcome.note(command, problem_of(runs_nothing, desk, command, {"NUMBA_CACHE_DIR": str(folder / f"{number}")}))


def runs_nothing(desk: Desk, command: str, environment: dict[str, str]) -> None:
    """A command does its work, and nothing that others prepared is executed."""
    done = desk.call(command, **environment)
    expect(done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-300:]}")
    expect(not desk.marker.exists(), "something was executed")


def planted_kernels(folder: Path, outcome: Outcome, count: int, rng: random.Random) -> None:
    """Others can write to the cache, and put pickles that act into the place of each compiled kernel."""
    for number in range(count):
        desk, cache = Desk(folder / "desk"), folder / "planted"
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(kernel_cache(), cache / "charrnn" / "kernels")
        for path in cache.rglob("*.nb?"):
            path.write_bytes(pickle.dumps(Act(str(desk.marker))))
        for path in (cache, *cache.rglob("*")):
            path.chmod(0o777)
        environment = {"XDG_CACHE_HOME": str(cache), "NUMBA_CACHE_DIR": ""}
        outcome.note(COMMANDS[number % 3], problem_of(runs_nothing, desk, COMMANDS[number % 3], environment))


class Act:
    """A pickle of it creates a file where it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def links(folder: Path, outcome: Outcome, count: int, rng: random.Random) -> None:
    """A run's folder holds links and FIFOs where the next run would write."""
    desk = Desk(folder / "desk")
    backup = shutil.copytree(desk.run, folder / "run")
    cases = list(itertools.product(_NAMES, _KINDS, (False, True)))
    for name, kind, fresh in cases if count >= len(cases) else rng.sample(cases, count):
        shutil.rmtree(desk.run)
        shutil.copytree(backup, desk.run)
        case = f"{name} is {kind}{', --fresh' * fresh}"
        outcome.note(case, problem_of(refuses_link, desk, desk.run / name, kind, fresh))


def refuses_link(desk: Desk, path: Path, kind: str, fresh: bool) -> None:
    """Training ends with one line, and what a link points to is as it was."""
    target = desk.folder / "elsewhere"
    target.write_text(_SECRET) if kind == "a link to a file" else target.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "a FIFO" else path.symlink_to(target)
    done = desk.call(f"{TRAIN} --steps 9 {'--fresh' * fresh}")
    expect(done.returncode == 1, f"exit code {done.returncode}: {done.stderr[-300:]}")
    expect(done.stderr.count("\n") == 1 and path.name in done.stderr, done.stderr[-300:])
    left = target.read_text() if target.exists() else None
    expect(left == (_SECRET if kind == "a link to a file" else None), "what the link points to was changed")


def foreign_paths(folder: Path, outcome: Outcome, count: int, rng: random.Random) -> None:
    """A model's record of its training text names files that are none of its business."""
    desk = Desk(folder / "desk")
    (desk.folder / "secret.txt").write_text(_SECRET)
    os.mkfifo(desk.folder / "fifo")
    good = Good(desk.run / MODEL, "model")
    paths = [str(desk.folder / name) for name in ("secret.txt", "fifo", "missing")] + [
        "/dev/zero",
        "/dev/stdin",
        "../x",
    ]
    keys = ("../../secret.txt", "/etc/passwd", "0" * 64, "", "0" * 63 + "/")
    cases = [
        (path, key, command) for path in paths for key in keys for command in ("eval -m m.st", "eval -m m.st text.txt")
    ]
    for path, key, command in cases if count >= len(cases) else rng.sample(cases, count):
        text = {**good.meta["provenance"]["text"], "paths": [path], "names": [path], "key": key}
        meta = {**good.meta, "provenance": {**good.meta["provenance"], "text": text}}
        (desk.folder / "m.st").write_bytes(good.described(meta))
        outcome.note(f"{command}: {path}, {key}", problem_of(reads_nothing, desk, command))


def reads_nothing(desk: Desk, command: str) -> None:
    """The command ends soon in at most a few lines, and caches nothing that it was not given."""
    before = set((desk.folder / "cache").rglob("*"))
    done = desk.call(command)
    expect(done.returncode in (0, 3, 4), f"exit code {done.returncode}: {done.stderr[-300:]}")
    expect("Traceback" not in done.stderr and "private" not in done.stderr + done.stdout, done.stderr[-300:])
    new = [path for path in set((desk.folder / "cache").rglob("*")) - before if path.is_file()]
    expect(not any(b"private" in path.read_bytes() for path in new), f"cached: {new}")


def interrupted(folder: Path, outcome: Outcome, count: int, rng: random.Random) -> None:
    """Ctrl-C arrives while a command starts."""
    desk = Desk(folder / "desk")
    seconds = {}
    for command in COMMANDS:
        begun = time.monotonic()
        expect(desk.call(command).returncode == 0, command)
        seconds[command] = time.monotonic() - begun
    for number in range(count):
        command = COMMANDS[number % len(COMMANDS)]
        moment = rng.uniform(0.1, 0.9) * min(seconds[command], 2.5)
        outcome.note(f"{command} after {moment:.3f} s", problem_of(ends_by_signal, desk, command, moment))


def ends_by_signal(desk: Desk, command: str, moment: float) -> None:
    """The command ends by the signal, without a word; if it had trained already, as a run does; or it had ended."""
    process = desk.start(command)
    time.sleep(moment)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    expect(process.returncode in (0, -signal.SIGINT), f"ended with {process.returncode}: {err[-300:]}")
    expect("Traceback" not in err and "KeyboardInterrupt" not in err, err[-300:])
