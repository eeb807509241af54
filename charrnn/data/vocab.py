r"""The vocabulary: the characters a model knows, in code-point order.

A character is a Unicode code point. A vocabulary stores only the sorted string of its
characters; everything else is derived from that string.

    >>> vocab = Vocab.from_text("hello\n")
    >>> vocab.chars
    '\nehlo'
    >>> vocab.encode("hole").tolist()
    [2, 4, 3, 1]
    >>> vocab.decode([2, 4, 3, 1])
    'hole'

Decoded text contains no surrogates, so some of them have a special meaning: END marks the end
of a document, LABEL_END the end of its label, UNKNOWN replaces characters too rare to have an id, and
U+DC80 to U+DCFF stand for bytes that aren't ASCII (as in Python's `surrogateescape`) when a text is
read as bytes.
"""

import codecs
import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import UnknownCharacterError
from charrnn.text.characters import END, LABEL_END, UNKNOWN, bytes_as_chars, describe

Ids = NDArray[Any]  # uint8, uint16 or uint32, depending on the size of the vocabulary
UnknownChars = NDArray[Any]  # of UNKNOWN_CHAR
UNKNOWN_CHAR = np.dtype([("place", np.int64), ("point", np.uint32)])  # see Vocab.encode_around
_NUM_POINTS = 0x110000  # code points in Unicode
_PIECE = 1 << 20  # characters


@dataclass(frozen=True)
class Vocab:
    """Distinct characters in code-point order; a character's id is its index."""

    chars: str

    def __post_init__(self) -> None:
        is_valid = isinstance(self.chars, str) and len(self.chars) <= _NUM_POINTS
        if not is_valid or (self._points[1:] <= self._points[:-1]).any():
            raise ValueError("a vocabulary is a string of characters, sorted and distinct")

    @classmethod
    def from_text(cls, text: str) -> "Vocab":
        """Collect the characters of a text."""
        return cls.from_counts(count_points([text]))

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64], *, min_count: int = 1, known: str = "") -> "Vocab":
        """Select the characters that occur at least min_count times; UNKNOWN replaces the others.

        counts: (0x110000,), the number of times each code point occurs. known: characters that are
        always included. END and LABEL_END are included if they occur at all.
        """
        unknown = ord(UNKNOWN)
        included = counts >= min_count
        for symbol in map(ord, (END, LABEL_END)):
            included[symbol] = counts[symbol] > 0
        included[_code_points(known)] = True
        included[unknown] |= ((counts > 0) & ~included).any()
        return cls("".join(map(chr, np.flatnonzero(included).tolist())))

    def __len__(self) -> int:
        return len(self.chars)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the characters: equal if and only if the vocabularies are equal."""
        return hashlib.sha256(self.chars.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def _points(self) -> NDArray[np.uint32]:
        return _code_points(self.chars)

    @cached_property
    def _id_table(self) -> NDArray[np.int32]:
        """(0x110000,): the id of each code point, or -1."""
        table = np.full(_NUM_POINTS, -1, np.int32)
        table[self._points] = np.arange(len(self))
        return table

    def id_of(self, char: str) -> int | None:
        """Return a character's id, or None if it has none."""
        found = int(self._id_table[ord(char)])
        return None if found < 0 else found

    @cached_property
    def has_bytes(self) -> bool:
        """Whether some characters stand for bytes that aren't ASCII."""
        return any("\udc80" <= char <= "\udcff" for char in self.chars)

    @property
    def unit(self) -> str:
        """What a model of this vocabulary predicts, as in "bits per byte"."""
        return "byte" if self.has_bytes else "character"

    def to_chars(self, text: str) -> str:
        """Convert ordinary text to this vocabulary's characters: unchanged, or one per byte of its UTF-8."""
        return bytes_as_chars(text) if self.has_bytes else text

    def make_decoder(self) -> Callable[[str, bool], str]:
        """Return a function that converts generated text, piece by piece, back to ordinary text.

        Its second argument is True for the last piece. Bytes are decoded as UTF-8: invalid ones
        stay surrogate escapes, and an incomplete character waits for the next piece.
        """
        if not self.has_bytes:
            return lambda piece, _: piece
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        return lambda piece, is_last: decoder.decode(piece.encode("ascii", "surrogateescape"), is_last)

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest unsigned type that holds every id."""
        if len(self) <= 256:
            return np.uint8
        return np.uint16 if len(self) <= 65536 else np.uint32

    def encode(self, text: str, *, name: str = "text") -> Ids:
        """Convert text to ids, (len(text),) of `dtype`; UNKNOWN, if included, replaces other characters.

        name: what an error calls the text. Raises UnknownCharacterError, which names the first character without an id.
        """
        ids, start = np.empty(len(text), self.dtype), 0
        unknown_id = self.id_of(UNKNOWN)
        for points in _code_point_pieces(text):
            found = self._id_table[points]
            missing = found < 0
            if missing.any():
                if unknown_id is None:
                    raise UnknownCharacterError(self._explain(text, start + int(np.argmax(missing)), name))
                found[missing] = unknown_id
            ids[start : start + len(points)] = found
            start += len(points)
        return ids

    def encode_known(self, text: str) -> tuple[Ids, dict[str, int]]:
        """Convert text to ids, and count the characters that have none, most frequent first.

        They are left out of the ids, or replaced by UNKNOWN if the vocabulary includes it.
        """
        ids, unknown = self.encode_around(text)
        return ids, count_unknown(unknown)

    def encode_around(self, text: str) -> tuple[Ids, UnknownChars]:
        """Convert text to ids as `encode_known` does; also return the characters that have none, in order.

        Each has its code point (`point`) and, as `place`, the index of the id that it stands before, or
        of UNKNOWN's id that replaces it.
        """
        pieces, unknown, num_ids = [np.empty(0, self.dtype)], [np.empty(0, UNKNOWN_CHAR)], 0
        unknown_id = self.id_of(UNKNOWN)
        for points in _code_point_pieces(text):
            found = self._id_table[points]
            is_missing = found < 0
            missing = np.empty(np.count_nonzero(is_missing), UNKNOWN_CHAR)
            missing["point"] = points[is_missing]
            missing["place"] = num_ids + np.flatnonzero(is_missing)
            if unknown_id is None:
                missing["place"] -= np.arange(len(missing))
                found = found[~is_missing]
            else:
                found[is_missing] = unknown_id
            pieces.append(found.astype(self.dtype))
            unknown.append(missing)
            num_ids += len(found)
        return np.concatenate(pieces), np.concatenate(unknown)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Convert ids to text."""
        return self.points_of(np.asarray(ids, np.int64)).tobytes().decode("utf-32-le", "surrogatepass")

    def decode_around(self, ids: Ids, unknown: UnknownChars) -> str:
        """Convert back what encode_around returned: ids to text, with the characters that have none."""
        points = self.points_of(ids)
        if self.id_of(UNKNOWN) is None:
            points = np.insert(points, unknown["place"], unknown["point"])
        else:
            points[unknown["place"]] = unknown["point"]
        return points.tobytes().decode("utf-32-le", "surrogatepass")

    def points_of(self, ids: Ids) -> NDArray[np.uint32]:
        """Return the code points of ids, (N,)."""
        return self._points[ids]

    def _explain(self, text: str, index: int, name: str) -> str:
        message = f"the model does not know {describe(text[index])}, character {index + 1} of the {name}"
        for form in ("NFC", "NFD", "NFKC"):
            if (self._id_table[_code_points(unicodedata.normalize(form, text))] >= 0).all():
                return f"{message}; convert the {name} to the Unicode normal form {form}, which it knows"
        return message


def count_points(pieces: Iterable[str]) -> NDArray[np.int64]:
    """Count the code points of a text that comes in pieces: (0x110000,)."""
    counts = np.zeros(_NUM_POINTS, np.int64)
    for piece in pieces:
        for points in _code_point_pieces(piece):
            found = np.bincount(points)
            counts[: len(found)] += found
    return counts


def count_unknown(unknown: UnknownChars) -> dict[str, int]:
    """Count each unknown character, most frequent first."""
    points, counts = np.unique(unknown["point"], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return dict(zip(map(chr, points[order].tolist()), counts[order].tolist(), strict=True))


def _code_point_pieces(text: str) -> Iterator[NDArray[Any]]:
    """Yield a text's code points in pieces, because they take up to eight bytes per character."""
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        yield np.frombuffer(piece.encode("ascii"), np.uint8) if piece.isascii() else _code_points(piece)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
