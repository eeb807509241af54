"""What the comparison must see: states that lack something, and files that were changed."""

import math
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from charrnn.model.file import read_tensors, write_tensors
from charrnn.training.folder import MODEL_NAME
from fault_rows.compare import damage, difference, run_folder, states
from fault_rows.forks import Child, new_folder
from fault_rows.trials import Job, Tried, last_line, stop_at, tried_once


def _zeros(tensors: dict[str, Any], kind: str) -> None:
    """Forget the tensors of a kind."""
    for name in tensors:
        if name.startswith(kind):
            tensors[name] = np.zeros_like(tensors[name])


def _old_average(tensors: dict[str, Any]) -> None:
    """Take the weights of the moment for their mean."""
    for name in tensors:
        if name.startswith("average."):
            tensors[name] = tensors[name.replace("average.", "weights.")]


def _set(meta: dict[str, Any], name: str, value: Any) -> None:
    """Change a fact."""
    assert meta[name] != value, f"{name} was {value} already"
    meta[name] = value


def _a_step_less(meta: dict[str, Any]) -> None:
    """Forget a step, and nothing that could not have been before it."""
    meta["step"] -= 1
    for name in ("evaluated_step", "best_step"):
        meta[name] = min(meta[name], meta["step"])


# What is left out of a state, as a change of its tensors and facts
CONTROLS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "nothing": lambda tensors, meta: None,
    "the lanes' states": lambda tensors, meta: _zeros(tensors, "hidden."),
    "the cursor's pass": lambda tensors, meta: _set(meta["cursor"], "pass_index", 0),
    "the cursor's time": lambda tensors, meta: _set(meta["cursor"], "time", 0),
    "the step": lambda tensors, meta: _a_step_less(meta),
    "the first moments": lambda tensors, meta: _zeros(tensors, "exp_avg."),
    "the second moments": lambda tensors, meta: _zeros(tensors, "exp_avg_sq."),
    "the average": lambda tensors, meta: _old_average(tensors),
    "the rate factor": lambda tensors, meta: _set(meta, "rate_factor", 0.5),
    "num_events": lambda tensors, meta: _set(meta, "num_events", 0),
}


def control(job: Job, *, name: str) -> Tried:
    """Go on from a state that lacks something: the comparison that every other row relies on must see it."""
    rng = random.Random(job.seed)
    for _ in range(20):  # until a pass has begun, not at its first step, where lanes have no state
        folder = new_folder(job.scratch)
        code = stop_at(job, folder, rng.randint(job.whole.num_events * 2 // 5, job.whole.num_events * 4 // 5))
        newest = states(folder)[0]
        tensors, meta = read_tensors(newest, kind="state")
        if code == -signal.SIGTERM and meta["cursor"]["pass_index"] > 0 and meta["cursor"]["time"] > 0:
            break
    else:
        return tried_once(job, f"never stopped in the middle of a pass, but with {code}")
    for path in states(folder):
        path.unlink()
    CONTROLS[name](tensors, meta)
    facts = {key: value for key, value in meta.items() if key not in ("format", "kind", "file_sha256")}
    write_tensors(newest.with_name(f"state-{meta['step']}.safetensors"), tensors, kind="state", meta=facts)
    with Child(job.command(), folder, tag="end") as child:
        code = child.wait()
    if code != 0:
        return tried_once(job, f"ended with {code}: {last_line(child)}")
    found = difference(job.whole.folder, folder)
    if name == "nothing":
        return tried_once(job, found)
    return tried_once(job, None if found else f"{name} was left out of {newest.name}, and the runs ended alike")


def _turn_a_bit(path: Path) -> None:
    """Change a file by as little as there is."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _drop_a_line(path: Path) -> None:
    """Lose the sixth event."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5] + lines[6:]))


def _write_nan(path: Path) -> None:
    """Write a state again, with a value that is none."""
    tensors, meta = read_tensors(path, kind="state")
    tensors["weights.head.bias"][0] = math.nan
    facts = {key: value for key, value in meta.items() if key not in ("format", "kind", "file_sha256")}
    write_tensors(path, tensors, kind="state", meta=facts)


# What is done to the files of a run
TAMPERINGS: dict[str, Callable[[Path], None]] = {
    "a bit of the model turned": lambda folder: _turn_a_bit(run_folder(folder) / MODEL_NAME),
    "a bit of the newest state turned": lambda folder: _turn_a_bit(states(folder)[0]),
    "a line of the log lost": lambda folder: _drop_a_line(run_folder(folder) / "log.jsonl"),
    "a temporary file left behind": lambda folder: (run_folder(folder) / ".x.tmp").touch(),
    "NaN in a state": lambda folder: _write_nan(states(folder)[0]),
}


def tampered(job: Job, *, name: str) -> Tried:
    """Change the files of an undisturbed run's copy: the comparison must see it."""
    folder = new_folder(job.scratch)
    shutil.copytree(job.whole.folder, folder, dirs_exist_ok=True)
    if found := difference(job.whole.folder, folder):
        return tried_once(job, f"a copy differs: {found}")
    TAMPERINGS[name](folder)
    check = damage(folder) if name == "NaN in a state" else difference(job.whole.folder, folder)
    return tried_once(job, None if check else f"{name}: the check saw nothing")
