"""Whether two runs ended alike, and whether what a run has on the disk is whole.

Each says what is wrong, or None.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from charrnn.errors import ModelFileError
from charrnn.model.file import load_model, read_tensors
from charrnn.training.folder import MODEL_NAME, SESSION_EVENTS

RUN = "run"  # the name of every run here
_OF_THE_CLOCK = ("chars_per_second", "seconds_left")


def run_folder(folder: Path) -> Path:
    """The run's folder, of a try's."""
    return folder / "checkpoints" / RUN


def states(folder: Path) -> list[Path]:
    """The state files of a try, newest first."""
    found = run_folder(folder).glob("state-*.safetensors")
    return sorted(found, key=lambda path: -int(path.stem.removeprefix("state-")))


def difference(expected: Path, found: Path) -> str | None:
    """What tells two finished tries apart: the model, the newest state, the log, what else lies there."""
    for name in (MODEL_NAME, states(expected)[0].name):
        ours, theirs = run_folder(found) / name, run_folder(expected) / name
        if not ours.exists():
            return f"{name} is missing"
        if _sha256(ours) != _sha256(theirs):
            return f"{name} differs{_which_tensors(ours, theirs)}"
    if states(found)[0].name != states(expected)[0].name:
        return f"the newest state is {states(found)[0].name}"
    try:
        ours_told, theirs_told = told(found), told(expected)
    except ValueError as error:
        return f"log.jsonl: {error}"
    if ours_told != theirs_told:
        pairs = zip(ours_told, theirs_told, strict=False)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours_told), len(theirs_told)))
        one, other = (json.dumps(lines[first : first + 1])[:150] for lines in (ours_told, theirs_told))
        return f"log.jsonl, event {first} of {len(ours_told)} ({len(theirs_told)}): {one}, not {other}"
    return left_behind(found)


def left_behind(folder: Path) -> str | None:
    """What a run that has ended by itself should have taken away."""
    odd = [path.name for path in run_folder(folder).iterdir() if path.name.endswith((".tmp", "-holder"))]
    if odd or len(states(folder)) > 2:
        return f"left behind: {', '.join(odd) or 'more than two states'}"
    return None


def told(folder: Path) -> list[dict[str, Any]]:
    """The log's events, without what the clock says and what belongs to a sitting."""
    lines = (run_folder(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line, parse_constant=_refuse) for line in lines]
    return [
        {name: value for name, value in event.items() if name not in _OF_THE_CLOCK}
        for event in events
        if event["event"] not in SESSION_EVENTS
    ]


def damage(folder: Path) -> str | None:
    """What of a try's model and states, read at any moment at which nobody writes, is not whole or not finite."""
    model = run_folder(folder) / MODEL_NAME
    try:
        if model.exists():
            scores = load_model(model).scores
            if not math.isfinite(scores["nats_per_char"]):
                return f"{MODEL_NAME}: a score of {scores['nats_per_char']}"
        for path in states(folder):
            tensors, _ = read_tensors(path, kind="state")
            odd = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
            if odd:
                return f"{path.name}: {odd[0]} is not finite"
    except ModelFileError as error:
        return str(error)
    return None


def _refuse(constant: str) -> None:
    """Take no NaN and no Infinity for a number."""
    raise ValueError(f"a value that is {constant}")


def _sha256(path: Path) -> str:
    """A file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _which_tensors(ours: Path, theirs: Path) -> str:
    """Where two files of one kind differ, for whoever looks for the reason."""
    kind = "model" if ours.name == MODEL_NAME else "state"
    try:
        (here, meta), (there, other) = (read_tensors(path, kind=kind) for path in (ours, theirs))
    except ModelFileError as error:
        return f": {error}"
    tensors = [name for name in there if name not in here or here[name].tobytes() != there[name].tobytes()]
    facts = [name for name in other if meta.get(name) != other[name] and name != "file_sha256"]
    shown = "; ".join(f"{name} {meta.get(name)}, not {other[name]}"[:120] for name in facts[:3])
    return f" in {len(tensors)} of {len(there)} tensors and in {shown or 'no fact'}"
