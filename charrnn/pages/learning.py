"""Learning curves from the log of a run, whose events are untrusted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from charrnn.events import bits
from charrnn.pages import charts

_MAX_NUMBER = 1e15  # in a log
_SMALL_CHARTS = {
    "learning_rate": "learning rate",
    "chars_per_second": "characters per second",
    "grad_norm": "gradient norm",
    "clipped": "share of clipped steps",
}


def read_points(log: Iterable[Any], event: str, field: str) -> list[charts.Point]:
    """Return (step, value) of all valid events of a kind, by step. If a step was repeated, its last event counts."""
    found = {}
    for record in log:
        if isinstance(record, Mapping) and record.get("event") == event:
            step, value = _read_number(record, "step"), _read_number(record, field)
            if step is not None and value is not None:
                found[step] = value
    return sorted(found.items())


def _read_number(record: Mapping[str, Any], field: str) -> float | None:
    value = record.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MAX_NUMBER:
        return float(value)
    return None


def learning_curves(log: Sequence[Mapping[str, Any]], unit: str) -> dict[str, Any]:
    """Draw the charts of a run and return them with figures for the text; empty if the log holds no loss."""
    trained = charts.downsample(
        [(step, bits(nats)) for step, nats in read_points(log, "progress", "nats_per_char")], 600
    )
    scored = [(step, bits(nats)) for step, nats in read_points(log, "evaluated", "nats_per_char")]
    if not trained and not scored:
        return {}
    chosen = read_points([record for record in log if _is_best(record)], "evaluated", "nats_per_char")
    best = (chosen[-1][0], bits(chosen[-1][1])) if chosen else min(scored, key=lambda point: point[1], default=None)
    smoothed = charts.smooth(trained, len(trained) // 60)
    last = max(step for step, _ in trained + scored)
    # the first steps lose so much that all others would be a flat line, so they may leave the plot
    low, high = charts.padded_range(y for step, y in smoothed + scored if step >= 0.05 * last)
    steps = charts.Axis("optimiser step", 0, max(last, 1))
    series = [
        charts.Series("training (with dropout)", trained, "raw"),
        charts.Series("training (with dropout, smoothed)", smoothed, "train"),
        charts.Series("held-out", scored, "valid", dots=True),
    ]
    loss = charts.Axis(f"loss (bits per {unit})", low, high)
    return {
        "loss": charts.lines("loss-chart", "Loss by optimiser step", series, steps, loss, best=best),
        "best": best,
        "trained": trained,
        "scored": scored,
        "above": max((y for _, y in trained + scored if y > high), default=None),
        "small": [
            _small_chart(field, title, points, steps)
            for field, title in (_SMALL_CHARTS | {"chars_per_second": f"{unit}s per second"}).items()
            if (points := read_points(log, "progress", field))
        ],
    }


def _is_best(record: Any) -> bool:
    return isinstance(record, Mapping) and record.get("best") is True


def _small_chart(field: str, title: str, points: list[charts.Point], steps: charts.Axis) -> Markup:
    """Draw one line in a plot that starts at 0."""
    series = charts.Series(title, charts.downsample(points, 300), "train")
    low, high = charts.padded_range((y for _, y in series.points), from_zero=True)
    axis = charts.Axis(title, low, high)
    return charts.lines(
        f"{field}-chart", f"{title.capitalize()} by optimiser step", [series], steps, axis, size=(360, 220)
    )
