"""Rows that show that the others can fail: the comparison must see what a state lacks, and files that were changed."""

import functools
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np

from fault_rows.internals import CELLS, read_tensors, write_tensors
from fault_rows.outcome import Broken, Row, expect
from fault_rows.runs import Bench, Try

_NOTHING, _LANES, _NAN = "nothing", "the lanes' states", "NaN in a state"
_TENSORS = {_LANES: "hidden.", "the first moments": "exp_avg.", "the second moments": "exp_avg_sq."}
_CURSOR = {"the cursor's pass": "pass_index", "the cursor's time": "time"}
_FACTS = {"the rate factor": ("rate_factor", 0.5), "num_events": ("num_events", 0)}
_LEFT_OUT = (_NOTHING, *_TENSORS, *_CURSOR, *_FACTS, "the step", "the average")
_CHANGES = (
    "a bit of the model turned",
    "a bit of the newest state turned",
    "a line of the log lost",
    "a temporary file left behind",
    _NAN,
)


def rows(bench: Bench) -> list[Row]:
    """The rows of the table, in its order."""
    table = []
    for name in _LEFT_OUT:
        fault = f"control: {name}" + " left out of the state" * (name != _NOTHING)
        must_hold = f"the check finds {'nothing' if name == _NOTHING else 'it'}"
        counts = (int(name in (_NOTHING, _LANES)), 1, len(CELLS))
        table.append(bench.row(fault, must_hold, counts, functools.partial(resumed_without, name=name)))
    for name in _CHANGES:
        changed = functools.partial(with_change, name=name)
        table.append(bench.row(f"control: {name}", "the check finds it", (1, 1, 1), changed))
    return table


def resumed_without(run: Try, *, name: str) -> None:
    """Resume from a state that lacks something."""
    last = run.whole.num_lines()
    for _ in range(20):  # until a pass has begun, but not at its first step, where lanes have no state
        run.clear()
        with run.train() as child:
            run.wait_for_line(child, run.rng.randint(last * 2 // 5, last * 4 // 5))
            child.send(signal.SIGTERM)
            code = child.wait()
        tensors, meta = read_tensors(run.states()[0], kind="state")
        if code == -signal.SIGTERM and meta["cursor"]["pass_index"] > 0 and meta["cursor"]["time"] > 0:
            break
    else:
        raise Broken(f"never stopped in the middle of a pass, but with {code}")
    for path in run.states():
        path.unlink()
    leave_out(name, tensors, meta)
    write_state(run.run / f"state-{meta['step']}.safetensors", tensors, meta)
    run.finish()
    try:
        run.check_equal(run.whole)
    except Broken as found:
        expect(name != _NOTHING, f"the check found: {found}")
    else:
        expect(name == _NOTHING, "the runs ended alike")


def leave_out(name: str, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
    """Remove one thing from a state."""
    for key in tensors:
        if name in _TENSORS and key.startswith(_TENSORS[name]):
            tensors[key] = np.zeros_like(tensors[key])
        if name == "the average" and key.startswith("average."):
            tensors[key] = tensors[key.replace("average.", "weights.")]
    if name in _CURSOR:
        meta["cursor"][_CURSOR[name]] = 0
    if name in _FACTS:
        meta |= [_FACTS[name]]
    if name == "the step":
        meta["step"] -= 1
        meta |= {key: min(meta[key], meta["step"]) for key in ("evaluated_step", "best_step")}


def write_state(path: Path, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write a state whose description was read from a file."""
    facts = {key: value for key, value in meta.items() if key not in ("format", "kind", "file_sha256")}
    write_tensors(path, tensors, kind="state", meta=facts)


def with_change(run: Try, *, name: str) -> None:
    """Change the files of an undisturbed run's copy."""
    shutil.copytree(run.whole.folder, run.folder, dirs_exist_ok=True)
    run.check_equal(run.whole)
    newest = run.states()[0]
    if name.startswith("a bit"):
        path = run.model if "model" in name else newest
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif name == "a line of the log lost":
        lines = run.log.read_bytes().splitlines(keepends=True)
        run.log.write_bytes(b"".join(lines[:5] + lines[6:]))
    elif name == "a temporary file left behind":
        (run.run / ".x.tmp").touch()
    else:
        tensors, meta = read_tensors(newest, kind="state")
        tensors["weights.head.bias"][0] = math.nan
        write_state(newest, tensors, meta)
    try:
        run.check_whole() if name == _NAN else run.check_equal(run.whole)
    except Broken:
        return
    raise Broken("the check saw nothing")
