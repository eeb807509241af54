"""Files that are made to harm their reader, with checksums that are right, where a model or a state should be."""

import functools
import itertools
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.model.file import load_model, read_tensors
from charrnn.training.folder import MODEL_NAME
from fault_rows import impostors, values
from fault_rows.impostors import Case
from fault_rows.material import REMOVED, RUN, TRAIN, Good, Material
from fault_rows.measured import command, read_measured
from fault_rows.outcome import Outcome

MUST_HOLD = "exit 4 in one line, within a second, in twice the file's size of memory; nothing is executed"
HOSTILE = "hostile files, with checksums that are right"
SECONDS = 1.0  # of the processor
MEMORY = 16 << 20  # bytes beyond twice the file's
_STATE = "state-20.safetensors"
_HARMLESS = (0, 2, 3, 4, 7)  # how commands may end with files that only say odd things
_AS_COMMAND = 4  # of the refused ones, every so many go through the command line as well
_ODD_NUMBERS = (np.nan, np.inf, -np.inf)
_EDITS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "transposed": lambda tensor: tensor.T.copy(),
    "in one more dimension": lambda tensor: tensor[None],
    "cut": lambda tensor: tensor[:-1].copy(),
    "empty": lambda tensor: tensor[:0].copy(),
    "doubled": lambda tensor: np.concatenate([tensor, tensor]),
    "in float64": lambda tensor: tensor.astype(np.float64),
    "in float16": lambda tensor: tensor.astype(np.float16),
    "as integers": lambda tensor: tensor.view(np.int32),
    "as bytes": lambda tensor: tensor.view(np.uint8),
}


def hostile_row(root: Path, *, count: int, seed: int) -> Outcome:
    """So many hostile files, of each family in turn."""
    rng = random.Random(seed)
    outcome = Outcome(HOSTILE, MUST_HOLD)
    material = Material.make(root, seed=seed)
    families = list(_families(material))
    for family in families:
        rng.shuffle(family)
    in_turn = (case for row in itertools.zip_longest(*families) for case in row if case is not None)
    for number, case in enumerate(itertools.islice(in_turn, count)):
        try:
            wrong = _try(material, case, as_command=number % _AS_COMMAND == 0)
        finally:
            _clear(material)
        outcome.note(wrong and f"{case.name}: {wrong}")
    return outcome


def _families(material: Material) -> Iterator[list[Case]]:
    """All hostile files that there are, by what is wrong with them."""
    made = (
        impostors.no_files,
        impostors.foreign,
        impostors.sizes,
        impostors.deep_and_wide,
        impostors.padded,
        impostors.doubled,
        impostors.misplaced,
        _wrong_tensors,
    )
    for make in made:
        yield [case for good in (material.model, material.state) for case in make(good)]
    yield from (_described(material.model, make, may_load=False) for make in (values.wrong_in_model,))
    yield _described(material.model, values.odd_in_model, may_load=True)
    yield from (
        _described(material.state, make, may_load=False) for make in (values.wrong_in_state, values.senseless_in_state)
    )
    yield _described(material.state, values.odd_in_state, may_load=True)


def _described(good: Good, make: Callable[[Good], Iterable[tuple[values.Place, Any]]], *, may_load: bool) -> list[Case]:
    """Files with one odd value in the description."""

    def put(place: values.Place, value: Any, path: Path) -> None:
        good.write(path, meta=good.with_value(place, value))

    return [
        Case(
            f"{good.kind}: {'.'.join(place)} {'removed' if value is REMOVED else 'is ' + repr(value)[:40]}",
            good.kind,
            functools.partial(put, place, value),
            may_load=may_load,
        )
        for place, value in make(good)
    ]


def _wrong_tensors(good: Good) -> Iterator[Case]:
    """Files with one tensor that doesn't fit, or isn't there."""

    def put(tensors: dict[str, NDArray[Any]], path: Path) -> None:
        good.write(path, tensors=tensors)

    for name, tensor in good.tensors.items():
        others = {other: good.tensors[other] for other in good.tensors if other != name}
        changes = {f"{name} missing": others, f"{name} renamed": {**others, f"{name}x": tensor}}
        for number in _ODD_NUMBERS:
            odd = tensor.copy()
            odd.flat[-1] = number
            changes[f"{name} with {number}"] = {**others, name: odd}
        for how, edit in _EDITS.items():
            odd = edit(tensor)
            if (odd.shape, odd.dtype) != (tensor.shape, tensor.dtype):
                changes[f"{name} {how}"] = {**others, name: odd}
        for change, tensors in changes.items():
            yield Case(f"{good.kind}: {change}", good.kind, functools.partial(put, tensors))


def _try(material: Material, case: Case, *, as_command: bool) -> str | None:
    """What doesn't hold when such a file is read, by the function that does, and by commands."""
    folder = material.folder / "checkpoints" / RUN
    folder.mkdir()
    path = folder / (MODEL_NAME if case.kind == "model" else _STATE)
    case.put(path)
    room, is_model = path.lstat().st_blocks * 512, case.kind == "model"
    good = folder.with_name("good") / MODEL_NAME
    load = (lambda: load_model(path)) if is_model else (lambda: read_tensors(path, kind="state"))
    reading = read_measured(load, lambda: load_model(good))
    if reading.odd:
        return reading.odd
    if reading.refusal and not reading.refusal.startswith(f"{path}: "):
        return f"the error doesn't name the file: {reading.refusal}"
    if reading.seconds > SECONDS or reading.grown > 2 * room + MEMORY:
        return f"{reading.seconds:.2f} s, {reading.grown / 1e6:,.0f} MB for a file of {room / 1e6:,.0f} MB"
    if is_model and not reading.refusal and not case.may_load:
        return "loads"
    if as_command or not reading.refusal:
        wrong = _wrong_commands(material, path, case, is_refused=bool(reading.refusal))
        if wrong:
            return wrong
    return "was executed" if impostors.was_executed(path) else None


def _wrong_commands(material: Material, path: Path, case: Case, *, is_refused: bool) -> str | None:
    """What doesn't hold when commands meet the file."""
    commands = [["train", *TRAIN[1:], "--run", RUN]]
    if case.kind == "model":
        commands = [["info", str(path)], ["info", str(path), "--json"], ["eval", "--model", str(path)]]
    for arguments in commands[:1] if is_refused else commands:
        code, errors = command(arguments, material.folder)
        told = f"{arguments[0]} ended with {code} and {errors[-300:]!r}"
        if "Traceback" in errors or (code and errors.count("\n") != 1):
            return told
        if code not in (_HARMLESS if case.may_load and not is_refused else (4,)):
            return told
    return None


def _clear(material: Material) -> None:
    """Take away what a try left."""
    shutil.rmtree(material.folder / "checkpoints" / RUN, ignore_errors=True)
