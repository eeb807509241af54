"""The vocabulary: which characters a model knows, in which order.

A character is a Unicode code point. Only the sorted string of them is stored; everything
else follows from it.

    >>> vocab = Vocab.of("hello\n")
    >>> vocab.chars
    '\nehlo'
    >>> vocab.encode("hole").tolist()
    [2, 4, 3, 1]
    >>> vocab.decode([2, 4, 3, 1])
    'hole'

No text holds a surrogate, so some of them stand for what is no character: END for the end of
a document, UNKNOWN for the characters that are too rare to have an id, and, where a text is
read as bytes, U+DC80 to U+DCFF for bytes that aren't ASCII, as Python's `surrogateescape` has it.
"""

import codecs
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import UnknownCharacterError

Ids = NDArray[Any]  # uint8, uint16 or uint32, whatever the vocabulary needs
END, UNKNOWN = "\udc00", "\udc01"  # low ones: JSON would read a high and a low one as a pair
_NUM_POINTS = 0x110000  # of Unicode
_PIECE = 1 << 20  # characters


@dataclass(frozen=True)
class Vocab:
    """Distinct characters in code-point order; a character's id is its place."""

    chars: str

    def __post_init__(self) -> None:
        small = isinstance(self.chars, str) and len(self.chars) <= _NUM_POINTS
        if not small or (self._points[1:] <= self._points[:-1]).any():
            raise ValueError("a vocabulary is a string of characters, sorted and distinct")

    @classmethod
    def of(cls, text: str) -> "Vocab":
        """The vocabulary of all characters that occur in the text."""
        return cls.of_counts(count_points([text]))

    @classmethod
    def of_counts(cls, counts: NDArray[np.int64], *, min_count: int = 1, known: str = "") -> "Vocab":
        """The vocabulary of a text whose code points were counted; rarer ones than min_count become UNKNOWN.

        known: characters that it has anyway.
        """
        ends, rare = ord(END), ord(UNKNOWN)
        has = counts >= min_count
        has[ends] = counts[ends] > 0
        has[_code_points(known)] = True
        has[rare] |= (counts[~has] > 0).any()
        return cls("".join(map(chr, np.flatnonzero(has).tolist())))

    def __len__(self) -> int:
        return len(self.chars)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the characters: equal exactly when the vocabularies are."""
        return hashlib.sha256(self.chars.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def _points(self) -> NDArray[np.uint32]:
        return _code_points(self.chars)

    @cached_property
    def _places(self) -> NDArray[np.int32]:
        """The id of every code point, -1 where it has none."""
        places = np.full(_NUM_POINTS, -1, np.int32)
        places[self._points] = np.arange(len(self))
        return places

    def id_of(self, char: str) -> int | None:
        """The id of a character, or None."""
        place = int(self._places[ord(char)])
        return None if place < 0 else place

    @cached_property
    def of_bytes(self) -> bool:
        """Whether its characters spell bytes, as far as that makes a difference."""
        return any("\udc80" <= char <= "\udcff" for char in self.chars)

    def spell(self, text: str) -> str:
        """A person's text in the characters that this vocabulary has: itself, or its bytes in UTF-8."""
        return spell_bytes(text) if self.of_bytes else text

    def reader(self) -> Callable[[str, bool], str]:
        """A function that turns drawn text back into a person's, piece by piece; its second argument marks the last.

        Bytes are taken for UTF-8, and what isn't is replaced; half a character waits for the rest.
        """
        if not self.of_bytes:
            return lambda piece, _: piece
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda piece, last: decoder.decode(piece.encode("ascii", "surrogateescape"), last)

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The narrowest type that holds every id."""
        return np.uint8 if len(self) <= 256 else np.uint16 if len(self) <= 65536 else np.uint32

    def encode(self, text: str) -> Ids:
        """Turn text into ids, (len(text),) of `dtype`.

        Raises UnknownCharacterError, which names the first character that has no id, unless
        there is one for those.
        """
        ids, start = np.empty(len(text), self.dtype), 0
        for points in _in_pieces(text):
            places = self._places[points]
            unknown = places < 0
            if unknown.any() and UNKNOWN in self.chars:
                places[unknown] = self.id_of(UNKNOWN)
            elif unknown.any():
                raise UnknownCharacterError(self._explain(text, start + int(np.argmax(unknown))))
            ids[start : start + len(points)] = places
            start += len(points)
        return ids

    def encode_known(self, text: str) -> tuple[Ids, dict[str, int]]:
        """Encode what is in the vocabulary; count the rest by character, most frequent first.

        Those are left out, or UNKNOWN where the vocabulary has it.
        """
        found, missing = [np.empty(0, self.dtype)], Counter[str]()
        for points in _in_pieces(text):
            places = self._places[points]
            missing.update(map(chr, points[places < 0].tolist()))
            if UNKNOWN in self.chars:
                places[places < 0] = self.id_of(UNKNOWN)
            found.append(places[places >= 0].astype(self.dtype))
        return np.concatenate(found), dict(missing.most_common())

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Turn ids back into text."""
        return self._points[np.asarray(ids, np.int64)].tobytes().decode("utf-32-le", "surrogatepass")

    def _explain(self, text: str, index: int) -> str:
        message = f"the model does not know {describe(text[index])}, character {index + 1} of the text"
        for form in ("NFC", "NFD", "NFKC"):
            if (self._places[_code_points(unicodedata.normalize(form, text))] >= 0).all():
                return f"{message}; it knows the text in the Unicode normal form {form}, so convert it to that"
        return message


def spell_bytes(text: str) -> str:
    """A text's bytes in UTF-8, one character each."""
    return text.encode("utf-8", "surrogateescape").decode("ascii", "surrogateescape")


def count_points(pieces: Iterable[str]) -> NDArray[np.int64]:
    """How often each code point occurs in a text that comes in pieces: (0x110000,)."""
    counts = np.zeros(_NUM_POINTS, np.int64)
    for piece in pieces:
        for points in _in_pieces(piece):
            found = np.bincount(points)
            counts[: len(found)] += found
    return counts


def _in_pieces(text: str) -> Iterator[NDArray[Any]]:
    """The code points of a text, a piece at a time: there are up to eight bytes of them a character."""
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        yield np.frombuffer(piece.encode("ascii"), np.uint8) if piece.isascii() else _code_points(piece)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def describe(char: str) -> str:
    """Name a character for a message, as in U+00E9 'é'."""
    return f"U+{ord(char):04X} {char!r}"
