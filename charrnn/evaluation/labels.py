"""Labels: how well a model predicts texts given their labels, and labels given their texts.

A model with labels predicts `label LABEL_END text END`, so it is a joint model of both. The probability of a
text is the sum of p(label) p(text | label) over all labels, and the Bayes classifier chooses the label for which
that product is the largest. Each text is scored once with each label.

Letters: D documents, K labels, N characters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from charrnn.data.documents import without_labels
from charrnn.data.vocab import Ids
from charrnn.evaluation.scoring import predict
from charrnn.evaluation.texts import EvalText
from charrnn.events import bits
from charrnn.model.file import ModelFile
from charrnn.model.windows import Reader
from charrnn.numerics.vectors import Doubles
from charrnn.sampling.labels import Labels
from charrnn.text.characters import END, LABEL_END, UNKNOWN

MAX_SCORED = 20_000_000  # characters, with all labels; they take minutes
_BLOCK = 1 << 19  # characters scored at a time


@dataclass(frozen=True)
class LabelledText:
    """The texts and labels of documents.

    ids: of the texts, one after the other, each followed by END. stops: (D,), where each ends. own: (D,), the
    label of each as its place among the model's labels; -1 for a text without label, or with one unknown to the model.
    num_unknown: (D,), how many characters of each are not scored. num_left_out: documents that are not among them.
    """

    ids: Ids
    stops: NDArray[np.int64]
    own: NDArray[np.int64]
    num_unknown: NDArray[np.int64]
    num_left_out: int = 0

    @classmethod
    def from_text(cls, text: EvalText, file: ModelFile) -> "LabelledText":
        """Split a text into its documents: all of them begin with a label and LABEL_END, or none does.

        file: the model whose labels are known.
        """
        vocab = file.vocab
        ids, end, label_end, rare_id = text.ids, *map(vocab.id_of, (END, LABEL_END, UNKNOWN))
        ends = np.flatnonzero(ids == end)
        starts = np.concatenate([[0], ends[:-1] + 1])
        unknown = text.unknown_chars["place"] if rare_id is None else np.flatnonzero(ids == rare_id)
        num_unknown = np.bincount(np.searchsorted(ends, unknown), minlength=len(ends))
        places = {vocab.to_chars(label): place for place, label in enumerate(file.labels)}
        own = np.full(len(starts), -1, np.int64)
        for index, stop in enumerate(np.flatnonzero(ids == label_end)):
            own[index] = places.get(vocab.decode(ids[starts[index] : stop]), -1)
        texts = without_labels(ids, end, label_end)
        return cls(texts, np.flatnonzero(texts == end) + 1, own, num_unknown)

    def spread(self, count: int) -> "LabelledText":
        """Return so many of the documents, or all if there are fewer, spread evenly."""
        chosen = np.arange(len(self))[:: -(-len(self) // count)]
        documents = [self[index] for index in chosen]
        num_left_out = len(self) - len(chosen)
        stops = np.cumsum([*map(len, documents)])
        return LabelledText(
            np.concatenate(documents), stops, self.own[chosen], self.num_unknown[chosen], num_left_out=num_left_out
        )

    def __len__(self) -> int:
        return len(self.stops)

    def __getitem__(self, index: int) -> Ids:
        """Return the ids of one text, with its END."""
        return self.ids[self.stops[index - 1] if index else 0 : self.stops[index]]


@dataclass(frozen=True)
class LabelScores:
    """What a model says about D documents and K labels.

    labels: the model's. own, num_unknown: (D,), as in LabelledText. num_chars: (D,), characters scored, END included.
    prior: (K,), nats of each label itself. nats: (D, K), of each text given each label. num_left_out: as in
    LabelledText.
    """

    labels: tuple[str, ...]
    own: NDArray[np.int64]
    num_unknown: NDArray[np.int64]
    num_chars: NDArray[np.int64]
    prior: Doubles
    nats: Doubles
    num_left_out: int = 0

    MAX_CONFUSED: ClassVar[int] = 12  # labels of a confusion table that people read

    @cached_property
    def marginal(self) -> Doubles:
        """The nats of each text without its label: -log of the sum of p(label) p(text | label), (D,)."""
        total: Doubles = -np.logaddexp.reduce(-(self.prior + self.nats), axis=1)
        return total

    @cached_property
    def posterior(self) -> Doubles:
        """The probability of each label given each text, (D, K); rows sum to 1."""
        found: Doubles = np.exp(self.marginal[:, None] - self.prior - self.nats)
        return found

    @property
    def guesses(self) -> NDArray[np.int64]:
        """The most probable label of each text, (D,)."""
        found: NDArray[np.int64] = np.argmin(self.prior + self.nats, axis=1)
        return found

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """How many texts of each label (rows) were taken for each label (columns): (K, K)."""
        table, known = np.zeros((len(self.labels), len(self.labels)), np.int64), self.own >= 0
        np.add.at(table, (self.own[known], self.guesses[known]), 1)
        return table

    @property
    def occurring(self) -> list[int]:
        """The labels that some document has or was taken for, the most frequent first."""
        counts = self.confusion.sum(axis=1)
        seen = counts + self.confusion.sum(axis=0)
        return [label for label in np.argsort(-counts, kind="stable").tolist() if seen[label]]

    def mistakes(self, label: str) -> list[tuple[str, int]]:
        """Return the other labels that documents of a label were taken for, and how many, the most frequent first."""
        own = self.labels.index(label)
        counts = self.confusion[own]
        order = np.argsort(-counts, kind="stable").tolist()
        return [(self.labels[one], int(counts[one])) for one in order if one != own and counts[one]]

    @property
    def accuracy(self) -> float | None:
        """The share of labelled texts that the classifier gets right; None without any."""
        known = self.own >= 0
        return float((self.guesses == self.own)[known].mean()) if known.any() else None

    @property
    def majority(self) -> float | None:
        """The share that the most frequent of the texts' labels has: the accuracy of always naming it."""
        counts = np.bincount(self.own[self.own >= 0])
        return float(counts.max() / counts.sum()) if counts.sum() else None

    def bits_given_label(self, label: int | None = None) -> float | None:
        """Bits per character of the texts of one label, or of all labelled texts, given their labels."""
        wanted = np.flatnonzero(self.own >= 0 if label is None else self.own == label)
        if len(wanted) == 0:
            return None
        return bits(float(self.nats[wanted, self.own[wanted]].sum() / self.num_chars[wanted].sum()))

    def bits_without_label(self, label: int | None = None) -> float | None:
        """Bits per character of the same texts without labels; of all texts if none has a label."""
        wanted = self.own >= 0 if label is None else self.own == label
        if label is None and not wanted.any():
            wanted = np.ones(len(self.own), np.bool_)
        return bits(float(self.marginal[wanted].sum() / self.num_chars[wanted].sum())) if wanted.any() else None

    def document_records(self) -> Iterator[dict[str, Any]]:
        """Yield a JSON object for each document: its label, the probability of each label, bits without the label."""
        counts = zip(self.own, self.num_chars, self.num_unknown, strict=True)
        for (own, num_chars, num_unknown), nats, shares in zip(counts, self.marginal, self.posterior, strict=True):
            order = np.argsort(-shares, kind="stable").tolist()
            yield {
                "label": self.labels[own] if own >= 0 else None,
                "labels": {self.labels[label]: float(shares[label]) for label in order},
                "bits": bits(float(nats)),
                "num_chars": int(num_chars),
                "num_unknown": int(num_unknown),
            }

    def record(self) -> dict[str, Any]:
        """Return all figures as a JSON object. confusion: by label and then by guess, without zeros."""
        confusion = {
            self.labels[row]: {self.labels[column]: int(counts[column]) for column in np.flatnonzero(counts)}
            for row, counts in enumerate(self.confusion)
            if counts.any()
        }
        return {
            "num_documents": len(self.own),
            "num_labelled": int((self.own >= 0).sum()),
            "num_left_out": self.num_left_out,
            "num_chars": int(self.num_chars.sum()),
            "num_unknown": int(self.num_unknown.sum()),
            "bits_per_char": self.bits_given_label(),
            "bits_per_char_without_label": self.bits_without_label(),
            "accuracy": self.accuracy,
            "majority": self.majority,
            "labels": list(self.records()),
            "confusion": confusion,
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a JSON object for each label that some text has, the most frequent first."""
        counts = np.bincount(self.own[self.own >= 0], minlength=len(self.labels))
        right = self.confusion.diagonal()
        for label in np.argsort(-counts, kind="stable").tolist():
            if counts[label]:
                yield {
                    "label": self.labels[label],
                    "num_documents": int(counts[label]),
                    "num_chars": int(self.num_chars[self.own == label].sum()),
                    "bits_per_char": self.bits_given_label(label),
                    "bits_per_char_without_label": self.bits_without_label(label),
                    "recall": float(right[label] / counts[label]),
                }


@dataclass(frozen=True)
class LabelScorer:
    """Scores texts with each label of a model. network: the file's, whose state is reset at END."""

    network: Reader
    file: ModelFile

    def limit(self, text: LabelledText, num_chars: int) -> LabelledText:
        """Return documents spread evenly over a text that have about so many characters with all labels, or all."""
        count = max(1, num_chars * len(text) // (len(self.file.labels) * len(text.ids)))
        return text.spread(count) if count < len(text) else text

    def score(self, text: LabelledText) -> LabelScores:
        """Score all texts."""
        blocks = list(self.blocks(text))
        num_chars, nats = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("num_chars", "nats"))
        return LabelScores(
            blocks[0].labels, text.own, text.num_unknown, num_chars, blocks[0].prior, nats, text.num_left_out
        )

    def blocks(self, text: LabelledText) -> Iterator[LabelScores]:
        """Yield the scores of the texts in their order, a few texts at a time."""
        is_scored = np.append(text.ids != self.file.vocab.id_of(UNKNOWN), False)  # of rare characters nothing is known
        num_chars = np.add.reduceat(is_scored, np.concatenate([[0], text.stops[:-1]]), dtype=np.int64)
        sizes = len(self._prefixes) * np.diff(text.stops, prepend=0)
        for rows in _cut(sizes, _BLOCK):
            documents = [np.concatenate([prefix, text[index]]) for index in rows for prefix in self._prefixes]
            nats = self._nats(documents).reshape(len(rows), -1) - self._prior
            yield LabelScores(
                tuple(self.file.labels), text.own[rows], text.num_unknown[rows], num_chars[rows], self._prior, nats
            )

    @cached_property
    def _prefixes(self) -> list[NDArray[np.int64]]:
        """Each label with LABEL_END, as ids."""
        labels = Labels(self.file)
        return [labels.encode(name) for name in labels.names]

    @cached_property
    def _end(self) -> Ids:
        return self.file.vocab.encode(END)

    @cached_property
    def _prior(self) -> Doubles:
        """The nats of each label with LABEL_END: (K,)."""
        return self._nats([np.concatenate([prefix, self._end]) for prefix in self._prefixes], with_end=False)

    def _nats(self, documents: Sequence[Ids], *, with_end: bool = True) -> Doubles:
        """Return the nats of each document, (len(documents),), read from its beginning. All of them end with END."""
        ids = np.concatenate(documents)
        parts = predict(self.network, ids, context=self._end, mixture=self.file.mixture)
        nats = np.concatenate([part.nats for part in parts])
        nats[ids == self.file.vocab.id_of(UNKNOWN)] = 0.0
        if not with_end:
            nats[ids == self._end] = 0.0
        starts = np.cumsum([0, *map(len, documents[:-1])])
        sums: Doubles = np.add.reduceat(nats, starts)
        return sums


def _cut(sizes: NDArray[np.int64], most: int) -> Iterator[range]:
    """Yield ranges of items whose sizes add up to at most `most`; a larger item is alone."""
    start, total = 0, 0
    for index, size in enumerate(sizes.tolist()):
        if index > start and total + size > most:
            yield range(start, index)
            start, total = index, 0
        total += size
    yield range(start, len(sizes))
