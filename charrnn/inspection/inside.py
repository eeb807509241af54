"""Looks inside a model: measures the parts that are wanted."""

from collections.abc import Collection

from charrnn.evaluation.texts import EvalText
from charrnn.inspection.alike import find_alike
from charrnn.inspection.classes import ClassTotals
from charrnn.inspection.findings import Inside
from charrnn.inspection.memory import measure_memory
from charrnn.inspection.reach import measure_reach
from charrnn.inspection.units import find_units
from charrnn.kernels.head import Predictions
from charrnn.model.file import ModelFile
from charrnn.model.network import CharRNN


def look_inside(
    parts: Collection[str],
    network: CharRNN,
    file: ModelFile,
    text: EvalText,
    first: Predictions,
    classes: ClassTotals,
    *,
    num_shown: int | None = None,
) -> Inside:
    """Measure parts (of findings.PARTS) of a model on a text that it has scored.

    network: the file's, with which the text was scored; first: the predictions of the text's first characters;
    classes: the sums over those of all its characters. num_shown: how many of the first characters are shown with
    the activations of units; None means all of them.
    """
    return Inside(
        memory=measure_memory(network, file, text, first) if "memory" in parts else None,
        gradient=measure_reach(network, text, first.ids) if "gradient" in parts else None,
        units=find_units(network, file, text, first.ids, num_shown) if "units" in parts else None,
        bits=classes.shares() if "bits" in parts else None,
        alike=find_alike(file.tensors["embedding.weight"], first.ids, file.vocab) if "alike" in parts else None,
    )
