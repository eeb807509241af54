"""Which units of the last layer can be read: those whose activation follows a feature of the text.

Source: Karpathy, Johnson & Li 2015, "Visualizing and understanding recurrent networks".

Letters: N characters, H hidden size, F features.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from charrnn.evaluation.scoring import read_outputs
from charrnn.evaluation.texts import EvalText
from charrnn.inspection.features import features
from charrnn.inspection.findings import ReadableUnit
from charrnn.model.file import ModelFile
from charrnn.model.windows import Reader
from charrnn.numerics.vectors import Floats

NUM_READ = 20_000  # characters that features are compared on
NUM_UNITS = 8
MIN_READ = 200
_NUM_BEFORE = 10_000  # characters before them, for the column and the open quotes at the start


def find_units(
    network: Reader, file: ModelFile, text: EvalText, ids: NDArray[np.int64], num_shown: int | None = None
) -> tuple[ReadableUnit, ...] | None:
    """Find the most readable units, and read their activations after each of ids (N,), the text's first characters.

    num_shown: read the activations after this many of them only. None for too short a text.
    """
    part, before = ids[:NUM_READ], text.context[-_NUM_BEFORE:]
    if len(part) < MIN_READ:
        return None
    outputs = read_outputs(network, part, context=text.context)
    # the features at the last characters read look ahead
    found = features(np.concatenate([before, ids[: NUM_READ + 100]]), file.vocab)
    columns = {name: column[len(before) : len(before) + len(part)] for name, column in found.items()}
    names = distinct(columns)
    values = np.stack([columns[name] for name in names], axis=1)  # (N, F)
    half = len(part) // 2
    pairs = choose_pairs(correlations(values[:half], outputs[:half]), NUM_UNITS)
    units = [unit for _, unit in pairs]
    scores = correlations(values[half:], outputs[half:])
    shown = outputs[:num_shown, units]
    if len(ids[:num_shown]) > len(part):
        shown = read_outputs(network, ids[:num_shown], context=text.context, units=units)
    readable = [
        ReadableUnit(unit, names[feature], float(scores[feature, unit]), shown[:, column].copy())
        for column, (feature, unit) in enumerate(pairs)
    ]
    return tuple(sorted(readable, key=lambda one: -abs(one.correlation)))


def distinct(columns: Mapping[str, Floats]) -> list[str]:
    """Return the names of columns (N,) without those that equal an earlier one: in names a line is a word."""
    names: list[str] = []
    for name, column in columns.items():
        if not any(np.array_equal(column, columns[other]) for other in names):
            names.append(name)
    return names


def correlations(values: Floats, outputs: Floats) -> NDArray[np.float64]:
    """Correlate features (N, F) with units (N, H): (F, H); 0 where one of the two is constant."""
    return _standardised(values).T @ _standardised(outputs) / len(values)


def _standardised(columns: Floats) -> NDArray[np.float64]:
    """Shift and scale columns to mean 0 and deviation 1; constant ones become 0."""
    centred = columns - columns.mean(0, dtype=np.float64)
    deviation = centred.std(0)
    is_constant = deviation < 1e-6
    scaled: NDArray[np.float64] = centred / np.where(is_constant, 1.0, deviation)
    scaled[:, is_constant] = 0.0
    return scaled


def choose_pairs(scores: NDArray[np.float64], count: int) -> Sequence[tuple[int, int]]:
    """Choose pairs (feature, unit) with the largest correlations (F, H), each feature and each unit at most once.

    Otherwise the same easy feature would be shown eight times. Those without any correlation are left out.
    """
    left, pairs = np.abs(scores), []
    for _ in range(min(count, *scores.shape)):
        feature, unit = (int(index) for index in np.unravel_index(left.argmax(), left.shape))
        if left[feature, unit] == 0.0:
            break
        pairs.append((feature, unit))
        left[feature, :] = left[:, unit] = 0.0
    return pairs
