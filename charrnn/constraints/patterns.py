"""Regular expressions as deterministic automata over a model's vocabulary.

The standard library parses the pattern and says which characters each of its sets has, so a pattern means what it
means to Python's re.fullmatch. A pattern has a position for each set of characters in it; positions and what may
follow each are the pattern's automaton (Glushkov 1961), and sets of them are the states of the deterministic one
(Rabin & Scott 1959). Numbers whose bits stand for positions hold such sets.

In a model of bytes, a set of characters becomes sequences of sets of bytes, those of UTF-8.

Letters: V vocabulary, C classes of characters, Q states.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from re import _parser  # type: ignore[attr-defined]  # the one part of the library that shows what a pattern consists of
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.constraints.automata import FORBIDDEN, Automaton
from charrnn.data.vocab import Vocab
from charrnn.errors import UsageError
from charrnn.text.characters import SYMBOLS, one_line

MAX_STATES = 10_000
_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_REFUSED = {
    "ASSERT": "look-around is",
    "ASSERT_NOT": "look-around is",
    "GROUPREF": "a back reference is",
    "GROUPREF_EXISTS": "a condition is",
    "ATOMIC_GROUP": "an atomic group is",
    "POSSESSIVE_REPEAT": "possessive repetition is",
}
_SET_FLAGS = re.IGNORECASE | re.DOTALL | re.ASCII  # flags that change which characters a set has

Members = NDArray[np.bool_]  # (V,), the characters of a set


@dataclass(frozen=True)
class _Part:
    """A part of a pattern: whether it matches the empty text, and the positions that may come first and last."""

    is_optional: bool
    first: int = 0
    last: int = 0


_EMPTY = _Part(is_optional=True)


def compile_pattern(pattern: str, vocab: Vocab, *, one_line: bool = False) -> Automaton:
    """Turn a regular expression that must match a whole text into an automaton.

    one_line: whether the text is a line, so that no set has the newline. ^ at the start and $ at the end do nothing.
    Raises UsageError for a pattern that is invalid, has a feature that no automaton has, or takes too many states.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sets that may change their meaning some day
            tree = _parser.parse(pattern)
        builder = _Builder(pattern, vocab, SYMBOLS + ("\n" if one_line else ""))
        whole = builder.sequence(tree, tree.state.flags, (True, True))
    except RecursionError:
        raise UsageError(f"{option_and_value('--match', pattern)}: too deeply nested") from None
    except (re.error, OverflowError) as error:
        raise UsageError(f"{option_and_value('--match', pattern)} is not a regular expression: {error}") from None
    return builder.determine(whole)


def option_and_value(option: str, value: str) -> str:
    """Name an option and its value in a message; a long value is cut."""
    shown = one_line(value)
    return f"{option} '{shown if len(shown) <= 60 else shown[:60] + '…'}'"


def _bits(number: int) -> Iterator[int]:
    """Yield the places of a number's bits that are set."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


@dataclass
class _Builder:
    """Builds the automaton of one pattern.

    excluded: characters that no set has. sets: the distinct sets of ids; positions: the set of each position;
    follow: the positions that may follow each.
    """

    pattern: str
    vocab: Vocab
    excluded: str
    sets: list[Members] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    follow: list[int] = field(default_factory=list)
    _numbers: dict[bytes, int] = field(default_factory=dict)
    _paths: dict[tuple[str, int], list[list[int]]] = field(default_factory=dict)

    def sequence(self, items: Any, flags: int, edges: tuple[bool, bool]) -> _Part:
        """Add the parts of a sequence. edges: whether it starts and ends the pattern, where ^ and $ may stand."""
        whole = _EMPTY
        for index, (kind, value) in enumerate(items):
            at = edges[0] and index == 0, edges[1] and index == len(items) - 1
            whole = self._join(whole, self._item(str(kind), value, flags, at))
        return whole

    def _item(self, kind: str, value: Any, flags: int, edges: tuple[bool, bool]) -> _Part:
        if kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            is_one = kind == "LITERAL" and not flags & re.IGNORECASE
            return self._characters(_class_text(kind, value), flags, chr(value) if is_one else "")
        if kind == "SUBPATTERN":
            _, added, removed, items = value
            return self.sequence(items, (flags | added) & ~removed, edges)
        if kind == "BRANCH":
            return self._choose([self.sequence(items, flags, edges) for items in value[1]])
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, repeated = value
            return self._repeat(low, high, repeated, flags)
        if kind == "AT":
            name = str(value)
            if (edges[0] and name.startswith("AT_BEGINNING")) or (edges[1] and name.startswith("AT_END")):
                return _EMPTY
            problem = "^, $ and \\b inside a pattern are"
        else:
            problem = _REFUSED.get(kind, f"{kind.lower()} is")
        raise UsageError(f"{option_and_value('--match', self.pattern)}: {problem} not supported")

    def _characters(self, class_text: str, flags: int, only: str) -> _Part:
        """Add a set of characters: one position, or in a model of bytes, positions for the bytes of UTF-8.

        only: the one character that the set has, if that is known, which saves a search.
        """
        key = class_text, flags & int(_SET_FLAGS)
        if key not in self._paths:
            self._paths[key] = [list(map(self._number, path)) for path in self._members(*key, only)]
        choices = []
        for path in self._paths[key]:
            whole = _EMPTY
            for number in path:
                whole = self._join(whole, self._add_position(number))
            choices.append(whole)
        return self._choose(choices)

    def _members(self, class_text: str, flags: int, only: str) -> list[list[Members]]:
        """Return the sequences of sets of ids that a set of characters stands for."""
        found = "".join(re.findall(class_text, only or self._candidates, flags))
        if not self.vocab.has_bytes:
            return [[self._members_of(found)]]
        return [list(map(self._members_of, path)) for rows in _utf8_rows(found) for path in _cover(rows)]

    def _members_of(self, chars: str) -> Members:
        found = set(chars) - set(self.excluded)
        return np.array([char in found for char in self.vocab.chars])

    @cached_property
    def _candidates(self) -> str:
        """All characters that a set may have."""
        chars = "".join(char for char in self.vocab.chars if char not in self.excluded)
        if not self.vocab.has_bytes:
            return chars
        is_known = np.zeros(256, np.bool_)
        is_known[list(chars.encode("ascii", "surrogateescape"))] = True
        everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
        return "".join(rows[is_known[rows].all(axis=1)].tobytes().decode() for rows in _utf8_rows(everything))

    def _number(self, members: Members) -> int:
        """Return the number of a set."""
        number = self._numbers.setdefault(members.tobytes(), len(self.sets))
        if number == len(self.sets):
            self.sets.append(members)
        return number

    def _add_position(self, number: int) -> _Part:
        if len(self.positions) >= MAX_STATES:
            raise self._too_large()
        place = 1 << len(self.positions)
        self.positions.append(number)
        self.follow.append(0)
        return _Part(is_optional=False, first=place, last=place)

    def _too_large(self) -> UsageError:
        return UsageError(
            f"{option_and_value('--match', self.pattern)} takes more than {MAX_STATES:,} states; use a simpler pattern"
        )

    def _join(self, left: _Part, right: _Part) -> _Part:
        """Let one part follow another."""
        for place in _bits(left.last):
            self.follow[place] |= right.first
        return _Part(
            left.is_optional and right.is_optional,
            left.first | (right.first if left.is_optional else 0),
            right.last | (left.last if right.is_optional else 0),
        )

    def _choose(self, parts: list[_Part]) -> _Part:
        """Let one of several parts stand at a place; of none, nothing can."""
        first = last = 0
        for part in parts:
            first, last = first | part.first, last | part.last
        return _Part(any(part.is_optional for part in parts), first, last)

    def _repeat(self, low: int, high: Any, items: Any, flags: int) -> _Part:
        """Repeat a sequence low…high times: X…X(X(X)?)? or X…XX*, in copies."""
        is_endless = high == _parser.MAXREPEAT
        rest, num_copies = _EMPTY, max(low, 1) if is_endless else high
        for number in range(num_copies, 0, -1):
            part = self.sequence(items, flags, (False, False))
            if is_endless and number == num_copies:
                for place in _bits(part.last):
                    self.follow[place] |= part.first
            rest = self._join(part, rest)
            if number > low:
                rest = _Part(is_optional=True, first=rest.first, last=rest.last)
            if not part.first:  # it matches the empty text at most, however often
                break
        return rest

    def determine(self, whole: _Part) -> Automaton:
        """Turn sets of positions into states. A state is what may follow, and whether the text may end."""
        sets = np.array(self.sets, np.bool_).reshape(-1, len(self.vocab))
        columns, classes = np.unique(sets, axis=1, return_inverse=True)
        has_class = columns[np.array(self.positions, np.int64)].T  # (C, positions)
        members = [int.from_bytes(np.packbits(row, bitorder="little").tobytes(), "little") for row in has_class]
        start = whole.first, whole.is_optional
        numbers, queue, rows = {start: 0}, [start], []
        after_positions: dict[int, tuple[int, bool]] = {}
        for possible, _ in queue:  # grows
            row = []
            for places in [possible & those for those in members]:
                if places and places not in after_positions:
                    reached = 0
                    for place in _bits(places):
                        reached |= self.follow[place]
                    after_positions[places] = reached, bool(places & whole.last)
                after = after_positions.get(places)
                if after is not None and after not in numbers:
                    numbers[after] = len(queue)
                    queue.append(after)
                row.append(FORBIDDEN if after is None else numbers[after])
            rows.append(row)
            if len(queue) > MAX_STATES:
                raise self._too_large()
        accepting = np.array([is_accepting for _, is_accepting in queue])
        transitions = np.array(rows, np.int32).reshape(len(queue), len(members))
        return Automaton(classes.reshape(-1).astype(np.int32), transitions, accepting)


def _class_text(kind: str, value: Any) -> str:
    """Write a set of characters as a pattern again."""
    if kind == "ANY":
        return "."
    if kind in ("LITERAL", "NOT_LITERAL"):
        return f"[{'^' * (kind == 'NOT_LITERAL')}{re.escape(chr(value))}]"
    words = []
    for name, part in value:
        if str(name) == "RANGE":
            words.append(f"{re.escape(chr(part[0]))}-{re.escape(chr(part[1]))}")
        elif str(name) == "CATEGORY":
            words.append(_CATEGORIES[str(part)])
        else:
            words.append("^" if str(name) == "NEGATE" else re.escape(chr(part)))
    return f"[{''.join(words)}]"


def _utf8_rows(text: str) -> list[NDArray[np.uint8]]:
    """Return the UTF-8 of characters in order, those that take 1, 2, 3 and 4 bytes: (N, bytes) each."""
    points, rows = np.frombuffer(text.encode("utf-32-le"), np.uint32), []
    for size, (low, high) in enumerate(((0, 0x80), (0x80, 0x800), (0x800, 0x10000), (0x10000, 0x110000)), start=1):
        encoded = points[(low <= points) & (points < high)].tobytes().decode("utf-32-le").encode()
        rows.append(np.frombuffer(encoded, np.uint8).reshape(-1, size))
    return rows


def _cover(rows: NDArray[np.uint8]) -> list[list[str]]:
    """Cover byte sequences of one length, (N, bytes) and sorted, by sequences of sets of bytes.

    A set is a text of the characters that stand for its bytes, as in Vocab.to_chars.
    """
    if rows.shape[1] == 1:
        return [[rows[:, 0].tobytes().decode("ascii", "surrogateescape")]] if len(rows) > 0 else []
    firsts_of: dict[bytes, bytes] = {}
    rests: dict[bytes, NDArray[np.uint8]] = {}
    for first in np.unique(rows[:, 0]).tolist():
        low, high = np.searchsorted(rows[:, 0], first), np.searchsorted(rows[:, 0], first, side="right")
        rest = rows[low:high, 1:]
        firsts_of[rest.tobytes()] = firsts_of.get(rest.tobytes(), b"") + bytes([first])
        rests[rest.tobytes()] = rest
    return [
        [firsts.decode("ascii", "surrogateescape"), *path]
        for key, firsts in firsts_of.items()
        for path in _cover(rests[key])
    ]
