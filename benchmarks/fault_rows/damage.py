"""Files whose bytes are no longer those that were written."""

import random
from collections.abc import Callable
from pathlib import Path

from charrnn.errors import ModelFileError
from charrnn.model.file import load_model, read_tensors
from charrnn.training.folder import Run
from fault_rows.outcome import Outcome
from fault_rows.scene import OLD, OLDEST, Scene

MUST_HOLD = "refused by an error that names the file; a run falls back to the state before it, and says so"
FLIPPED = "one random bit flipped in a model or a state"
DAMAGED = "truncated, extended, blocks zeroed, swapped or moved"
_BLOCKS = (16, 64, 512, 4096)  # bytes
_LARGEST_MORE = 10_000  # bytes after a file's end

Damage = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    """One bit, half of the time in the header, which is the smaller part."""
    header = 8 + int.from_bytes(data[:8], "little")
    bit = rng.randrange(8 * (header if rng.random() < 0.5 else len(data)))
    return _with(data, bit // 8, bytes([data[bit // 8] ^ 1 << bit % 8]))


def truncate(data: bytes, rng: random.Random) -> bytes:
    """The end or the beginning is missing, a little of it or most."""
    lost = min(len(data), rng.choice((1, 2, 8, 64, 512, 4096, rng.randrange(len(data)), len(data))))
    return data[:-lost] if rng.random() < 0.7 else data[lost:]


def extend(data: bytes, rng: random.Random) -> bytes:
    """There is more behind the file, or before it."""
    size = rng.choice((1, 8, 512, rng.randrange(1, _LARGEST_MORE)))
    more = rng.choice((bytes(size), rng.randbytes(size), b"\n" * size, b" " * size, data))
    return data + more if rng.random() < 0.7 else more + data


def zero(data: bytes, rng: random.Random) -> bytes:
    """A block is all zeros, or all ones."""
    start, size = _block(data, rng)
    return _with(data, start, rng.choice((b"\0", b"\xff")) * len(data[start : start + size]))


def swap(data: bytes, rng: random.Random) -> bytes:
    """Two blocks have changed places, or one stands where another belongs."""
    (first, size), second = _block(data, rng), rng.randrange(len(data))
    second = min(second // size * size, len(data) - size)
    one, other = data[first : first + size], data[second : second + size]
    swapped = _with(data, first, other[: len(one)])
    return _with(swapped, second, one[: len(other)]) if rng.random() < 0.7 else swapped


def move(data: bytes, rng: random.Random) -> bytes:
    """A block is missing in the middle, or stands there twice."""
    start, size = _block(data, rng)
    return data[:start] + data[start + size :] if rng.random() < 0.5 else data[: start + size] + data[start:]


def _block(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Where a block starts, and its size."""
    size = rng.choice([size for size in _BLOCKS if size <= len(data)])
    return rng.randrange(0, len(data) - size + 1) // size * size, size


def _with(data: bytes, start: int, part: bytes) -> bytes:
    """Bytes with a part of them replaced."""
    return data[:start] + part + data[start + len(part) :]


def flipped_row(scene: Scene, *, count: int, rng: random.Random) -> Outcome:
    """One bit is wrong."""
    return _damage_files(Outcome(FLIPPED, MUST_HOLD), scene, [flip], count, rng)


def damaged_row(scene: Scene, *, count: int, rng: random.Random) -> Outcome:
    """More is wrong."""
    outcome = Outcome(DAMAGED, MUST_HOLD)
    return _damage_files(outcome, scene, [truncate, extend, zero, swap, move], count, rng)


def _damage_files(outcome: Outcome, scene: Scene, ways: list[Damage], count: int, rng: random.Random) -> Outcome:
    """Damage the model and the newest state in turn, by each way in turn."""
    run = scene.copy()
    for number in range(count):
        way, path = ways[number // 2 % len(ways)], run.state_path(OLD) if number % 2 else run.model_path
        good = scene.states[OLD] if number % 2 else scene.models[0]
        damaged = good
        while damaged == good:  # zeros where there were zeros
            damaged = way(good, rng)
        path.write_bytes(damaged)
        try:
            wrong = _wrong_state(run, path) if number % 2 else _wrong_model(path)
        except Exception as error:  # whatever it is, it isn't ours
            wrong = f"{type(error).__name__}: {error}"
        outcome.note(wrong and f"{way.__name__}, number {number}, {path.name}: {wrong}")
        path.write_bytes(good)
    return outcome


def _wrong_model(path: Path) -> str | None:
    """What doesn't hold for a damaged model."""
    try:
        load_model(path)
    except ModelFileError as error:
        return None if str(error).startswith(f"{path}: ") else f"the error doesn't name the file: {error}"
    return "loads"


def _wrong_state(run: Run, path: Path) -> str | None:
    """What doesn't hold for a damaged newest state."""
    try:
        read_tensors(path, kind="state")
    except ModelFileError as error:
        told = str(error)
    else:
        return "loads"
    saved = run.newest_state()
    if not told.startswith(f"{path}: "):
        return f"the error doesn't name the file: {told}"
    if saved is None or saved.path != run.state_path(OLDEST) or saved.damaged != (told,):
        return f"fell back to {saved and saved.path}, of {saved and saved.damaged}"
    return None
