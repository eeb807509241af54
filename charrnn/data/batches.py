"""Windows of training characters: the text is a ring that each pass cuts into lanes.

A pass reads every character once. The ring is cut, from an offset drawn for the pass, into
G contiguous lanes whose lengths differ by at most one; a step reads the next T characters
of each lane. A cursor is two plain numbers, so a checkpoint needs no more.

A few pieces of the text are withheld from the network, to fit the mixture weights of network and
n-grams. They are spread over the text, or over the end of it whose n-grams are counted: a text
drifts, so a network that lacks only the end would be a poor sample of the final one.

Letters: N characters, G lanes, T steps in a window, K pieces.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charrnn.config import Checked, setting
from charrnn.data.vocab import Ids
from charrnn.kernels.counters import pass_offset

ALL_LANES = slice(None)
IGNORE_INDEX = -100  # a target that is not scored, torch's own mark for it
PIECE_SIZE = 1000  # characters of a piece
MOST_COUNTED = 2_000_000  # characters, at the end of a run, which should be neither long nor large
MOST_DISTINCT = 1 << 14  # characters: of more, most are rare, and their distribution is most of the work
_HELD_PART = 40  # of which one is withheld, of the text
_MOST_PIECES = 50  # pieces
_MOST_LOGITS = 2_000_000  # of all pieces


@dataclass(frozen=True)
class TrainText:
    """ids (N,) without the pieces of PIECE_SIZE characters that begin at starts (K,), as if nothing had been between."""

    ids: Ids
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids) - PIECE_SIZE * len(self.starts)

    def __getitem__(self, places: NDArray[np.int64]) -> Ids:
        """The characters at places in what is left."""
        before = np.searchsorted(self.starts - PIECE_SIZE * np.arange(len(self.starts)), places, side="right")
        found: Ids = self.ids[places + PIECE_SIZE * before]
        return found

    def left(self, first: int) -> Ids:
        """What is left of the text from a place in all of it on, which is in no piece: a copy."""
        pieces = self.starts[self.starts >= first] - first
        return np.delete(self.ids[first:], (pieces[:, None] + np.arange(PIECE_SIZE)).ravel())


def make_train_text(ids: Ids, vocab_size: int) -> TrainText:
    """Choose the pieces, evenly spread; none of a text that is too short for one, or has too many characters."""
    first = max(0, len(ids) - MOST_COUNTED)
    num_counted = len(ids) - first
    count = min(
        num_counted // (_HELD_PART * PIECE_SIZE), _MOST_PIECES, max(1, _MOST_LOGITS // (vocab_size * PIECE_SIZE))
    )
    count *= vocab_size <= MOST_DISTINCT
    middles = first + (2 * np.arange(count) + 1) * num_counted // (2 * max(1, count))
    return TrainText(ids, middles - PIECE_SIZE // 2)


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


def next_step(
    num_chars: int, cursor: Cursor, *, batch_size: int, seq_len: int, seed: int, lanes: slice = ALL_LANES
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


def read_window(ids: Ids | TrainText, step: Step) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read a step's characters from ids (N,): x and targets, (T, G) each, the targets one character ahead.

    Targets past a lane's end are IGNORE_INDEX. No other characters are touched.
    """
    times = np.arange(step.first, step.stop)[:, None]  # (T, 1)
    positions = (step.starts + times) % step.num_chars  # (T, G)
    targets = ids[(positions + 1) % step.num_chars].astype(np.int64)
    return ids[positions].astype(np.int64), np.where(times < step.lengths, targets, IGNORE_INDEX)


def cut_lanes(num_chars: int, num_lanes: int, *, offset: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut N characters into contiguous lanes, the first N mod G of them one longer.

    Returns starts and lengths, (G,) each; starts may lie past N, where the ring closes.
    """
    length, longer = divmod(num_chars, num_lanes)
    lanes = np.arange(num_lanes)
    return offset + lanes * length + np.minimum(lanes, longer), length + (lanes < longer)
