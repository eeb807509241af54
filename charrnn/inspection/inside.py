"""Looks inside a model: measures the parts that are wanted."""

from collections.abc import Iterable
from typing import Any

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


def look_inside(
    parts: Iterable[str],
    network: Reader,
    file: ModelFile,
    text: EvalText,
    first: Predictions,
    classes: ClassTotals,
    *,
    num_shown: int | None = None,
) -> Inside:
    """Measure parts (of findings.PARTS) of a model on a text that it has scored, one after the other.

    network: the file's, with which the text was scored; first: the predictions of the text's first characters;
    classes: the sums over those of all its characters. num_shown: how many of the first characters are shown with
    the activations of units; None means all of them.
    """
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
                found[part] = classes.shares()
            case "alike":
                found[part] = find_alike(file.tensors["embedding.weight"], first.ids, file.vocab)
    return Inside(**found)
