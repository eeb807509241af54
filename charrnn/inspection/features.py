"""What any text has at each character: places in lines and words, quotes, brackets, capitals, what comes next.

Letters: N characters, V vocabulary.
"""

import unicodedata

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocab import Ids, Vocab
from charrnn.text.characters import END

LETTER, CAPITAL, DIGIT, SPACE, PUNCTUATION, BYTE, DOCUMENT_END = range(7)
NEAR = 5  # characters before a line's or a sentence's end
_VOWELS = "aeiouyAEIOUYаеёиоуыэюяАЕЁИОУЫЭЮЯαεηιουωΑΕΗΙΟΥΩ"
_SENTENCE_ENDS = ".!?…。！？"
_OPENING_QUOTES, _CLOSING_QUOTES, _STRAIGHT_QUOTES = "“«„「『", "”»」』", '"'
_OPENING_BRACKETS, _CLOSING_BRACKETS = "([{（【", ")]}）】"
_MOST = 200.0  # of a count; a line of a megabyte must not outweigh all others

Bools = NDArray[np.bool_]


def kind_of(char: str) -> int:
    """Return the kind of a character."""
    if char == END:
        return DOCUMENT_END
    if char in "\n\t\r":
        return SPACE
    if "\udc80" <= char <= "\udcff":
        return BYTE
    category = unicodedata.category(char)
    if category in ("Lu", "Lt"):
        return CAPITAL
    kinds = {"L": LETTER, "M": LETTER, "N": DIGIT, "Z": SPACE}
    return kinds.get(category[0], PUNCTUATION)


def kinds_of(vocab: Vocab) -> NDArray[np.uint8]:
    """Return the kind of each character of a vocabulary: (V,)."""
    return np.array([kind_of(char) for char in vocab.chars], np.uint8)


def is_in_word(kinds: NDArray[np.uint8]) -> Bools:
    """Tell which characters belong to a word: letters, and bytes, which are parts of letters."""
    found: Bools = (kinds == LETTER) | (kinds == CAPITAL) | (kinds == BYTE)
    return found


def features(ids: Ids, vocab: Vocab) -> dict[str, NDArray[np.float32]]:
    """Compute the features of a text at each of its characters, by name: (N,) each.

    What has happened so far includes the character itself. Names complete the sentence "this unit follows …".
    """
    kinds = kinds_of(vocab)[ids]
    is_word, is_space = is_in_word(kinds), kinds == SPACE
    is_end = kinds == DOCUMENT_END
    is_break = _is_one_of(ids, vocab, "\n") | is_end
    is_gap = is_space | is_end
    is_blank = is_end | (is_break & _before(is_break))
    column = count_since(is_break)
    found = {
        "the column in the line": column,
        "the characters since the last space": count_since(is_gap),
        "the letters since the word began": count_since(~is_word),
        "the line's indentation": indentation(is_gap, is_break),
        "being inside quotes": inside_quotes(ids, vocab, is_blank),
        "the depth of brackets": bracket_depth(ids, vocab, is_end),
        "capitals": kinds == CAPITAL,
        "digits": kinds == DIGIT,
        "punctuation": kinds == PUNCTUATION,
        "spaces": is_gap,
        "the line's end coming near": is_near(is_break),
        "the sentence's end coming near": is_near(_is_one_of(ids, vocab, _SENTENCE_ENDS)),
        "a vowel coming next": _after(_is_one_of(ids, vocab, _VOWELS)),
        "a space coming next": _after(is_gap),
    }
    return {name: values.astype(np.float32) for name, values in found.items()}


def _is_one_of(ids: Ids, vocab: Vocab, chars: str) -> Bools:
    return np.array([char in chars for char in vocab.chars], np.bool_)[ids]


def _before(values: Bools) -> Bools:
    """Shift values to the character after."""
    return np.concatenate([[False], values[:-1]])


def _after(values: Bools) -> Bools:
    """Shift values to the character before."""
    return np.concatenate([values[1:], [False]])


def count_since(is_start: Bools) -> NDArray[np.float64]:
    """Count the characters since the last start, which itself counts 0, as the text's beginning does: (N,)."""
    places = np.arange(len(is_start))
    starts = np.maximum.accumulate(np.where(is_start, places, -1))
    return np.minimum(places - starts, _MOST).astype(np.float64)


def is_near(is_mark: Bools) -> Bools:
    """Tell where one of the next characters is a mark."""
    near, ahead = np.zeros_like(is_mark), is_mark
    for _ in range(NEAR):
        ahead = _after(ahead)
        near |= ahead
    return near


def indentation(is_space: Bools, is_break: Bools) -> NDArray[np.float64]:
    """Return how many spaces the line of each character begins with, as far as it has been read: (N,)."""
    inside = is_space & ~is_break
    is_leading = inside & (count_since(~inside) == count_since(is_break))
    return np.minimum(_since(is_leading, is_break), _MOST).astype(np.float64)


def inside_quotes(ids: Ids, vocab: Vocab, is_blank: Bools) -> Bools:
    """Tell which characters are inside quotes, which a blank line ends, since texts forget to close them."""
    open_now = _since(_is_one_of(ids, vocab, _OPENING_QUOTES), is_blank)
    open_now -= _since(_is_one_of(ids, vocab, _CLOSING_QUOTES), is_blank)
    inside: Bools = (open_now > 0) | (_since(_is_one_of(ids, vocab, _STRAIGHT_QUOTES), is_blank) % 2 == 1)
    return inside


def bracket_depth(ids: Ids, vocab: Vocab, is_end: Bools) -> NDArray[np.int64]:
    """Return how many brackets are open after each character; a document's end closes all."""
    depth = _since(_is_one_of(ids, vocab, _OPENING_BRACKETS), is_end)
    depth -= _since(_is_one_of(ids, vocab, _CLOSING_BRACKETS), is_end)
    offsets = np.cumsum(is_end, dtype=np.int64) * (len(ids) + 1)  # so that the lowest so far is of the same document
    lowest: NDArray[np.int64] = np.minimum.accumulate(depth - offsets) + offsets
    return depth - np.minimum(lowest, 0)  # a bracket that closes nothing doesn't count


def _since(is_event: Bools, is_mark: Bools) -> NDArray[np.int64]:
    """Count the events after the last mark, up to each character: (N,)."""
    totals = np.cumsum(is_event, dtype=np.int64)
    places = np.maximum.accumulate(np.where(is_mark, np.arange(len(totals)), -1))
    return totals - np.where(places < 0, 0, totals[places])
