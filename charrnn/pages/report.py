"""Facts about a model and a text as one HTML page that needs nothing beside it.

The text, file names and samples come from outside: they are escaped by the template, and
what can't be shown (controls, overrides of the writing direction, bytes) has a sign
instead. A policy in the page lets its own style and script run and nothing else.
"""

import base64
import hashlib
import html
import importlib.resources
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from charrnn import __version__
from charrnn.config import SampleConfig
from charrnn.data.characters import alone, name, readable, signs
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scores import COPIED_RUN, Assessment, Baseline, Evaluation, Line
from charrnn.events import bits
from charrnn.kernels.head import Predictions
from charrnn.model.file import ModelFile
from charrnn.pages import charts
from charrnn.sampling.sampler import Sampler

LEVELS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # bits at which the colour changes
_CLASSES = ("", "a", "b", "c", "d", "e", "f", "g")  # of the eight levels; the first needs no colour
TEMPERATURES = (0.5, 0.8, 1.0)
SAMPLE_LENGTH = 600
_NUM_LIKELIEST = 5
_LONGEST_BLOCK = 1000  # characters that the browser lays out as one
_LONGEST_LINE = 200  # characters shown of a line in the table
_FAINT = {"↵": "<u>↵</u>", "␉": '<u class="t">␉</u>', "·": "<u>·</u>"}  # seen, but not to be read


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    predictions: at the text's first characters. hardest: the hardest line first. samples:
    (temperature, text). log: the events of `log.jsonl`, which are not trusted.
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
    """Predictions of about one probability: how many, their mean, and the share of them that came."""

    count: int
    probability: float
    share: float


def draw_samples(model: ModelFile, *, threads: int) -> list[tuple[float, str]]:
    """Draw a sample at each of a few temperatures, the same ones each time."""
    sampler = Sampler(model, threads=threads)
    configs = [SampleConfig(length=SAMPLE_LENGTH, temperature=temperature, seed=0) for temperature in TEMPERATURES]
    return [(config.temperature, "".join(sampler.stream(config))) for config in configs]


def render(report: Report) -> str:
    """The page. Equal reports give equal pages, and every character of it has a place in UTF-8."""
    import jinja2

    style, script, template = (_resource(f"report.{kind}") for kind in ("css", "js", "html"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(readable=readable, count=lambda number: f"{number:,}")
    bins = calibration(report.predictions)
    return environment.from_string(template).render(
        report=report,
        run=COPIED_RUN,
        version=__version__,
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(packed(report.vocab, report.predictions)),
        text=coloured(report.vocab.decode(report.predictions.ids), bits_of(report.predictions)),
        levels=list(zip(_CLASSES, _level_names(), strict=True)),
        unknown=_unknown(report.assessment.score),
        rows=_baselines(report),
        curves=_curves(report.log),
        bins=bins,
        calibration_error=calibration_error(bins),
        calibration_chart=charts.reliability(
            "calibration-chart",
            "Probability given against the share that came",
            [(one.probability, one.share, one.count) for one in bins],
        ),
        hardest=[(line, shorten(line.text)) for line in report.hardest],
    )


def _resource(name: str) -> str:
    return importlib.resources.files("charrnn.pages").joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """What the page's policy calls an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def shorten(text: str) -> str:
    """As much of a line as the table shows."""
    text = readable(text.rstrip("\n")).replace("\n", "↵")
    return text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 1] + "…"


def bits_of(predictions: Predictions) -> NDArray[np.float64]:
    """What each character cost, (N,) in bits. An infinite cost, or none that makes sense, is a great one."""
    return np.nan_to_num(bits(1.0) * np.asarray(predictions.nats, np.float64), nan=1e3, posinf=1e3, neginf=0.0)


def coloured(text: str, cost: NDArray[np.float64]) -> Markup:
    """The text as blocks of HTML, a line each or part of one, coloured by what its characters cost in bits.

    Each character is one code point of the blocks' text, so a place in one is a place in the other.
    """
    levels = np.digitize(cost, LEVELS).tolist()
    shown = [
        _FAINT[one] if one in _FAINT and one != char else html.escape(one, quote=False)
        for one, char in zip(signs(text), text, strict=True)
    ]
    parts = []
    for start, end in _blocks(text):
        parts.append("<p>")
        for level, places in groupby(range(start, end), key=levels.__getitem__):
            inner = "".join([shown[place] for place in places])
            parts.append(f"<i class={_CLASSES[level]}>{inner}</i>" if level else inner)
        parts.append("</p>")
    return Markup("".join(parts))


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        end = text.find("\n", start, start + _LONGEST_BLOCK) + 1 or min(start + _LONGEST_BLOCK, len(text))
        yield start, end
        start = end


def packed(vocab: Vocab, predictions: Predictions) -> str:
    """The predictions as JSON that may stand in a page: arrays as compressed bytes, in base64.

    Characters are numbered anew, by their place in `chars`, which lists those that occur. Costs are
    in hundredths of a bit and probabilities in thousandths, as they are shown; `top` and
    `probabilities` hold all that came first, then all that came second, and so on.
    """
    num, top = len(predictions.ids), predictions.top[:, :_NUM_LIKELIEST]
    ids = np.concatenate([np.asarray(predictions.ids, np.int64), top.T.ravel().astype(np.int64)])
    used, places = np.unique(ids, return_inverse=True)
    chars = vocab.decode(used)
    thousandths = np.rint(1000 * predictions.probabilities[:, :_NUM_LIKELIEST].T.astype(np.float64))
    data = {
        "chars": [[alone(char), name(char)] for char in chars],
        "size": len(vocab),
        "ids": _column(places[:num]),
        "cost": _column(np.clip(np.rint(100 * bits_of(predictions)), 0, 65535)),
        "ranks": _column(predictions.ranks),
        "top": _column(places[num:]),
        "probabilities": _column(np.nan_to_num(thousandths).ravel()),
    }
    code = json.dumps(data)  # ASCII only: U+2028 is escaped already
    return code.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _column(values: NDArray[Any]) -> list[int | str]:
    """Whole numbers as [bytes each, base64 of those bytes compressed], little endian."""
    most = int(values.max(initial=0))
    width = 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4
    return [width, base64.b64encode(zlib.compress(values.astype(f"<u{width}").tobytes(), 9)).decode()]


def calibration(predictions: Predictions) -> list[Bin]:
    """The probabilities of the five likeliest, in ten bins by size, against how often they came."""
    said = np.asarray(predictions.probabilities[:, :_NUM_LIKELIEST], np.float64)
    came = (predictions.top[:, :_NUM_LIKELIEST] == np.asarray(predictions.ids)[:, None])[np.isfinite(said)]
    said = said[np.isfinite(said)]
    place = np.clip((10 * said).astype(np.int64), 0, 9)
    counts = np.bincount(place, minlength=10)
    sums, hits = np.bincount(place, said, 10), np.bincount(place, came, 10)
    least = np.maximum(counts, 1)
    return [Bin(int(n), float(p), float(h)) for n, p, h in zip(counts, sums / least, hits / least, strict=True)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """How far what was said is from what came, on average over the predictions: 0 to 1."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.probability - one.share) for one in bins) / max(total, 1)


def _level_names() -> list[str]:
    """The levels of the colours, in bits."""
    between = [f"{low:g}–{high:g}" for low, high in pairwise(LEVELS)]
    return [f"under {LEVELS[0]:g}", *between, f"{LEVELS[-1]:g} or more"]


def _unknown(score: Evaluation) -> str:
    """The characters outside the vocabulary, named; empty where there are none."""
    named = [f"{name(char)} {count:,}×" for char, count in list(score.unknown.items())[:10]]
    more = [f"{len(score.unknown) - 10:,} more"] if len(score.unknown) > 10 else []
    return ", ".join(named + more)


def _baselines(report: Report) -> list[tuple[Baseline, Markup]]:
    """The model and the others, each with its bar."""
    rows = [
        Baseline("this model", report.assessment.score.nats_per_char, "its weights fixed as it reads"),
        *report.assessment.baselines,
    ]
    known = [row.bits_per_char for row in rows if np.isfinite(row.bits_per_char)]
    styles = ["own", *["other"] * len(report.assessment.baselines)]
    most = max(known, default=1.0)
    return [
        (row, charts.bar(row.bits_per_char, most, f"{row.bits_per_char:.3f} of {most:.3f} bits", style=style))
        for row, style in zip(rows, styles, strict=True)
    ]


def _values(log: Iterable[Any], event: str, field: str) -> list[charts.Point]:
    """(step, value) of all events of a kind that have both, by step; of two at one step the later."""
    found = {}
    for record in log:
        if isinstance(record, Mapping) and record.get("event") == event:
            pair = record.get("step"), record.get(field)
            if all(isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < 1e15 for one in pair):
                found[float(pair[0])] = float(pair[1])  # type: ignore[arg-type]
    return sorted(found.items())


def _curves(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The charts of a run, and the figures for a sentence about them; empty where the log holds no loss."""
    trained = charts.thin([(step, bits(nats)) for step, nats in _values(log, "progress", "nats_per_char")], 600)
    scored = [(step, bits(nats)) for step, nats in _values(log, "evaluated", "nats_per_char")]
    if not trained and not scored:
        return {}
    chosen = _values([record for record in log if _is_best(record)], "evaluated", "nats_per_char")
    best = (chosen[-1][0], bits(chosen[-1][1])) if chosen else min(scored, key=lambda point: point[1], default=None)
    smoothed = charts.smooth(trained, len(trained) // 60)
    last = max(step for step, _ in trained + scored)
    # the first steps cost so much that all others would be a flat line: the plot is as high as the rest needs
    low, high = charts.around(y for step, y in smoothed + scored if step >= 0.05 * last)
    steps = charts.Axis("optimiser step", 0, max(last, 1))
    series = [
        charts.Series("training, with dropout", trained, "raw"),
        charts.Series("training, with dropout, smoothed", smoothed, "train"),
        charts.Series("held-out", scored, "valid", dots=True),
    ]
    loss = charts.Axis("loss (bits per character)", low, high)
    return {
        "loss": charts.lines("loss-chart", "Loss by optimiser step", series, steps, loss, best=best),
        "best": best,
        "trained": trained,
        "scored": scored,
        "above": max((y for _, y in trained + scored if y > high), default=None),
        "small": [
            _small_chart("rate", "learning rate", _values(log, "progress", "learning_rate"), steps),
            _small_chart("speed", "characters per second", _values(log, "progress", "chars_per_second"), steps),
        ],
    }


def _is_best(record: Any) -> bool:
    return isinstance(record, Mapping) and record.get("best") is True


def _small_chart(key: str, name: str, points: list[charts.Point], steps: charts.Axis) -> Markup:
    """One line that starts at 0."""
    series = charts.Series(name, charts.thin(points, 300), "train")
    low, high = charts.around((y for _, y in series.points), zero=True)
    title = f"{name.capitalize()} by optimiser step"
    return charts.lines(f"{key}-chart", title, [series], steps, charts.Axis(name, low, high), size=(360, 220))
