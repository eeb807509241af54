"""Windows of training characters: the text is a ring, cut into lanes anew in each pass.

A pass reads every character once. The ring is cut, from an offset drawn for the pass, into
G contiguous lanes whose lengths differ by at most one; a step reads the next T characters
of each lane. Where a reader stands is two plain numbers, so a checkpoint needs no more.

Letters: N characters, G lanes, T steps in a window.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charrnn.config import Checked, setting
from charrnn.kernels.counters import pass_offset
from charrnn.vocab import Ids
from charrnn.withholding import Withheld

EVERY_LANE = slice(None)
IGNORED = -100  # a target that is not scored, torch's own mark for it


@dataclass(frozen=True)
class Cursor(Checked):
    """Which pass over the text, and how many characters of each lane it has read."""

    pass_index: int = setting(0, 10**15, default=0)
    time: int = setting(0, 10**15, default=0)


@dataclass(frozen=True)
class Step:
    """Which characters one step reads, of a ring of num_chars: from each of starts (G,) on, times first to stop.

    lengths: (G,), of the lanes. num_targets: how many are predicted, in all lanes, also those
    that somebody else reads. starts_pass: the lanes were just cut, so no earlier state belongs to them.
    """

    num_chars: int
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    first: int
    stop: int
    num_targets: int
    starts_pass: bool
    after: Cursor


@dataclass(frozen=True)
class Window:
    """What one step reads: x and targets are (T, G) int64, targets one character ahead.

    Targets past a lane's end are IGNORED.
    """

    x: NDArray[np.int64]
    targets: NDArray[np.int64]


def next_step(
    num_chars: int, cursor: Cursor, *, batch_size: int, seq_len: int, seed: int, lanes: slice = EVERY_LANE
) -> Step:
    """What is read at the cursor of a text of num_chars >= batch_size; the last of a pass may be shorter.

    lanes: those that are read.
    """
    starts, lengths = cut_lanes(
        num_chars, batch_size, offset=pass_offset(num_chars, seed=seed, pass_index=cursor.pass_index)
    )
    longest = int(lengths[0])
    stop = min(cursor.time + seq_len, longest)
    return Step(
        num_chars=num_chars,
        starts=starts[lanes],
        lengths=lengths[lanes],
        first=cursor.time,
        stop=stop,
        num_targets=int((np.minimum(lengths, stop) - cursor.time).sum()),
        starts_pass=cursor.time == 0,
        after=Cursor(cursor.pass_index, stop) if stop < longest else Cursor(cursor.pass_index + 1, 0),
    )


def read_window(ids: Ids | Withheld, step: Step) -> Window:
    """Read a step's characters of the ids (N,); no others are touched."""
    times = np.arange(step.first, step.stop)[:, None]  # (T, 1)
    positions = (step.starts + times) % step.num_chars  # (T, G)
    targets = ids[(positions + 1) % step.num_chars].astype(np.int64)
    return Window(ids[positions].astype(np.int64), np.where(times < step.lengths, targets, IGNORED))


def cut_lanes(num_chars: int, num_lanes: int, *, offset: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut N characters into contiguous lanes, the first N mod G of them one longer.

    Returns starts and lengths, (G,) each; starts may lie past N, where the ring closes.
    """
    length, longer = divmod(num_chars, num_lanes)
    lanes = np.arange(num_lanes)
    return offset + lanes * length + np.minimum(lanes, longer), length + (lanes < longer)
