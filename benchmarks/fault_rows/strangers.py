"""What others prepared: modules beside the text, links in a run's folder, a model's paths, kernels; and a hasty Ctrl-C.

Each command is a process that starts as the installed command does.
"""

import functools
import itertools
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from charrnn.files import MODEL_NAME, kernel_cache
from fault_rows.hostile import Good, Harm
from fault_rows.outcome import Outcome, choose, expect
from fault_rows.runs import RUN, Child, Files, make_text, start_afresh

_SIZES = "--steps 6 --hidden-size 8 --num-layers 1 --batch-size 4 --seq-len 8 --quiet --precision float32"
TRAIN = f"train text.txt --run {RUN} {_SIZES}"
COMMANDS = (
    "sample -n 20 --seed 1",
    "eval",
    f"{TRAIN} --run other --fresh",
    "info",
    "eval text.txt --per-line",
    "sample -N 3 --json",
)
_MODULES = ("charrnn/__init__.py", "random.py", "json.py", "numpy.py", "numba.py", "torch.py", "typer.py")
_NAMES = (".lock", ".lock-holder", "log.jsonl", MODEL_NAME, "state-3.safetensors", ".x.tmp", "report.html")
_KINDS = ("a link to a file", "a link to nothing", "a FIFO")
_KEYS = ("../../secret.txt", "/etc/passwd", "0" * 64, "", "0" * 63 + "/")  # of a cached text
_SECRET = "a private sentence that no model knows\n" * 50


class Desk(Files):
    """A folder with a text and a trained run, and caches of its own. marker: what anything executed makes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.marker = folder / "executed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "text.txt").write_text(make_text(3000), encoding="utf-8")
        self.call(TRAIN)

    def start(self, command: str, **environment: str) -> Child:
        return Child(command.split(), self.folder, before=functools.partial(start_afresh, **environment))

    def call(self, command: str, codes: Sequence[int] = (0,), **environment: str) -> Child:
        """Run a command to its end, which must be one of these codes."""
        with self.start(command, **environment) as child:
            child.must_end(*codes)
        return child


Plant = Callable[[Desk], dict[str, str]]  # puts it there; returns changes of the environment


def plant_modules(desk: Desk) -> dict[str, str]:
    """Put files named as modules into the current folder; have kernels compiled."""
    for name in _MODULES:
        (desk.folder / name).parent.mkdir(exist_ok=True)
        (desk.folder / name).write_text(f"open({str(desk.marker)!r}, 'w').close()\nraise SystemExit(9)\n")
    return {"NUMBA_CACHE_DIR": str(desk.folder / "kernels")}


def plant_kernels(desk: Desk) -> dict[str, str]:
    """Let others write to the cache, and put pickles that act into the place of each compiled kernel."""
    cache = desk.folder / "planted"
    shutil.copytree(kernel_cache(), cache / "charrnn" / "kernels")
    for path in cache.rglob("*.nb?"):
        path.write_bytes(pickle.dumps(Harm(desk.marker)))
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o777)
    return {"XDG_CACHE_HOME": str(cache), "NUMBA_CACHE_DIR": ""}


def planted(folder: Path, outcome: Outcome, count: int, rng: random.Random, *, plant: Plant) -> None:
    """Commands do their work, and nothing that others planted is executed."""
    for number in range(count):
        desk, command = Desk(folder / "desk"), COMMANDS[number % 3]
        with outcome.attempt(command):
            desk.call(command, **plant(desk))
            expect(not desk.marker.exists(), "something was executed")


def links(folder: Path, outcome: Outcome, count: int, rng: random.Random) -> None:
    """A run's folder holds a link or a FIFO where the next run would write; what a link points to stays as it was."""
    desk = Desk(folder / "desk")
    backup, target = shutil.copytree(desk.run, folder / "run"), desk.folder / "elsewhere"
    for name, kind, fresh in choose(list(itertools.product(_NAMES, _KINDS, ("", "--fresh"))), count, rng):
        shutil.rmtree(desk.run)
        shutil.copytree(backup, desk.run)
        path, target_text = desk.run / name, _SECRET if kind == "a link to a file" else None
        path.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        if target_text:
            target.write_text(target_text)
        os.mkfifo(path) if kind == "a FIFO" else path.symlink_to(target)
        with outcome.attempt(f"{name} is {kind} {fresh}"):
            errors = desk.call(f"{TRAIN} --steps 9 {fresh}", codes=(1,)).errors()
            expect(errors.count("\n") == 1 and name in errors, errors[-300:])
            left = target.read_text() if target.exists() else None
            expect(left == target_text, "what the link points to was changed")


def foreign_paths(folder: Path, outcome: Outcome, count: int, rng: random.Random) -> None:
    """A model's record of its training text names files that are none of its business: nothing of them is cached."""
    desk = Desk(folder / "desk")
    (desk.folder / "secret.txt").write_text(_SECRET)
    os.mkfifo(desk.folder / "fifo")
    good = Good(desk.model, "model")
    own = [str(desk.folder / name) for name in ("secret.txt", "fifo", "missing")]
    commands = ("eval -m m.st", "eval -m m.st text.txt")
    cases = list(itertools.product([*own, "/dev/zero", "/dev/stdin", "../x"], _KEYS, commands))
    for path, key, command in choose(cases, count, rng):
        text = {**good.meta["provenance"]["text"], "paths": [path], "names": [path], "key": key}
        meta = {**good.meta, "provenance": {**good.meta["provenance"], "text": text}}
        (desk.folder / "m.st").write_bytes(good.described(meta))
        before = set((desk.folder / "cache").rglob("*"))
        with outcome.attempt(f"{command}: {path}, {key}"):
            child = desk.call(command, codes=(0, 3, 4))
            printed = child.errors() + child.out.read_text(encoding="utf-8")
            expect("Traceback" not in printed and "private" not in printed, printed[-300:])
            new = [path for path in set((desk.folder / "cache").rglob("*")) - before if path.is_file()]
            expect(not any(b"private" in path.read_bytes() for path in new), f"cached: {new}")


def interrupted(folder: Path, outcome: Outcome, count: int, rng: random.Random) -> None:
    """Ctrl-C arrives while a command starts: it ends by the signal, without a word, unless it has ended before."""
    desk, seconds = Desk(folder / "desk"), dict[str, float]()
    for command in COMMANDS:
        begun = time.monotonic()
        desk.call(command)
        seconds[command] = time.monotonic() - begun
    for number in range(count):
        command = COMMANDS[number % len(COMMANDS)]
        moment = rng.uniform(0.1, 0.9) * min(seconds[command], 2.5)
        with outcome.attempt(f"{command} after {moment:.3f} s"), desk.start(command) as child:
            child.wait(moment)
            child.send(signal.SIGINT)
            child.must_end(0, -signal.SIGINT)
            errors = child.errors()
            expect("Traceback" not in errors and "KeyboardInterrupt" not in errors, errors[-300:])
