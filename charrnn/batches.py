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
class Window:
    """What one step reads: x and targets are (T, G) int64, targets one character ahead.

    Targets past a lane's end are IGNORED; num_targets are not. starts_pass: the lanes were just cut, so no
    earlier state belongs to them.
    """

    x: NDArray[np.int64]
    targets: NDArray[np.int64]
    num_targets: int
    starts_pass: bool
    after: Cursor


def read_window(
    ids: Ids | Withheld,
    cursor: Cursor,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    lanes: slice = EVERY_LANE,
) -> Window:
    """Read the window at the cursor; the last one of a pass may be shorter.

    ids: (N,), N >= batch_size; no more of them is touched than is read. lanes: those that are
    read; num_targets is of all.
    """
    num_chars = len(ids)
    starts, lengths = cut_lanes(
        num_chars, batch_size, offset=pass_offset(num_chars, seed=seed, pass_index=cursor.pass_index)
    )
    longest = int(lengths[0])
    stop = min(cursor.time + seq_len, longest)
    times = np.arange(cursor.time, stop)[:, None]  # (T, 1)
    positions = (starts[lanes] + times) % num_chars  # (T, G)
    inside = times < lengths[lanes]
    targets = np.where(inside, ids[(positions + 1) % num_chars].astype(np.int64), IGNORED)
    return Window(
        x=ids[positions].astype(np.int64),
        targets=targets,
        num_targets=int((times < lengths).sum()),
        starts_pass=cursor.time == 0,
        after=Cursor(cursor.pass_index, stop) if stop < longest else Cursor(cursor.pass_index + 1, 0),
    )


def cut_lanes(num_chars: int, num_lanes: int, *, offset: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut N characters into contiguous lanes, the first N mod G of them one longer.

    Returns starts and lengths, (G,) each; starts may lie past N, where the ring closes.
    """
    length, longer = divmod(num_chars, num_lanes)
    lanes = np.arange(num_lanes)
    return offset + lanes * length + np.minimum(lanes, longer), length + (lanes < longer)
