"""The coloured text: its blocks of HTML, and the data with which the script colours it in other ways.

Letters: N characters.
"""

import base64
import html
import math
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from charrnn.data.vocab import Vocab
from charrnn.events import bits
from charrnn.kernels.head import Predictions
from charrnn.pages.page import json_for_script
from charrnn.text.characters import END, label, name, visible_chars

_MAX_BLOCK = 1000  # characters that the browser lays out together
_MAX_BITS = 655.35  # of one character
_LINE_END = re.compile(f"[\n{END}]")
_FAINT = {"↵": "<u>↵</u>", "␉": '<u class="t">␉</u>', "·": "<u>·</u>"}  # visible, but not part of the text


@dataclass(frozen=True)
class Scale:
    """A scale of colours, in levels.

    limits: the values between levels, rising; a value at a limit has the colour of the side away from 0.
    classes: the style of each level, "" for none. unit: of the values; below, above, near: what values below, above
    and near 0 mean.
    """

    limits: tuple[float, ...]
    classes: tuple[str, ...]
    unit: str
    below: str = ""
    above: str = ""
    near: str = ""

    def levels(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the level of each value, (N,); NaN is 0."""
        known = np.nan_to_num(values)
        lower, upper = [one for one in self.limits if one < 0], [one for one in self.limits if one >= 0]
        return np.digitize(known, lower, right=True) + np.digitize(known, upper)

    def legend(self) -> list[tuple[str, str]]:
        """Return each level's class and its distances from 0."""
        return list(zip(self.classes, (_name_distances(low, high) for low, high in self._ranges()), strict=True))

    def words(self) -> list[str]:
        """Say what each level means."""
        found = []
        for low, high in self._ranges():
            side = self.below if high <= 0 else self.above
            found.append(self.near if low < 0 < high else f"{_name_distances(low, high)} {self.unit} {side}")
        return found

    def _ranges(self) -> Iterator[tuple[float, float]]:
        return pairwise((-math.inf, *self.limits, math.inf))


def _name_distances(low: float, high: float) -> str:
    near, far = sorted([abs(low), abs(high)])
    if low < 0 < high:
        return f"under {high:g}"
    return f"{near:g} or more" if far == math.inf else f"{near:g}–{far:g}"


_DIVERGING = ("n4", "n3", "n2", "n1", "", "p1", "p2", "p3", "p4")
SCALES = {
    "surprisal": Scale((0.5, 1, 2, 3, 4, 6, 8), ("", "a", "b", "c", "d", "e", "f", "g"), "bits"),
    "experts": Scale(
        (-4, -2, -1, -0.5, 0.5, 1, 2, 4),
        _DIVERGING,
        "bits",
        below="better with the network",
        above="better with n-grams",
        near="about equal with the network and with n-grams",
    ),
    "unit": Scale(
        (-2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2),
        _DIVERGING,
        "standard deviations",
        below="below its mean",
        above="above its mean",
        near="near its mean",
    ),
}


@dataclass(frozen=True)
class Colouring:
    """A way to colour the text.

    kind: its scale; name: in the menu; values: (N,), or fewer if only the beginning has one.
    """

    kind: str
    name: str
    values: NDArray[np.float64]


def surprisal_bits(predictions: Predictions) -> NDArray[np.float64]:
    """Return each character's surprisal in bits, (N,), rounded to hundredths as it is shown; NaN is the largest."""
    surprisal = np.nan_to_num(bits(1.0) * np.asarray(predictions.nats, np.float64), nan=_MAX_BITS)
    return np.round(surprisal.clip(0, _MAX_BITS), 2)


def compare_experts(predictions: Predictions) -> list[Colouring]:
    """Colour by how many bits the n-grams need less than the network; nothing for a network without n-grams."""
    if not predictions.experts.shape[1]:
        return []
    network, ngrams = bits(1.0) * np.nan_to_num(predictions.experts.T, posinf=1e3)
    return [Colouring("experts", "network against n-grams", network - ngrams)]


def colour_text(text: str, values: NDArray[np.float64], linked: Collection[int] = (), *, kind: str) -> Markup:
    """Render the text as blocks of HTML, each a line or a part of one, coloured by values (N,) on a kind of scale.

    linked: where the blocks begin that can be linked to, as c and this number.
    Each character is one code point in the blocks, so positions in both are the same.
    """
    scale = SCALES[kind]
    levels = scale.levels(values).tolist()
    shown = [
        _FAINT[one] if one in _FAINT and one != char else html.escape(one, quote=False)
        for one, char in zip(visible_chars(text), text, strict=True)
    ]
    parts = []
    for start, end in _blocks(text):
        parts.append(f"<p id=c{start}>" if start in linked else "<p>")
        for level, places in groupby(range(start, end), key=levels.__getitem__):
            inner = "".join([shown[place] for place in places])
            parts.append(f"<i class={scale.classes[level]}>{inner}</i>" if scale.classes[level] else inner)
        parts.append("</p>")
    return Markup("".join(parts))


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        found = _LINE_END.search(text, start, start + _MAX_BLOCK)
        end = found.end() if found else min(start + _MAX_BLOCK, len(text))
        yield start, end
        start = end


def pack(vocab: Vocab, predictions: Predictions, colourings: Sequence[Colouring] = ()) -> Markup:
    """Encode predictions and colourings as JSON for a script element: arrays are compressed bytes in base64.

    Characters are numbers into `chars`, which lists only those that occur. `surprisal` is in hundredths of a bit,
    as it is shown. `top` and `probabilities` hold the likeliest characters of the first position, then those of the
    second, and so on. Colourings are levels of their scales.
    """
    num = len(predictions.ids)
    ids = np.concatenate([np.asarray(predictions.ids, np.int64), predictions.top.ravel().astype(np.int64)])
    used, places = np.unique(ids, return_inverse=True)
    return json_for_script(
        {
            "chars": [[label(char), name(char)] for char in vocab.decode(used)],
            "size": len(vocab),
            "ids": _pack_column(places[:num]),
            "surprisal": _pack_column(np.rint(100 * surprisal_bits(predictions))),
            "ranks": _pack_column(predictions.ranks),
            "num_top": predictions.top.shape[1],
            "top": _pack_column(places[num:]),
            "probabilities": _pack_column(_two_digits(predictions.probabilities.astype(np.float64).ravel())),
            "limits": SCALES["surprisal"].limits,
            "scales": {kind: {"classes": scale.classes, "words": scale.words()} for kind, scale in SCALES.items()},
            "colourings": [
                {"kind": one.kind, "name": one.name, "levels": _pack_column(SCALES[one.kind].levels(one.values))}
                for one in colourings
            ],
        }
    )


def _two_digits(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Encode probabilities (N,) as 0 to 190: thousandths below 100, then hundredths from 10 on; NaN is 0."""
    known = np.nan_to_num(shares)
    return np.where(known < 0.0995, np.rint(1000 * known), 90 + np.rint(100 * known))


def _pack_column(values: NDArray[Any]) -> list[int | str]:
    """Encode whole numbers as [bytes per number, base64 of the compressed bytes: first the lowest of each number]."""
    largest = int(values.max(initial=0))
    width = 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4
    planes = values.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T
    return [width, base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()]
