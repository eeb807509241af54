"""Yardsticks: what other predictors spend on the characters that a model was scored on.

They know the text that the model was trained on, or its end where it is very long.

Letters: N characters, V vocabulary.
"""

import lzma
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from charrnn.metrics import Yardstick
from charrnn.ngram import MAX_ORDER, nats_by_order
from charrnn.vocab import END, UNKNOWN, Ids, Vocab

MOST_READ = 32_000_000  # characters, and bytes, of the training text: xz takes half a minute for as many
_AT_ONCE = 1 << 20


def yardsticks(
    train: Ids, ids: Ids, *, context: Ids, vocab: Vocab, most_read: int = MOST_READ
) -> tuple[Yardstick, ...]:
    """Score ids (N,), which come after the context, with what is learnt from the training text; the best first.

    most_read: characters of the training text, from its end, that are read. A text to score
    that is longer has the quick yardsticks only.
    """
    part = np.array(train[-most_read:])
    note = f"from the last {len(part):,} characters of the training text" if len(part) < len(train) else ""
    scored = ids != vocab.id_of(UNKNOWN)  # nothing says which rare character it was
    found = [
        Yardstick("all characters alike", math.log(len(vocab)), f"{len(vocab):,} of them"),
        Yardstick("how often each occurs", _order_0(part, ids[scored], len(vocab)), note),
    ]
    if len(ids) <= most_read:
        with ThreadPoolExecutor(1) as other:
            packed = other.submit(compressed, train, ids, vocab, most_read)
            found.append(_best_order(part, ids, context, scored, len(vocab), note))
            found.append(packed.result())
    return tuple(sorted(found, key=lambda yardstick: yardstick.nats_per_char))


def _order_0(train: Ids, ids: Ids, vocab_size: int) -> float:
    """Nats a character, from how often each occurs in the training text and once more."""
    counts = _counts(train, vocab_size) + 1
    return float(_counts(ids, vocab_size) @ -np.log(counts / counts.sum())) / len(ids)


def _counts(ids: Ids, vocab_size: int) -> NDArray[np.int64]:
    """How often each id occurs, (V,), without a wide copy of them all."""
    parts = (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))
    counts = np.zeros(vocab_size, np.int64)
    for part in parts:
        counts += np.bincount(part, minlength=vocab_size)
    return counts


def _best_order(train: Ids, ids: Ids, context: Ids, scored: NDArray[np.bool_], vocab_size: int, note: str) -> Yardstick:
    by_order = nats_by_order(train, ids, context=context, vocab_size=vocab_size)
    nats, order = min((float(each[scored].mean()), order) for order, each in enumerate(by_order, start=1))
    how = f"modified Kneser-Ney; of the orders to {MAX_ORDER} the best here"
    return Yardstick(f"{order}-gram", nats, f"{how}; {note}" if note else how)


def compressed(train: Ids, ids: Ids, vocab: Vocab, most_read: int = MOST_READ) -> Yardstick:
    """What xz adds to the compressed training text for the text after it, all of its characters.

    most_read: characters, and bytes, of the training text.
    """
    part = train[-most_read:]
    before, text = _spelt(part, vocab), _spelt(ids, vocab)
    known = before[-most_read:]
    size = xz_size(known + text) - xz_size(known)
    is_whole = len(part) == len(train) and len(known) == len(before)
    note = f"after {'' if is_whole else f'the last {len(known):,} bytes of '}the training text"
    return Yardstick("xz", size * 8 / len(ids) * math.log(2), note)


def _spelt(ids: Ids, vocab: Vocab) -> bytes:
    """The text as a file would hold it, with a NUL where a document ends."""
    text = vocab.decode(ids).replace(END, "\0").replace(UNKNOWN, "\ufffd")
    return text.encode("utf-8", "surrogateescape")


def xz_size(data: bytes) -> int:
    """Bytes that the compressor of xz makes of data, all of which it can refer back to."""
    smallest = 1 << 12
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(smallest, len(data))}]
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters))
