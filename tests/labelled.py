"""A small model with labels, and what it predicts by the definition, for tests of scoring and of drawing."""

import numpy as np
import torch

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.kernels.ngrams import fill_distribution
from charrnn.model.file import ModelFile
from charrnn.model.network import CharRNN
from charrnn.model.ngrams import count_ngrams, find_contexts
from charrnn.text.characters import END, LABEL_END, UNKNOWN

LABELS = {"b": 5, "ab": 4, "c": 1}


def make_file(*, mixed: bool) -> ModelFile:
    """A model with random weights, and n-grams of random documents if it is mixed."""
    vocab = Vocab("".join(sorted("abcz" + END + LABEL_END + UNKNOWN)))
    symbols = {"reset_id": vocab.id_of(END), "label_id": vocab.id_of(LABEL_END)}
    config = ModelConfig("gru", len(vocab), 4, 8, 2, **symbols)
    torch.manual_seed(0)
    tensors = {name: 2 * torch.randn(shape).numpy() for name, shape in config.tensor_shapes().items()}
    ngram = {}
    if mixed:
        train = np.random.default_rng(0).integers(0, len(vocab), 400).astype(np.uint8)
        ngram = {**count_ngrams(train, 4, vocab_size=len(vocab)), "ngram.weights": np.full((4, 2), 0.5)}
    return ModelFile(
        config, vocab, tensors, {}, {"text": {"labels": LABELS}, "split": {"column": "name", "label": "kind"}}, ngram
    )


def naive_logits(file: ModelFile, text: str) -> np.ndarray:
    """The logits of the character after a text that begins with END; n-grams begin at END and at LABEL_END."""
    network, ids = CharRNN.from_arrays(file.config, file.tensors), file.vocab.encode(text).astype(np.int64)
    logits, _ = network(torch.from_numpy(ids[:, None]), network.initial_state(1))
    row = logits[-1, 0].detach().numpy().astype(np.float64)
    if file.mixture:
        known = ids[max(text.rfind(END), text.rfind(LABEL_END)) :]
        contexts = find_contexts(file.mixture, np.append(known[1:], 0), context=known[:1])[-1]
        shares = np.empty(len(row))
        longest = fill_distribution(file.mixture.trie, contexts, shares)
        row = np.column_stack([row, np.log(shares)]) @ file.mixture.weights[longest]
    return row


def naive_nats(file: ModelFile, label: str, text: str) -> tuple[float, float]:
    """The nats of a label and, after it, of a text with its END, character by character; rare ones cost nothing."""
    whole, sums = END + label + LABEL_END + text + END, [0.0, 0.0]
    for place in range(1, len(whole)):
        if whole[place] != UNKNOWN:
            row = naive_logits(file, whole[:place])
            sums[place > len(label) + 1] += np.logaddexp.reduce(row) - row[file.vocab.chars.index(whole[place])]
    return sums[0], sums[1]
