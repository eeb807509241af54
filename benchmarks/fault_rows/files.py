"""The rows about a run's files: saves that are killed, lost or refused by the disk; files that are bad."""

import gc
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fault_rows import damage, disks, failing, forks, hostile, kills
from fault_rows.outcome import Outcome
from fault_rows.scene import Scene


@dataclass(frozen=True)
class Scale:
    """How often each fault is tried. operations: of a save, all or so many of them."""

    operations: int
    crashes: int
    flips: int
    damages: int
    impostors: int


_ALL = 10**6
SCALES = {
    "smoke": Scale(operations=6, crashes=20, flips=20, damages=20, impostors=15),
    "ci": Scale(operations=_ALL, crashes=200, flips=500, damages=200, impostors=200),
    "night": Scale(operations=_ALL, crashes=1000, flips=3000, damages=1000, impostors=2000),
}


def rows(scale: str, seed: int, chosen: Callable[[str], bool] = lambda fault: True) -> Iterator[Outcome]:
    """Try every fault whose name is chosen, so often as the scale says."""
    if not hasattr(os, "fork"):
        yield Outcome("faults of files", "", skipped="this system can't fork a process")
        return
    forks.prepare()
    gc.freeze()  # a collection in a fork would copy all that is shared with it
    try:
        with tempfile.TemporaryDirectory(prefix="charrnn-faults-") as name:
            for fault, make in _rows(Path(name).resolve(), SCALES[scale], seed):
                if chosen(fault):
                    yield make()
    finally:
        gc.unfreeze()


def _rows(root: Path, wanted: Scale, seed: int) -> list[tuple[str, Callable[[], Outcome]]]:
    """The table's rows by the fault's name, in its order."""
    places = {name: root / name for name in ("saves", "disks", "hostile")}
    for place in places.values():
        place.mkdir()
    scene = Scene.build(places["saves"])

    def save(fault: str, make: Callable[..., Outcome]) -> tuple[str, Callable[[], Outcome]]:
        return fault, lambda: make(scene, most=wanted.operations, rng=random.Random(seed))

    return [
        save(kills.KILLED, kills.killed_row),
        save(kills.KILLED_CALLS, kills.traced_row),
        (disks.LOST, lambda: disks.lost_row(places["disks"], count=wanted.crashes, rng=random.Random(seed))),
        (damage.FLIPPED, lambda: damage.flipped_row(scene, count=wanted.flips, rng=random.Random(seed))),
        (damage.DAMAGED, lambda: damage.damaged_row(scene, count=wanted.damages, rng=random.Random(seed))),
        (hostile.HOSTILE, lambda: hostile.hostile_row(places["hostile"], count=wanted.impostors, seed=seed)),
        save(failing.FAILING, failing.failing_row),
        save(failing.FAILING_LOG, failing.log_row),
        save(failing.FAILING_CALLS, failing.traced_row),
    ]
