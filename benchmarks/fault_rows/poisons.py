"""Values that are not finite, put into a training run on its way."""

import functools
import itertools
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from charrnn.model.file import load_model
from charrnn.training.folder import MODEL_NAME
from fault_rows.compare import damage, left_behind, run_folder, told
from fault_rows.forks import Child, new_folder
from fault_rows.trials import SAVE_EVERY, Job, Tried, is_over, last_line, tried_once

_POISONS = ("loss", "gradient", "weight", "lane state", "moment", "average")


def poisoned(job: Job, *, lasting: bool) -> Tried:
    """A value that is no number somewhere in a run, once or from then on."""
    rng, folder = random.Random(job.seed), new_folder(job.scratch)
    kind, at = _POISONS[job.seed % len(_POISONS)], rng.randint(1, 200)
    value = rng.choice((math.nan, math.inf, -math.inf))
    before = functools.partial(poison, kind, at, value, lasting=lasting)
    with Child(job.command("--patience", 0, save_every=rng.choice(SAVE_EVERY)), folder, before=before) as child:
        code = child.wait()
    failure, warned = damage(folder) or left_behind(folder), "training diverged" in child.errors()
    if (folder / "not-finite").exists():
        failure = f"{(folder / 'not-finite').read_text()} was written"
    elif code != (7 if lasting else 0) or not warned:
        failure = f"ended with {code}, {'told' if warned else 'untold'}: {last_line(child)}"
    elif not lasting:
        failure = failure or (None if is_over(folder) else "not finished")
    else:
        failure = failure or goes_on(job, folder)
    return tried_once(job, failure and f"{kind} {value} at step {at}: {failure}")


def goes_on(job: Job, folder: Path) -> str | None:
    """What is wrong with a run that diverged: the best model so far is there, and the run can still be ended well."""
    told_so = [event["step"] for event in told(folder) if event["event"] == "saved"]
    model = run_folder(folder) / MODEL_NAME
    kept = load_model(model).scores["step"] if model.exists() else None
    if told_so and (kept is None or kept < told_so[-1]):
        return f"the model is of step {kept}, but step {told_so[-1]} was kept"
    with Child(job.command("--patience", 0), folder, tag="end") as child:
        code = child.wait()
    if code != 0 or not is_over(folder):
        return f"without the fault it then ended with {code}: {last_line(child)}"
    return damage(folder) or left_behind(folder)


def poison(kind: str, at: int, value: float, *, lasting: bool) -> None:
    """Spoil a step's outcome, and note every file that is written with a value that isn't finite."""
    from charrnn.model import file as checkpoint
    from charrnn.training import folder as runs
    from charrnn.training import loop as training

    apply, write, calls = training.apply_gradient, checkpoint.write_tensors, itertools.count(1)

    def spoilt(state: Any, result: Any, *more: Any, **options: Any) -> None:
        call = next(calls)
        due = call >= at if lasting else call == at
        if due and kind == "loss":
            result = replace(result, nats=value)
        if due and kind == "gradient":
            result.gradient[at % len(result.gradient)] = value
        apply(state, result, *more, **options)
        if due:
            parameters = list(state.model.parameters())
            places = {
                "weight": parameters[at % len(parameters)].data,
                "lane state": result.state[0],
                "moment": state.optimizer.state[parameters[at % len(parameters)]]["exp_avg"],
                "average": next(itertools.islice(state.average.parameters(), at % len(parameters), None)).data,
            }
            if kind in places:
                places[kind].view(-1)[at % places[kind].numel()] = value

    def watched(path: Path, tensors: Any, **options: Any) -> None:
        meta = json.dumps(options["meta"])
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()) or re.search(r"\bNaN\b|Infinity", meta):
            Path("not-finite").write_text(path.name)
        write(path, tensors, **options)

    training.apply_gradient = spoilt
    checkpoint.write_tensors = runs.write_tensors = watched
