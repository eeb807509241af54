"""The vocabulary: which characters a model knows, in which order.

A character is a Unicode code point. Only the sorted string of them is stored; everything
else follows from it.

    >>> vocab = Vocab.of("hello\\n")
    >>> vocab.chars
    '\\nehlo'
    >>> vocab.encode("hole").tolist()
    [2, 4, 3, 1]
    >>> vocab.decode([2, 4, 3, 1])
    'hole'
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import UnknownCharacterError

Ids = NDArray[Any]  # uint8, uint16 or uint32, whatever the vocabulary needs

_NUM_POINTS = 0x110000  # of Unicode
_PIECE = 1 << 20  # characters


@dataclass(frozen=True)
class Vocab:
    """Distinct characters in code-point order; a character's id is its place."""

    chars: str

    def __post_init__(self) -> None:
        if not isinstance(self.chars, str) or list(self.chars) != sorted(set(self.chars)):
            raise ValueError("a vocabulary is a string of characters, sorted and distinct")

    @classmethod
    def of(cls, text: str) -> "Vocab":
        """The vocabulary of all characters that occur in the text."""
        occurs = np.zeros(_NUM_POINTS, np.bool_)
        for points in _in_pieces(text):
            occurs[points] = True
        return cls("".join(map(chr, np.flatnonzero(occurs).tolist())))

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

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The narrowest type that holds every id."""
        return np.uint8 if len(self) <= 256 else np.uint16 if len(self) <= 65536 else np.uint32

    def encode(self, text: str) -> Ids:
        """Turn text into ids, (len(text),) of `dtype`.

        Raises UnknownCharacterError, which names the first character that has no id.
        """
        ids, start = np.empty(len(text), self.dtype), 0
        for points in _in_pieces(text):
            places = self._places[points]
            unknown = places < 0
            if unknown.any():
                raise UnknownCharacterError(self._explain(text, start + int(np.argmax(unknown))))
            ids[start : start + len(points)] = places
            start += len(points)
        return ids

    def encode_known(self, text: str) -> tuple[Ids, dict[str, int]]:
        """Encode what is in the vocabulary; count the rest by character, most frequent first."""
        found, missing = [np.empty(0, self.dtype)], Counter[str]()
        for points in _in_pieces(text):
            places = self._places[points]
            found.append(places[places >= 0].astype(self.dtype))
            missing.update(map(chr, points[places < 0].tolist()))
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


def _in_pieces(text: str) -> Iterator[NDArray[np.uint32]]:
    """The code points of a text, a piece at a time: there are four to eight bytes of them a character."""
    for start in range(0, len(text), _PIECE):
        yield _code_points(text[start : start + _PIECE])


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def describe(char: str) -> str:
    """Name a character for a message, as in U+00E9 'é'."""
    return f"U+{ord(char):04X} {char!r}"
