"""The report: what is known about a model and a text, as one HTML page that loads nothing else.

The text, file names and samples are untrusted. The template escapes them, and characters that
can't be shown (controls, direction overrides, bytes) are replaced by visible ones. The page's policy
allows its own style and script and nothing else.
"""

import base64
import html
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from charrnn.config import SampleConfig
from charrnn.data.characters import END, label, name, readable, visible_chars
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scores import Assessment, Baseline, Evaluation, Line
from charrnn.evaluation.verdict import copying
from charrnn.events import bits, bits_per
from charrnn.kernels.head import Predictions
from charrnn.model.file import ModelFile
from charrnn.pages import charts
from charrnn.pages.page import LEVEL_CLASSES, LEVELS, json_for_script, name_levels, render_page
from charrnn.sampling.sampler import Sampler

TEMPERATURES = (0.5, 0.8, 1.0)
SAMPLE_LENGTH = 600
NUM_DOCUMENTS = 12
_NUM_LIKELIEST = 5
_MAX_BLOCK = 1000  # characters that the browser lays out together
_LINE_END = re.compile(f"[\n{END}]")
_MAX_LINE = 200  # characters of a line in the table
_MAX_NUMBER = 1e15  # in a log
_FAINT = {"↵": "<u>↵</u>", "␉": '<u class="t">␉</u>', "·": "<u>·</u>"}  # visible, but not part of the text


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    model: the name of its run or file, which is the title; text: what was scored.
    predictions: of the text's first characters; hardest: the least predictable lines, worst first;
    samples: (temperature, text); log: the events of `log.jsonl`, which are untrusted.
    """

    model: str
    text: str
    card: Sequence[tuple[str, str]]
    assessment: Assessment
    verdict: str
    vocab: Vocab
    predictions: Predictions
    hardest: Sequence[Line]
    samples: Sequence[tuple[float, str]]
    log: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Bin:
    """Predictions of similar probability: their number, their mean probability and how often they came true."""

    count: int
    predicted: float
    observed: float


def draw_samples(file: ModelFile, *, threads: int) -> list[tuple[float, str]]:
    """Draw whole lines or some documents at each of a few temperatures, the same ones each time."""
    sampler = Sampler(file, threads=threads)
    found = []
    for temperature in TEMPERATURES:
        config = SampleConfig(length=SAMPLE_LENGTH, temperature=temperature, seed=0)
        if sampler.writes_documents:
            documents = sampler.streams(replace(config, num_samples=NUM_DOCUMENTS))
            text = "\n".join("".join(document).strip("\n") for document in documents)
        else:
            text = "".join(sampler.stream(config))
            text = text[: text.rfind("\n") + 1] or text
        found.append((temperature, text))
    return found


def render(report: Report) -> str:
    """Render the page. Equal reports give equal pages, which can be encoded as UTF-8."""
    bins, unit = calibration_bins(report.predictions), report.assessment.unit
    linked = {line.start for line in report.hardest if line.start < len(report.predictions.ids)}
    text = report.vocab.decode(report.predictions.ids)
    return render_page(
        "report",
        report=report,
        score=report.assessment.score,
        adapted=report.assessment.adapted,
        copying=_copying(report.assessment),
        unit=unit,
        rate=bits_per(unit),
        linked=linked,
        data=pack_predictions(report.vocab, report.predictions),
        text=colour_text(text, surprisal_bits(report.predictions), linked),
        levels=name_levels(),
        unknown=_name_unknown(report.assessment.score),
        rows=_baseline_rows(report.assessment),
        curves=_learning_curves(report.log, unit),
        bins=bins,
        calibration_error=calibration_error(bins),
        calibration_chart=charts.reliability(
            "calibration-chart",
            "Predicted probability and observed frequency",
            [(one.predicted, one.observed, one.count) for one in bins],
        ),
        hardest=[(line, shorten(line.text)) for line in report.hardest],
    )


def shorten(text: str) -> str:
    """Cut a line to what the table shows."""
    text = readable(text.rstrip("\n")).replace("\n", "↵")
    return text if len(text) <= _MAX_LINE else text[: _MAX_LINE - 1] + "…"


def surprisal_bits(predictions: Predictions) -> NDArray[np.float64]:
    """Return each character's surprisal in bits, (N,); 1000 if it is infinite or not a number."""
    return np.nan_to_num(bits(1.0) * np.asarray(predictions.nats, np.float64), nan=1e3, posinf=1e3, neginf=0.0)


def _copying(assessment: Assessment) -> list[str]:
    """Say how much is copied, if anything is."""
    parts = assessment.copied or ()
    if not any(part and (part.num_copied or part.num_known) for part in parts):
        return []
    return copying(assessment).split("\n")


def colour_text(text: str, surprisal: NDArray[np.float64], linked: Collection[int] = ()) -> Markup:
    """Render the text as blocks of HTML, each a line or a part of one, coloured by surprisal (N,) in bits.

    linked: where the blocks begin that can be linked to, as c and this number.
    Each character is one code point in the blocks, so positions in both are the same.
    """
    levels = np.digitize(surprisal, LEVELS).tolist()
    shown = [
        _FAINT[one] if one in _FAINT and one != char else html.escape(one, quote=False)
        for one, char in zip(visible_chars(text), text, strict=True)
    ]
    parts = []
    for start, end in _blocks(text):
        parts.append(f"<p id=c{start}>" if start in linked else "<p>")
        for level, places in groupby(range(start, end), key=levels.__getitem__):
            inner = "".join([shown[place] for place in places])
            parts.append(f"<i class={LEVEL_CLASSES[level]}>{inner}</i>" if level else inner)
        parts.append("</p>")
    return Markup("".join(parts))


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        found = _LINE_END.search(text, start, start + _MAX_BLOCK)
        end = found.end() if found else min(start + _MAX_BLOCK, len(text))
        yield start, end
        start = end


def pack_predictions(vocab: Vocab, predictions: Predictions) -> Markup:
    """Encode the predictions as JSON for a script element: arrays are compressed bytes in base64.

    Characters are numbers into `chars`, which lists only those that occur. `surprisal` is in
    hundredths of a bit and `probabilities` are in thousandths, as they are shown. `top` and
    `probabilities` hold the likeliest character at each position, then all second ones, and so on.
    """
    num, top = len(predictions.ids), predictions.top[:, :_NUM_LIKELIEST]
    ids = np.concatenate([np.asarray(predictions.ids, np.int64), top.T.ravel().astype(np.int64)])
    used, places = np.unique(ids, return_inverse=True)
    chars = vocab.decode(used)
    thousandths = np.rint(1000 * predictions.probabilities[:, :_NUM_LIKELIEST].T.astype(np.float64))
    data = {
        "chars": [[label(char), name(char)] for char in chars],
        "size": len(vocab),
        "ids": _pack_column(places[:num]),
        "surprisal": _pack_column(np.clip(np.rint(100 * surprisal_bits(predictions)), 0, 65535)),
        "ranks": _pack_column(predictions.ranks),
        "top": _pack_column(places[num:]),
        "probabilities": _pack_column(np.nan_to_num(thousandths).ravel()),
    }
    return json_for_script(data)


def _pack_column(values: NDArray[Any]) -> list[int | str]:
    """Encode whole numbers as [bytes per number, base64 of the compressed little-endian bytes]."""
    largest = int(values.max(initial=0))
    width = 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4
    return [width, base64.b64encode(zlib.compress(values.astype(f"<u{width}").tobytes(), 9)).decode()]


def calibration_bins(predictions: Predictions) -> list[Bin]:
    """Group the probabilities of the five likeliest characters into ten bins and count how often they came true."""
    predicted = np.asarray(predictions.probabilities[:, :_NUM_LIKELIEST], np.float64)
    is_known = np.isfinite(predicted)
    is_true = (predictions.top[:, :_NUM_LIKELIEST] == np.asarray(predictions.ids)[:, None])[is_known]
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


def _name_unknown(score: Evaluation) -> str:
    """List the characters outside the vocabulary, most frequent first; empty if there are none."""
    named = [f"{name(char)} {count:,}×" for char, count in list(score.unknown.items())[:10]]
    more = [f"{len(score.unknown) - 10:,} more"] if len(score.unknown) > 10 else []
    return ", ".join(named + more)


def _baseline_rows(assessment: Assessment) -> list[tuple[Baseline, Markup]]:
    """Return the model and the baselines, each with its bar."""
    own = Baseline("this model", assessment.score.nats_per_char, _experts_note(assessment.score))
    known = [row.bits_per_char for row in (own, *assessment.baselines) if np.isfinite(row.bits_per_char)]
    largest = max(known, default=1.0)

    def with_bar(row: Baseline, style: str) -> tuple[Baseline, Markup]:
        words = f"{row.bits_per_char:.3f} of {largest:.3f} bits"
        return row, charts.bar(row.bits_per_char, largest, words, style=style)

    return [with_bar(own, "own"), *(with_bar(row, "other") for row in assessment.baselines)]


def _experts_note(score: Evaluation) -> str:
    """Give the scores of a mixture's experts; empty for a network without n-grams."""
    if not score.experts:
        return ""
    network, ngrams = (bits(nats / score.num_chars) for nats in score.experts)
    return f"network alone {network:.3f}, n-grams alone {ngrams:.3f}"


def _read_points(log: Iterable[Any], event: str, field: str) -> list[charts.Point]:
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


def _learning_curves(log: Sequence[Mapping[str, Any]], unit: str) -> dict[str, Any]:
    """Draw the charts of a run and return them with figures for the text; empty if the log holds no loss."""
    trained = charts.downsample(
        [(step, bits(nats)) for step, nats in _read_points(log, "progress", "nats_per_char")], 600
    )
    scored = [(step, bits(nats)) for step, nats in _read_points(log, "evaluated", "nats_per_char")]
    if not trained and not scored:
        return {}
    chosen = _read_points([record for record in log if _is_best(record)], "evaluated", "nats_per_char")
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
            _small_chart("rate", "learning rate", _read_points(log, "progress", "learning_rate"), steps),
            _small_chart("speed", f"{unit}s per second", _read_points(log, "progress", "chars_per_second"), steps),
        ],
    }


def _is_best(record: Any) -> bool:
    return isinstance(record, Mapping) and record.get("best") is True


def _small_chart(key: str, title: str, points: list[charts.Point], steps: charts.Axis) -> Markup:
    """Draw one line in a plot that starts at 0."""
    series = charts.Series(title, charts.downsample(points, 300), "train")
    low, high = charts.padded_range((y for _, y in series.points), from_zero=True)
    axis = charts.Axis(title, low, high)
    return charts.lines(
        f"{key}-chart", f"{title.capitalize()} by optimiser step", [series], steps, axis, size=(360, 220)
    )
