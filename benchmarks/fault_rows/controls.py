"""Rows that show that the others can fail: the comparison must see what a state lacks, and files that were changed."""

import functools
import math
import shutil
import signal
from collections.abc import Callable
from typing import Any

import numpy as np

from fault_rows.internals import read_tensors, write_tensors
from fault_rows.outcome import Broken, expect
from fault_rows.runs import Try

NOTHING, LANES = "nothing", "the lanes' states"
_TENSORS = {LANES: "hidden.", "the first moments": "exp_avg.", "the second moments": "exp_avg_sq."}
_CURSOR = {"the cursor's pass": "pass_index", "the cursor's time": "time"}
_FACTS = {"the rate factor": ("rate_factor", 0.5), "num_events": ("num_events", 0)}
LEFT_OUT = (NOTHING, *_TENSORS, *_CURSOR, *_FACTS, "the step", "the average")
_BITS = {f"a bit of the {which} turned": which for which in ("model", "newest state")}
_LINE, _LEFT, _NAN = "a line of the log lost", "a temporary file left behind", "NaN in a state"
CHANGES = (*_BITS, _LINE, _LEFT, _NAN)


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
    write_tensors(run.run / f"state-{meta['step']}.safetensors", tensors, kind="state", meta=meta)
    run.finish()
    found = found_by(functools.partial(run.check_equal, run.whole))
    expect((found == "") == (name == NOTHING), f"the check found: {found or 'nothing'}")


def found_by(check: Callable[[], None]) -> str:
    """What a check finds wrong; nothing if all is well."""
    try:
        check()
    except Broken as problem:
        return str(problem)
    return ""


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


def with_change(run: Try, *, name: str) -> None:
    """Change the files of an undisturbed run's copy."""
    shutil.copytree(run.whole.folder, run.folder, dirs_exist_ok=True)
    run.check_equal(run.whole)
    newest, check = run.states()[0], functools.partial(run.check_equal, run.whole)
    if name in _BITS:
        path = {"model": run.model, "newest state": newest}[_BITS[name]]
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif name == _LINE:
        lines = run.log.read_bytes().splitlines(keepends=True)
        run.log.write_bytes(b"".join(lines[:5] + lines[6:]))
    elif name == _LEFT:
        (run.run / ".x.tmp").touch()
    else:
        tensors, meta = read_tensors(newest, kind="state")
        tensors["weights.head.bias"][0] = math.nan
        write_tensors(newest, tensors, kind="state", meta=meta)
        check = run.check_whole
    expect(found_by(check), "the check found nothing")
