"""Calibration: predicted probabilities against observed frequencies."""

import numpy as np
import pytest

from charrnn.pages.calibration import calibration_bins, calibration_error
from tests.pages.reports import make_predictions


def test_calibration_by_hand():
    """Two positions with two candidates each: 0.75 came true, 0.25 did not, and one of two at 0.5 did."""
    halves = np.array([[0.75, 0.25], [0.5, 0.5]], np.float32)
    top = np.array([[0, 1], [0, 1]], np.int32)
    bins = calibration_bins(make_predictions(np.array([0, 1]), np.zeros(2), np.zeros(2, np.int32), top, halves))
    found = {place: (one.count, one.predicted, one.observed) for place, one in enumerate(bins) if one.count}
    assert found == {7: (1, 0.75, 1.0), 2: (1, 0.25, 0.0), 5: (2, 0.5, 0.5)}
    assert calibration_error(bins) == pytest.approx((0.25 + 0.25 + 0 + 0) / 4)
    assert len(bins) == 10


def test_certainty_is_in_the_last_bin():
    """A probability of 1 has no bin of its own."""
    sure = make_predictions(np.zeros(1, int), np.zeros(1), np.zeros(1, int), np.zeros((1, 1), int), np.ones((1, 1)))
    assert [one.count for one in calibration_bins(sure)] == [0] * 9 + [1]
    assert calibration_error([]) == 0
