"""Compiles the kernels that a command needs, before it begins: this takes seconds, once per machine.

Which kernels those are is found by running toy networks. Kernels that are not in the cache yet are
compiled by child processes, side by side; then this process loads them. Kernels are the
same for all cells.
"""

import numpy as np

from charrnn.config import ModelConfig, Precision, SampleConfig
from charrnn.data.vocab import Vocab
from charrnn.kernels.compilation import compile_in_children
from charrnn.kernels.products import product
from charrnn.model.file import ModelFile
from charrnn.sampling.sampler import Sampler

_TOY = ModelConfig("gru", vocab_size=2, embedding_dim=1, hidden_size=2, num_layers=2)
_SAMPLING, _SCORING = "sample_toy('float32')", "score_toy()"


def for_training(precision: Precision) -> None:
    """Compile and load what trains, scores and samples."""
    training = f"train_toy({precision!r})"
    _compile([training], [_SAMPLING, _SCORING])
    train_toy(precision)
    score_toy()
    sample_toy("float32")


def for_scoring() -> None:
    """Compile and load what scores, and what draws the samples that belong to a score."""
    _compile([_SCORING], [_SAMPLING])
    score_toy()
    sample_toy("float32")


def for_sampling(precision: Precision) -> None:
    """Compile and load what samples."""
    _compile([f"sample_toy({precision!r})"])
    sample_toy(precision)


def _compile(*queues: list[str]) -> None:
    """Run these calls of functions of this module in child processes, one for each queue."""
    compile_in_children(product, *[[f"from charrnn import precompile as p; p.{call}" for call in q] for q in queues])


def train_toy(precision: Precision) -> None:
    """Compute a gradient."""
    import torch

    from charrnn.model.gradients import Workers
    from charrnn.model.network import CharRNN

    model, x = CharRNN(_TOY), torch.zeros(2, 1, dtype=torch.int64)
    with Workers(model, num_workers=1, precision=precision) as workers:
        workers.compute(x, x, model.initial_state(1))


def score_toy() -> None:
    """Score a text, fit its n-grams, look for copied text."""
    from charrnn.data.batches import make_train_text
    from charrnn.evaluation.assessment import find_copied
    from charrnn.evaluation.scoring import evaluate
    from charrnn.model.network import CharRNN
    from charrnn.training.mixture import fit_mixture

    model, ids = CharRNN(_TOY), np.zeros(50_000, np.uint8)
    evaluate(model, ids[:2], context=ids[:1])
    fit_mixture(model, make_train_text(ids, vocab_size=2))
    ids.flags.writeable = False  # as the ids of a mapped file are, which makes another kernel
    find_copied([ids[:1]], ids)


def sample_toy(precision: Precision) -> None:
    """Draw a character."""
    zeros = {name: np.zeros(shape, np.float32) for name, shape in _TOY.tensor_shapes().items()}
    sampler = Sampler(ModelFile(_TOY, Vocab("ab"), zeros, {}, {}), threads=1, precision=precision)
    list(sampler.stream(SampleConfig(length=1, seed=0)))
