"""A text that a model has scored, and looking inside the model: measuring the parts that are wanted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from charrnn.evaluation.summary import Summary, summarise
from charrnn.evaluation.texts import EvalText
from charrnn.inspection.alike import find_alike
from charrnn.inspection.classes import ClassTotals
from charrnn.inspection.findings import Inside
from charrnn.inspection.memory import measure_memory
from charrnn.inspection.reach import measure_reach
from charrnn.inspection.units import find_units
from charrnn.kernels.head import Predictions
from charrnn.model.file import ModelFile
from charrnn.model.windows import Reader


@dataclass(frozen=True)
class ScoredText:
    """A text that a model's network has scored in one pass. classes: the sums over all its characters."""

    network: Reader
    file: ModelFile
    text: EvalText
    summary: Summary
    classes: ClassTotals

    @classmethod
    def from_predictions(
        cls,
        parts: Iterable[Predictions],
        network: Reader,
        file: ModelFile,
        text: EvalText,
        *,
        num_first: int,
        num_hardest: int,
    ) -> "ScoredText":
        """Read a text's predictions once. num_first, num_hardest: as for summarise."""
        classes = ClassTotals(file.vocab, text.context)
        summary = summarise(classes.watch(parts), text, file.vocab, num_first=num_first, num_hardest=num_hardest)
        return cls(network, file, text, summary, classes)


def look_inside(parts: Iterable[str], scored: ScoredText, *, num_shown: int | None = None) -> Inside:
    """Measure parts (of findings.PARTS) of a model on a text that it has scored, one by one.

    num_shown: how many of the text's first characters are shown with the activations of units; None means all that
    the summary has.
    """
    network, file, text, first = scored.network, scored.file, scored.text, scored.summary.first
    found: dict[str, Any] = {}
    for part in parts:
        match part:
            case "memory":
                found[part] = measure_memory(network, file, text, first)
            case "gradient":
                found[part] = measure_reach(file, text, first.ids)
            case "units":
                found[part] = find_units(network, file, text, first.ids, num_shown)
            case "bits":
                found[part] = scored.classes.shares()
            case "alike":
                found[part] = find_alike(file.tensors["embedding.weight"], first.ids, file.vocab)
    return Inside(**found)
