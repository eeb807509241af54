"""Prompts: what a text continues, and how many of them are read side by side.

Letters: S prompts, L layers, H hidden size.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from charrnn.config import RESAMPLE, SampleConfig
from charrnn.constraints.guide import Guide
from charrnn.errors import UsageError
from charrnn.kernels.filters import COMPLETE, Constraints, Filters
from charrnn.kernels.ngrams import Ints, Mixture
from charrnn.model.ngrams import find_contexts, new_contexts
from charrnn.sampling.engine import Engine, StreamState


class Opening:
    """A prompt, the settings of the texts that continue it, and the network's state once it is read.

    ids: the prompt's, at least one, of which the last is fed when the first character is drawn. filters: those of
    the settings; constraints, start: what the texts must satisfy, and the state of their automaton after the prompt;
    num_candidates: how many texts are drawn to choose one from. ends: whether its texts end; ends_early: whether they
    may end before their length. prefix: the ids that n-grams and the repeat guard see before a text, with a label only
    those from LABEL_END on. state: the network's before the last id, of one stream; None until `read_openings`.
    """

    def __init__(
        self,
        config: SampleConfig,
        seed: int,
        ids: NDArray[np.int64],
        filters: Filters,
        guide: Guide | None,
        *,
        num_before: int,
    ) -> None:
        """Prepare a prompt that has not been read.

        config: with the label of the texts, if they have one. num_before: how many ids precede the texts, which are
        the end of another document and the label. Raises UsageError for candidates that would be endless.
        """
        self.config, self.seed, self.ids, self.filters = config, seed, ids, filters
        documents = filters.end_id >= 0
        self.ends, self.ends_early = config.ends(documents=documents), config.ends_early(documents=documents)
        self.prefix = ids if config.label is None else ids[num_before - 1 :]
        self.constraints: Constraints | None = None if guide is None else guide.constraints
        self.start = COMPLETE if guide is None else guide.start
        self.num_candidates = config.resample or 1
        if config.resample is None and guide is not None and config.temperature > 0 and self.ends:
            self.num_candidates = RESAMPLE
        if self.num_candidates > 1 and not self.ends:
            raise UsageError("--resample chooses among whole texts, so give them an end: --length, --lines or --stop")
        self.state: StreamState | None = None

    @property
    def label(self) -> str | None:
        """The label of the texts, which the ids begin with."""
        return self.config.label

    @property
    def has_automaton(self) -> bool:
        """Whether an automaton says where a text may end."""
        return self.constraints is not None and len(self.constraints.transitions) > 1

    def remembered(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a copy of the characters so far that decide what may follow: for the repeat guard, all."""
        return ids.copy() if self.config.no_repeat_ngram else ids[-max(1, self.config.no_copy - 1) :].copy()

    def can_join(self, other: "Opening") -> bool:
        """Return whether the kernels can draw streams of both together."""
        one, two = self.constraints, other.constraints
        if one is None or two is None:
            return one is two and self.filters == other.filters
        is_alike = one.transitions is two.transitions and one.positions is two.positions
        return is_alike and self.filters == other.filters


def contexts_of(mixture: Mixture, prefix: NDArray[np.int64]) -> Ints:
    """Return the n-gram contexts before the last character of a prefix, which nothing precedes: (order,)."""
    if len(prefix) == 1:
        return new_contexts(mixture)
    found: Ints = find_contexts(mixture, prefix[-1:], context=prefix[:-1])[0]
    return found


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
        if opening.label is not None:  # n-grams do not reach back into it
            contexts[0, 0] = contexts_of(engine.mixture, opening.prefix)
        opening.state = h, c, contexts
