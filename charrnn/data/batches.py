"""Windows of training characters: each pass cuts the text, taken as a ring, into lanes.

A pass reads every character once. It cuts the ring, starting at an offset drawn for that pass,
into G contiguous lanes whose lengths differ by at most one; a step reads the next T characters
of each lane. A cursor is two integers, so a checkpoint needs to store nothing else.

`TrainText` withholds a few pieces of the text from the network; they serve to fit the mixture
weights of network and n-grams. The pieces are spread evenly over the last part of the text, because
texts change along their length: a network that has not seen the end of a text would be a poor
stand-in for the final one.

Letters: N characters, G lanes, T steps in a window, K pieces.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charrnn.config import Checked, setting
from charrnn.counters import pass_offset
from charrnn.data.vocab import Ids

ALL_LANES = slice(None)
IGNORE_INDEX = -100  # a target that isn't scored; PyTorch's default for this
PIECE_SIZE = 1000  # characters in a withheld piece
LAST_PART = 2_000_000  # characters at the end of the text, among which pieces are withheld
_WITHHELD_RATIO = 40  # one character in this many is withheld
_MAX_PIECES = 50
_MAX_LOGITS = 2_000_000  # of all withheld characters together


@dataclass(frozen=True)
class TrainText:
    """ids (N,) without the pieces of PIECE_SIZE characters at withheld_starts (K,); the rest is joined without gaps."""

    ids: Ids
    withheld_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids) - PIECE_SIZE * len(self.withheld_starts)

    def __getitem__(self, positions: NDArray[np.int64]) -> Ids:
        """Return the characters at these positions of the remaining text."""
        places = self.withheld_starts - PIECE_SIZE * np.arange(len(self.withheld_starts))  # in the remaining text
        num_before = np.searchsorted(places, positions, side="right")
        found: Ids = self.ids[positions + PIECE_SIZE * num_before]
        return found

    def remaining_ids(self, start: int) -> Ids:
        """Copy the remaining characters of ids[start:]. start: not inside a piece."""
        pieces = self.withheld_starts[self.withheld_starts >= start] - start
        return np.delete(self.ids[start:], (pieces[:, None] + np.arange(PIECE_SIZE)).ravel())


def make_train_text(ids: Ids, vocab_size: int) -> TrainText:
    """Choose evenly spread pieces to withhold: none if the text is too short."""
    start = max(0, len(ids) - LAST_PART)
    num_last = len(ids) - start
    most = max(1, _MAX_LOGITS // (vocab_size * PIECE_SIZE))
    num_pieces = min(num_last // (_WITHHELD_RATIO * PIECE_SIZE), _MAX_PIECES, most)
    middles = start + (2 * np.arange(num_pieces) + 1) * num_last // (2 * max(1, num_pieces))
    return TrainText(ids, middles - PIECE_SIZE // 2)


@dataclass(frozen=True)
class Cursor(Checked):
    """A position in training: the pass over the text, and the number of characters read of each lane."""

    pass_index: int = setting(0, 10**15, default=0)
    time: int = setting(0, 10**15, default=0)


@dataclass(frozen=True)
class Step:
    """What one step reads of a ring of num_chars characters: times first to stop of the lanes at starts (G,).

    lengths: (G,), of the lanes. num_targets: the number of characters predicted in all lanes,
    including lanes that other processes read. starts_pass: whether the lanes were cut just
    before this step, so that states of earlier steps don't belong to them.
    """

    num_chars: int
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    first: int
    stop: int
    num_targets: int
    starts_pass: bool
    next_cursor: Cursor


def next_step(
    num_chars: int, cursor: Cursor, *, batch_size: int, seq_len: int, seed: int, lanes: slice = ALL_LANES
) -> Step:
    """Compute the step at the cursor; the last one of a pass may be shorter.

    num_chars: at least batch_size. lanes: the lanes to read.
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
        next_cursor=Cursor(cursor.pass_index, stop) if stop < longest else Cursor(cursor.pass_index + 1, 0),
    )


def read_window(ids: Ids | TrainText, step: Step) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read a step's characters from ids (N,): x and targets, (T, G) each, the targets one character ahead.

    Targets past a lane's end are IGNORE_INDEX. No other characters are read.
    """
    times = np.arange(step.first, step.stop)[:, None]  # (T, 1)
    positions = (step.starts + times) % step.num_chars  # (T, G)
    targets = ids[(positions + 1) % step.num_chars].astype(np.int64)
    return ids[positions].astype(np.int64), np.where(times < step.lengths, targets, IGNORE_INDEX)


def cut_lanes(num_chars: int, num_lanes: int, *, offset: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut N characters into contiguous lanes, the first N mod G of them one character longer.

    Returns starts and lengths, (G,) each; starts may exceed N, where the ring wraps around.
    """
    length, num_longer = divmod(num_chars, num_lanes)
    lanes = np.arange(num_lanes)
    return offset + lanes * length + np.minimum(lanes, num_longer), length + (lanes < num_longer)
