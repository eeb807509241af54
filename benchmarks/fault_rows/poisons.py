"""Rows about values that are not finite, put into a training run on its way."""

import functools
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fault_rows.internals import load_model
from fault_rows.outcome import expect
from fault_rows.runs import SAVE_EVERY, Try

_POISONS = ("loss", "gradient", "weight", "lane state", "moment", "average")
_NOT_FINITE = Path("not-finite")  # a file that poison makes when such a value is written


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

    def spoilt_apply(state: Any, *more: Any, **options: Any) -> None:
        apply(state, *more, **options)
        weights, means = list(state.model.parameters()), list(state.ema.parameters())
        nth = at % len(weights)
        moment = state.moments["exp_avg"][nth]
        spoil(next(updates), {"weight": weights[nth].data, "moment": moment, "average": means[nth].data})

    def watched(path: Path, tensors: Any, **options: Any) -> None:
        meta = json.dumps(options["meta"])
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()) or re.search(r"\bNaN\b|Infinity", meta):
            _NOT_FINITE.write_text(path.name)
        write(path, tensors, **options)

    loop.Workers.compute, loop.apply_gradient = spoilt_compute, spoilt_apply
    file.write_tensors = folder.write_tensors = watched
