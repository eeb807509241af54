"""Rows about what is changed: values that are not finite in a run, facts left out of a state, bytes of files.

The last two are controls, which show that the other rows can fail: the comparison must find each change.
"""

import functools
import itertools
import json
import math
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from charrnn.model.container import read_tensors, write_tensors
from charrnn.model.file import load_model
from fault_rows.outcome import Broken, expect
from fault_rows.runs import SAVE_EVERY, Try

_POISONS = ("loss", "gradient", "weight", "lane state", "moment", "average")
_NOT_FINITE = Path("not-finite")  # a file that poison makes when such a value is written
NOTHING, LANES = "nothing", "the lanes' states"
_TENSORS = {LANES: "hidden.", "the first moments": "exp_avg.", "the second moments": "exp_avg_sq."}
_CURSOR = {"the cursor's pass": "pass_index", "the cursor's time": "time"}
_FACTS = {"the rate factor": ("rate_factor", 0.5), "num_events": ("num_events", 0)}
LEFT_OUT = (NOTHING, *_TENSORS, *_CURSOR, *_FACTS, "the step", "the average")
_MODEL_BIT, _STATE_BIT = "a bit of the model turned", "a bit of the newest state turned"
_LINE, _LEFT, _NAN = "a line of the log lost", "a temporary file left behind", "NaN in a state"
CHANGES = (_MODEL_BIT, _STATE_BIT, _LINE, _LEFT, _NAN)


def poisoned(run: Try, *, lasting: bool) -> None:
    """Put a value that is not finite somewhere into a run, once or from then on."""
    kind, at = _POISONS[run.number % len(_POISONS)], run.rng.randint(1, 200)
    value = run.rng.choice((math.nan, math.inf, -math.inf))
    before = functools.partial(poison, kind, at, value, lasting=lasting)
    with run.train("--patience", 0, save_every=run.rng.choice(SAVE_EVERY), before=before) as child:
        code = child.wait()
    expect(not (run.folder / _NOT_FINITE).exists(), f"{kind} {value} at step {at} was written")
    warned = "training diverged" in child.errors()
    right = warned and code == (7 if lasting else 0)
    expect(right, f"{kind} {value} at step {at}: ended with {code}, warned: {warned}: {child.last_line()}")
    run.check_ended()
    if lasting:
        saved = [event["step"] for event in run.events("saved")]
        step = load_model(run.model).scores["step"] if run.model.exists() else -1
        expect(not saved or step >= saved[-1], f"the model is of step {step}, but step {saved[-1:]} was saved")
        run.finish("--patience", 0)
        run.check_ended()
    expect(run.is_over(), "not finished")


def poison(kind: str, at: int, value: float, *, lasting: bool) -> None:
    """Put a value into the outcome of one step, or of all from it on; note every file written with such a value."""
    from charrnn.model import file
    from charrnn.runs import folder
    from charrnn.training import loop

    compute, apply, write = loop.Workers.compute, loop.apply_gradient, file.write_tensors
    windows, updates = itertools.count(1), itertools.count(1)

    def spoil(number: int, tensors: dict[str, Any]) -> None:
        if kind in tensors and (number == at or (lasting and number > at)):
            tensors[kind].view(-1)[at % tensors[kind].numel()] = value

    def spoilt_compute(*arguments: Any) -> Any:
        result, number = compute(*arguments), next(windows)
        if kind == "loss" and (number == at or (lasting and number > at)):
            return replace(result, nats=value)
        spoil(number, {"gradient": result.gradient, "lane state": result.state[0]})
        return result

    def spoilt_apply(state: Any, *more: Any, **options: Any) -> float:
        norm: float = apply(state, *more, **options)
        weights, means = list(state.model.parameters()), list(state.ema.parameters())
        nth = at % len(weights)
        moment = state.moments["exp_avg"][nth]
        spoil(next(updates), {"weight": weights[nth].data, "moment": moment, "average": means[nth].data})
        return norm

    def watched(path: Path, tensors: Any, **options: Any) -> None:
        meta = json.dumps(options["meta"])
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()) or re.search(r"\bNaN\b|Infinity", meta):
            _NOT_FINITE.write_text(path.name)
        write(path, tensors, **options)

    loop.Workers.compute, loop.apply_gradient = spoilt_compute, spoilt_apply
    file.write_tensors = folder.write_tensors = watched


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
    if name in (_MODEL_BIT, _STATE_BIT):
        path = run.model if name == _MODEL_BIT else newest
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
