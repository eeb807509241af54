"""Scores, comparisons and lines of a text as rows of a table, and characters as JSON records."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from charrnn.evaluation.scores import Assessment, Evaluation, Line
from charrnn.evaluation.verdict import sentences
from charrnn.events import bits, bits_per
from charrnn.text.characters import UNKNOWN, describe, first_of, valid_unicode

if TYPE_CHECKING:
    from charrnn.data.vocab import Vocab
    from charrnn.evaluation.comparison import Compared
    from charrnn.evaluation.labels import LabelScores
    from charrnn.kernels.head import Predictions

MAX_NAMED = 10  # unknown characters


def score_rows(model: str, text: str, score: Evaluation, unit: str) -> list[tuple[str, str]]:
    """Return a score as rows of a table. unit: what the model predicts, a character or a byte."""
    rows = [
        ("model", model),
        ("text", text),
        (f"{unit}s scored", f"{score.num_chars:,}"),
        (f"nats per {unit}", f"{score.nats_per_char:.6f}"),
        (f"bits per {unit}", f"{score.bits_per_char:.6f}"),
        ("perplexity", f"{score.perplexity:.4f}"),
    ]
    if score.unknown:
        named = first_of([f"{describe(char)} {count:,}x" for char, count in score.unknown.items()], MAX_NAMED)
        rows.append((f"unknown {unit}s", f"{score.num_unknown:,}, not scored: {named}"))
    return rows


def comparison_header(found: Assessment) -> tuple[str, ...]:
    """Return the header of a table of scores."""
    return "predictor", bits_per(found.unit), ""


def comparison_rows(found: Assessment) -> list[tuple[str, str, str]]:
    """Return the scores of the model, its parts and the baselines on the same characters, the model first."""
    rows = [("this model", f"{found.score.bits_per_char:.3f}", "")]
    if found.score.experts:
        names = ("its network alone", "its n-grams alone")
        for name, nats in zip(names, found.score.experts, strict=True):
            rows.append((name, f"{bits(nats / found.score.num_chars):.3f}", ""))
    if found.adapted:
        how = "dynamic evaluation: learns from the text as it reads"
        rows.append(("adapting to the text", f"{found.adapted.bits_per_char:.3f}", how))
    return rows + [(baseline.name, f"{baseline.bits_per_char:.3f}", baseline.note) for baseline in found.baselines]


def comparison_lines(found: Assessment) -> str:
    """Return the comparison, with the model's perplexity, and its summary as lines of text."""
    (own, figure, _), *others = comparison_rows(found)
    rows = [(own, figure, f"perplexity {found.score.perplexity:.2f}"), *others]
    width = max(len(name) for name, _, _ in rows)
    lines = [
        f"{name:<{width}}  {figure} {bits_per(found.unit)}{f' ({note})' if note else ''}" for name, figure, note in rows
    ]
    return "\n".join([*lines, *sentences(found)])


def compared_header(unit: str) -> tuple[str, ...]:
    """Return the header of a table of models. unit: what they predict, a character or a byte."""
    return "model", bits_per(unit), "behind the best", "standard error"


def compared_facts(text: str, unit: str, found: "Sequence[Compared]") -> list[tuple[str, str]]:
    """Return what a comparison of models was made on, as rows of a table."""
    rows = [("text", text), (f"{unit}s scored", f"{found[0].score.num_chars:,}")]
    if num_left_out := found[0].num_left_out:
        rows.append((f"{unit}s left out", f"{num_left_out:,}, unknown to at least one model"))
    return rows


def compared_row(found: "Compared") -> tuple[str, ...]:
    """Return a model's score, and how far it is behind the best, as a row of a table; empty cells for the best."""
    error = "" if found.error is None else f"{bits(found.error):.3f}"
    behind = f"+{bits(found.difference):.3f}" if found.difference else ""
    return found.model, f"{found.score.bits_per_char:.3f}", behind, error


def line_header(lines: Sequence[Line], unit: str) -> tuple[str, ...]:
    """Return the header of a table of lines, whose numbers are those of lines or of documents."""
    return lines[0].numbered if lines else "line", bits_per(unit), "bits", "unknown", "text"


def line_row(line: Line) -> tuple[str, ...]:
    """Return a line's score as a row of a table."""
    return (
        f"{line.number:,}",
        f"{line.bits_per_char:.3f}",
        f"{line.bits:.1f}",
        f"{line.num_unknown:,}",
        line.text if line.label is None else f"{line.label}: {line.text}",
    )


def label_facts(model: str, text: str, found: "LabelScores", unit: str) -> list[tuple[str, str]]:
    """Return what the labels of a text add up to, as rows of a table. unit: a character or a byte."""
    rows = [("model", model), ("text", text), ("documents", f"{len(found.own):,}")]
    if unlabelled := int((found.own < 0).sum()):
        rows.append(("without known label", f"{unlabelled:,}"))
    if num_unknown := int(found.num_unknown.sum()):
        rows.append((f"unknown {unit}s", f"{num_unknown:,}, not scored"))
    given = found.bits_given_label()
    if given is not None:
        rows.append((f"bits per {unit}, label given", f"{given:.3f}"))
    rows.append((f"bits per {unit}, without label", f"{found.bits_without_label():.3f}"))
    if found.accuracy is not None and found.majority is not None:
        rows.append(("labels guessed right", f"{found.accuracy:.1%} (always the most frequent: {found.majority:.1%})"))
    return rows


def label_header(unit: str) -> tuple[str, ...]:
    """Return the header of a table of labels. unit: a character or a byte."""
    return "label", "documents", bits_per(unit), "without label", "guessed right", "taken for"


def label_rows(found: "LabelScores") -> list[tuple[str, ...]]:
    """Return each label's scores, and the labels that its documents were taken for most often, as rows of a table."""
    rows: list[tuple[str, ...]] = []
    for one in found.records():
        wrong = [f"{label} {count:,}" for label, count in found.mistakes(one["label"])[:2]]
        figures = f"{one['bits_per_char']:.3f}", f"{one['bits_per_char_without_label']:.3f}", f"{one['recall']:.1%}"
        rows.append((one["label"], f"{one['num_documents']:,}", *figures, ", ".join(wrong)))
    return rows


def confusion_header(found: "LabelScores") -> tuple[str, ...]:
    """Return the header of a confusion table."""
    return ("label \\ guess", *(found.labels[label] for label in found.occurring))


def confusion_rows(found: "LabelScores") -> list[tuple[str, ...]]:
    """Return how many documents of each label (rows) were taken for each label (columns)."""
    return [
        (found.labels[row], *(f"{found.confusion[row, column]:,}" for column in found.occurring))
        for row in found.occurring
    ]


def document_text(text: str) -> str:
    """Return a document as the text of a JSON object."""
    return valid_unicode(text).replace(UNKNOWN, "\ufffd")


def char_records(part: "Predictions", vocab: "Vocab") -> Iterator[dict[str, Any]]:
    """Yield each character's score and its likeliest alternatives as JSON objects; rare characters are left out."""
    rows = (array.tolist() for array in (part.nats, part.ranks, part.top, part.probabilities))
    for char, nats, rank, top, probabilities in zip(vocab.decode(part.ids), *rows, strict=True):
        likely = [[vocab.chars[other], probability] for other, probability in zip(top, probabilities, strict=True)]
        if char != UNKNOWN:
            yield {"char": char, "nats": nats, "rank": rank + 1, "top": likely}
