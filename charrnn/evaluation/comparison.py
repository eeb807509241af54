"""Several models on one text: the score of each on the characters that all of them know.

Letters: N characters of the text, M models.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocab import Vocab
from charrnn.errors import InputError, UsageError
from charrnn.evaluation.scores import Evaluation
from charrnn.evaluation.texts import EvalText, read_alike
from charrnn.kernels.head import Predictions
from charrnn.model.file import ModelFile
from charrnn.text.characters import UNKNOWN

BLOCK = 1_000  # characters; farther apart, two characters' scores hardly depend on each other


@dataclass(frozen=True)
class Compared:
    """A model's score, and how far it is behind the best one.

    difference: in nats per character, 0 for the best; error: its standard error, or None for the best
    and for a text of less than two blocks. num_left_out: characters that not every model knows.
    """

    model: str
    score: Evaluation
    difference: float
    error: float | None
    num_left_out: int

    def record(self) -> dict[str, Any]:
        """Return the comparison as the JSON object of `--json`."""
        return {
            **self.score.record(),
            "num_unknown": self.score.num_unknown,
            "unknown": self.score.unknown,
            "num_left_out": self.num_left_out,
            "difference": self.difference,
            "standard_error": self.error,
        }


def check_comparable(names: Sequence[str], files: Sequence[ModelFile], *, on_held_out: bool) -> None:
    """Raise UsageError if models can't be compared on one text, or on their own held-out text."""
    for name, file in zip(names[1:], files[1:], strict=True):
        pair = f"{names[0]} and {name} can't be compared: "
        if file.vocab.has_bytes != files[0].vocab.has_bytes:
            raise UsageError(pair + "one predicts bytes, the other characters")
        if read_alike(file) != read_alike(files[0]):
            raise UsageError(pair + "they split texts into documents in different ways")
        if on_held_out and _held_out(file) != _held_out(files[0]):
            raise UsageError(pair + "their held-out texts differ; name a TEXT")


def _held_out(file: ModelFile) -> tuple[object, ...]:
    """Return what determines a model's held-out text."""
    text, split = file.provenance.get("text", {}), file.provenance.get("split", {})
    return text.get("sha256"), split.get("num_train"), split.get("num_valid")


def align(parts: Iterable[Predictions], text: EvalText, vocab: Vocab) -> NDArray[np.float64]:
    """Return the nats of each character of a text, (N,): NaN if the model doesn't know it, infinite if it is only fed.

    The end of the array is the end of the text. It takes 8 bytes per character.
    """
    rare_id = vocab.id_of(UNKNOWN)
    nats = np.concatenate([np.full(text.num_before, np.inf), *(_nats(part, rare_id) for part in parts)])
    if rare_id is not None or len(text.unknown_chars) == 0:
        return nats
    return np.insert(nats, np.ascontiguousarray(text.unknown_chars["place"]), np.nan)


def _nats(part: Predictions, rare_id: int | None) -> NDArray[np.float64]:
    return part.nats if rare_id is None else np.where(part.ids == rare_id, np.nan, part.nats)


def compare(names: Sequence[str], nats: Sequence[NDArray[np.float64]], texts: Sequence[EvalText]) -> list[Compared]:
    """Compare models by their nats from `align`, (N,) each; the best first.

    Raises InputError if there is no character that all models score.
    """
    length = min(map(len, nats))
    rows = np.stack([one[len(one) - length :] for one in nats])  # (M, N)
    num_left_out = int(np.isnan(rows).any(0).sum())
    rows = rows[:, np.isfinite(rows).all(0)]
    num_chars = rows.shape[1]
    if num_chars == 0:
        raise InputError("nothing to compare: no character of the text is known to all models")
    order = rows.sum(1).argsort(kind="stable").tolist()
    found = []
    for index in order:
        score = Evaluation(float(rows[index].sum()), num_chars, texts[index].unknown)
        behind = rows[index] - rows[order[0]]
        error = None if index == order[0] else standard_error(behind)
        found.append(Compared(names[index], score, float(behind.sum()) / num_chars, error, num_left_out))
    return found


def standard_error(values: NDArray[np.float64]) -> float | None:
    """Estimate the standard error of the mean of dependent values (N,) from the sums of blocks; None for one block."""
    num_blocks = len(values) // BLOCK
    if num_blocks < 2:
        return None
    edges = np.linspace(0, len(values), num_blocks, endpoint=False).astype(np.int64)
    sums = np.add.reduceat(values, edges)
    return math.sqrt(num_blocks * float(sums.var(ddof=1))) / len(values)
