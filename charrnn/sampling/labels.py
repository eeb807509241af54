"""Labels that texts are written for: one that the user names, or one drawn as the model would.

A text with a label continues `END label LABEL_END prompt`. A label is drawn from p(label) p(prompt | label), among the
labels that the model has learned.

Letters: K labels.
"""

import difflib

import numpy as np
from numpy.typing import NDArray

from charrnn.counters import label_number
from charrnn.errors import UsageError
from charrnn.model.file import ModelFile
from charrnn.numerics.vectors import Doubles
from charrnn.sampling.likelihood import text_nats
from charrnn.text.characters import END, LABEL_END, first_of, one_line
from charrnn.text.formats import quoted

_MAX_NAMED = 10  # labels in a message


class Labels:
    """The labels of a model. names: the most frequent one first."""

    def __init__(self, file: ModelFile) -> None:
        self._file, self.names = file, list(file.labels)
        self._drawn_from: dict[bytes, Doubles] = {}  # by prompt

    def check(self, label: str | None) -> None:
        """Raise UsageError for a label that the model doesn't know."""
        if label is None or label in self.names:
            return
        if not self.names:
            raise UsageError(f"--label {quoted(label)}: the model was trained without labels; leave it out")
        near = difflib.get_close_matches(label, self.names, n=3)
        known = first_of(list(map(one_line, [*near, *(name for name in self.names if name not in near)])), _MAX_NAMED)
        raise UsageError(f"the model has no label {quoted(label)}; it knows {known}")

    def encode(self, label: str) -> NDArray[np.int64]:
        """Return the ids of a label and of LABEL_END."""
        vocab = self._file.vocab
        return vocab.encode(vocab.to_chars(label) + LABEL_END).astype(np.int64)

    def draw(self, prompt: NDArray[np.int64], *, seed: int, stream: int) -> str:
        """Draw the label of a stream, given the prompt that its text begins with."""
        reached = np.cumsum(self.probabilities(prompt))
        place = int(np.searchsorted(reached, label_number(seed=seed, stream=stream) * reached[-1], side="right"))
        return self.names[place]

    def probabilities(self, prompt: NDArray[np.int64]) -> Doubles:
        """Return the probability of each label, (K,), given the beginning of the text."""
        key = prompt.tobytes()
        if key not in self._drawn_from:
            end = self._file.vocab.encode(END).astype(np.int64)
            documents = [np.concatenate([self.encode(name), prompt, end]) for name in self.names]
            ids = np.concatenate(documents)
            nats = np.where(ids == end, 0.0, text_nats(self._file, ids, context=end))
            sums = np.add.reduceat(nats, np.cumsum([0, *map(len, documents[:-1])]))
            shares = np.exp(sums.min() - sums)
            self._drawn_from[key] = shares / shares.sum()
        return self._drawn_from[key]
