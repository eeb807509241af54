"""The report: what is known about a model and a text, as one HTML page that loads nothing else.

The text, file names and samples are untrusted. The template escapes them, and characters that
can't be shown (controls, direction overrides, bytes) are replaced by visible ones. The page's policy
allows its own style and script and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from charrnn.config import SampleConfig
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scores import Assessment, Baseline, Evaluation, Line
from charrnn.evaluation.verdict import copying
from charrnn.events import bits, bits_per
from charrnn.inspection.findings import Inside
from charrnn.kernels.head import Predictions
from charrnn.model.file import ModelFile
from charrnn.pages import charts
from charrnn.pages.calibration import calibration_bins, calibration_error
from charrnn.pages.colouring import SCALES, colour_text, compare_experts, pack, surprisal_bits
from charrnn.pages.inside import colour_by_units, show_inside
from charrnn.pages.labels import show_labels
from charrnn.pages.learning import learning_curves
from charrnn.pages.page import render_page
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import UNKNOWN, first_of, name, readable

if TYPE_CHECKING:
    from charrnn.evaluation.labels import LabelScores

TEMPERATURES = (0.5, 0.8, 1.0)
SAMPLE_LENGTH = 600
NUM_DOCUMENTS = 12
_MAX_LINE = 200  # characters of a line in the table
_MAX_NAMED = 10  # unknown characters


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    model: the name of its run or file, which is the title; text: what was scored.
    predictions: of the text's first characters; hardest: the least predictable lines, worst first;
    samples: (temperature, text); log: the events of `log.jsonl`, which are untrusted;
    player: the name of the model's exported page, if that lies beside this one;
    inside: what was found inside the model, if that was asked for; labels: for a model with labels.
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
    player: str = ""
    inside: Inside = field(default_factory=Inside)
    labels: "LabelScores | None" = None


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
    compared = compare_experts(report.predictions)
    colourings = [*compared, *colour_by_units(report.inside)]
    return render_page(
        "report",
        report=report,
        score=report.assessment.score,
        adapted=report.assessment.adapted,
        copying=_copying(report.assessment),
        unit=unit,
        rate=bits_per(unit),
        linked=linked,
        data=pack(report.vocab, report.predictions, colourings),
        text=colour_text(text, surprisal_bits(report.predictions), linked, kind="surprisal"),
        colourings=colourings,
        first_unit=1 + len(compared),
        inside=show_inside(report.inside, text, unit),
        labels=show_labels(report.labels) if report.labels else None,
        scales={kind: SCALES[kind] for kind in ("surprisal", *dict.fromkeys(one.kind for one in colourings))},
        unknown=_name_unknown(report.assessment.score),
        shows_unknown=UNKNOWN in report.vocab.chars,
        rows=_baseline_rows(report.assessment),
        curves=learning_curves(report.log, unit),
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


def _copying(assessment: Assessment) -> list[str]:
    """Say how much is copied, if anything is."""
    parts = assessment.copied or ()
    if not any(part and (part.num_copied or part.num_known) for part in parts):
        return []
    return copying(assessment).split("\n")


def _name_unknown(score: Evaluation) -> str:
    """List the characters outside the vocabulary, most frequent first; empty if there are none."""
    return first_of([f"{name(char)} {count:,}×" for char, count in score.unknown.items()], _MAX_NAMED)


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
