"""Calibration: whether predicted probabilities agree with observed frequencies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from charrnn.kernels.head import Predictions


@dataclass(frozen=True)
class Bin:
    """Predictions of similar probability: their number, their mean probability and how often they came true."""

    count: int
    predicted: float
    observed: float


def calibration_bins(predictions: Predictions) -> list[Bin]:
    """Group the probabilities of the five likeliest characters into ten bins and count how often they came true."""
    predicted = np.asarray(predictions.probabilities, np.float64)
    is_known = np.isfinite(predicted)
    is_true = (predictions.top == np.asarray(predictions.ids)[:, None])[is_known]
    predicted = predicted[is_known]
    places = np.clip((10 * predicted).astype(np.int64), 0, 9)
    counts = np.bincount(places, minlength=10)
    sums, hits = np.bincount(places, predicted, 10), np.bincount(places, is_true, 10)
    divisors = np.maximum(counts, 1)
    return [Bin(int(n), float(p), float(o)) for n, p, o in zip(counts, sums / divisors, hits / divisors, strict=True)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error, 0 to 1: the mean distance of predicted and observed, by bin."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.predicted - one.observed) for one in bins) / max(total, 1)
