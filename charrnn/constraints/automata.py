"""Deterministic automata over the ids of a vocabulary: which texts are allowed, and how far they are from their end.

Letters: V vocabulary, C classes of characters, Q states.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import UsageError

FORBIDDEN = -1  # the state after a character that may not follow
UNREACHABLE = 1 << 62  # the distance to an end that no text reaches
_MAX_STATES = 200_000  # of an automaton that two make together


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton over the ids of a vocabulary.

    classes: (V,), the class of each character; characters of one class lead to the same states. transitions: (Q, C),
    the next state or FORBIDDEN. accepting: (Q,), where the text matches.
    """

    classes: NDArray[np.int32]
    transitions: NDArray[np.int32]
    accepting: NDArray[np.bool_]
    start: int = 0

    def read(self, ids: Iterable[int]) -> int:
        """Return the state after some characters, or FORBIDDEN."""
        state = self.start
        for char in ids:
            state = FORBIDDEN if state == FORBIDDEN else int(self.transitions[state, self.classes[char]])
        return state


def count_to(number: int, vocab_size: int) -> Automaton:
    """Make the automaton that accepts texts of at least that many characters."""
    if number >= _MAX_STATES:
        raise UsageError(f"--min-length must be below {_MAX_STATES:,}, not {number:,}")
    after = np.minimum(np.arange(1, number + 2), number)
    return Automaton(np.zeros(vocab_size, np.int32), after[:, None].astype(np.int32), np.arange(number + 1) == number)


def repeat_lines(line: Automaton, newline: int) -> Automaton:
    """Make the automaton of texts whose lines are accepted; a text may end at the end of a line or after a newline."""
    first_line, next_line = 0, len(line.transitions)
    after_newline = np.where(line.accepting, next_line, FORBIDDEN)
    transitions = np.column_stack([line.transitions, after_newline])
    transitions = np.concatenate([transitions, transitions[first_line : first_line + 1]])
    return replace(
        _with_class(line, newline), transitions=transitions.astype(np.int32), accepting=np.append(line.accepting, True)
    )


def add_end(automaton: Automaton, end: int, complete: int) -> Automaton:
    """Let the end of a document, END, follow where a text is accepted, and lead to the state `complete`."""
    after_end = np.where(automaton.accepting, complete, FORBIDDEN)
    transitions = np.column_stack([automaton.transitions, after_end]).astype(np.int32)
    return replace(_with_class(automaton, end), transitions=transitions)


def _with_class(automaton: Automaton, char: int) -> Automaton:
    """Give a character a class of its own, the last one."""
    classes = automaton.classes.copy()
    classes[char] = automaton.transitions.shape[1]
    return replace(automaton, classes=classes)


def measure_distances(transitions: NDArray[np.int32], is_end: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the characters from each state to the nearest end, UNREACHABLE if no text reaches one: (Q,)."""
    sources, _ = np.nonzero(transitions != FORBIDDEN)
    targets = transitions[transitions != FORBIDDEN]
    order = np.argsort(targets, kind="stable")
    sources, firsts = sources[order], np.searchsorted(targets[order], np.arange(len(transitions) + 1))
    distance = np.where(is_end, 0, UNREACHABLE)
    reached, steps = np.flatnonzero(is_end), 0
    while len(reached):
        steps += 1
        before = np.unique(np.concatenate([sources[firsts[state] : firsts[state + 1]] for state in reached.tolist()]))
        reached = before[distance[before] == UNREACHABLE]
        distance[reached] = steps
    return distance


def intersect(one: Automaton, other: Automaton) -> Automaton:
    """Make the automaton that accepts what both accept. Raises UsageError if it takes too many states."""
    pairs, classes = np.unique(np.stack([one.classes, other.classes]), axis=1, return_inverse=True)
    numbers = {(one.start, other.start): 0}
    queue, rows = [(one.start, other.start)], []
    for a, b in queue:  # grows
        row = np.full(pairs.shape[1], FORBIDDEN, np.int32)
        afters = zip(one.transitions[a, pairs[0]].tolist(), other.transitions[b, pairs[1]].tolist(), strict=True)
        for index, after in enumerate(afters):
            if FORBIDDEN in after:
                continue
            if after not in numbers:
                numbers[after] = len(queue)
                queue.append(after)
            row[index] = numbers[after]
        rows.append(row)
        if len(queue) > _MAX_STATES:
            raise UsageError(f"the constraints take more than {_MAX_STATES:,} states together; use simpler ones")
    accepting = [bool(one.accepting[a] and other.accepting[b]) for a, b in queue]
    return Automaton(classes.reshape(-1).astype(np.int32), np.stack(rows), np.array(accepting))
