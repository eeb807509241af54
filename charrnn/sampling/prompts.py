"""Prompts: what a text continues, and how many of them are read side by side.

Letters: S prompts, L layers, H hidden size.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from charrnn.config import SampleConfig
from charrnn.kernels.filters import Filters
from charrnn.sampling.engine import Engine, StreamState


class Opening:
    """A prompt, the settings of the texts that continue it, and the network's state once it is read.

    ids: the prompt's, at least one, of which the last is fed when the first character is drawn. filters: those of
    the settings; only streams with the same ones can be drawn together. can_end: whether a text ends before or at
    its length; can_end_early: whether it may end before. state: before the last id, of one stream; None until
    `read_openings`.
    """

    def __init__(self, config: SampleConfig, seed: int, ids: NDArray[np.int64], *, end: int) -> None:
        """end: the id that ends a document, or -1."""
        self.config, self.seed, self.ids = config, seed, ids
        self.filters = Filters(
            config.temperature, config.top_k, config.top_p, config.min_p, config.no_repeat_ngram, end
        )
        self.can_end_early = bool(config.lines or config.stop or end >= 0)
        self.can_end = config.length >= 0 or self.can_end_early
        self.state: StreamState | None = None


def read_openings(engine: Engine, openings: Sequence[Opening]) -> None:
    """Feed all of each prompt but its last character, several prompts side by side.

    Each pass over the weights serves every prompt that has characters left.
    """
    unread = {id(one): one for one in openings if one.state is None}  # several streams may share a prompt
    waiting = sorted(unread.values(), key=lambda one: len(one.ids))
    if not waiting:
        return
    new = [engine.new_state() for _ in waiting]
    states = [np.concatenate(parts, axis=1) for parts in zip(*new, strict=True)]
    position = 0
    for row, opening in enumerate(waiting):  # the shortest first: those after it have as many characters
        last = len(opening.ids) - 1
        if last > position:
            ids = np.stack([one.ids[position:last] for one in waiting[row:]])
            h, c, contexts = (np.ascontiguousarray(part[:, row:]) for part in states)
            engine.read(ids, (h, c, contexts))
            for whole, part in zip(states, (h, c, contexts), strict=True):
                whole[:, row:] = part
            position = last
        h, c, contexts = (part[:, row : row + 1].copy() for part in states)
        opening.state = h, c, contexts
