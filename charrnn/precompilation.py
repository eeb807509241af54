"""The kernels that a command needs, compiled before it begins: that takes seconds, happens once, and is shown.

Which those are is found by running toy networks. What no process has compiled before is compiled
by processes of their own, side by side; then this one takes it out of the cache. Kernels
are the same for all cells.
"""

from typing import cast

import numpy as np

from charrnn.checkpoint import ModelFile
from charrnn.config import ModelConfig, Precision
from charrnn.kernels.products import product
from charrnn.kernels.vectors import compile_apart
from charrnn.sampling import Sampler
from charrnn.vocab import Vocab

_DRAW, _SCORE = "draw('float32', 'cpu')", "score('cpu')"
_TOY = ModelConfig("gru", vocab_size=2, embedding_dim=1, hidden_size=2, num_layers=2)


def for_training(precision: str, device: str) -> None:
    """What learns, scores and draws."""
    if device == "cpu":
        _prepare([f"learn({precision!r}, 'cpu')"], [_DRAW, _SCORE])
    learn(precision, device)
    for_scoring(device)


def for_scoring(device: str) -> None:
    """What scores, and draws the samples that belong to a score."""
    if device == "cpu":
        _prepare([_SCORE], [_DRAW])
    score(device)
    for_sampling("float32", "cpu")


def for_sampling(precision: str, device: str) -> None:
    """What draws."""
    _prepare([f"draw({precision!r}, {device.partition(':')[0]!r})"])
    draw(precision, device)


def _prepare(*queues: list[str]) -> None:
    """Have other processes make these calls of functions of this module."""
    lines = [[f"from charrnn import precompilation as p; p.{call}" for call in queue] for queue in queues]
    compile_apart(product, *lines)


def learn(precision: str, device: str) -> None:
    """Compute a gradient."""
    import torch

    from charrnn.lanes import Workers
    from charrnn.model import CharRNN

    model, x = CharRNN(_TOY).to(device), torch.zeros(2, 1, dtype=torch.int64, device=device)
    with Workers(model, num_workers=1, precision=cast(Precision, precision)) as workers:
        workers.window_gradient(x, x, model.initial_state(1), None)


def score(device: str) -> None:
    """Score a text, weigh its n-grams, look for copies in it."""
    from charrnn.evaluation import evaluate
    from charrnn.mixture import make
    from charrnn.model import CharRNN
    from charrnn.verbatim import copied
    from charrnn.withholding import withhold

    model, ids = CharRNN(_TOY).to(device), np.zeros(50_000, np.uint8)
    evaluate(model, ids[:2], context=ids[:1])
    make(model, withhold(ids, vocab_size=2))
    ids.flags.writeable = False  # as those of a file are, which makes another kernel
    copied([ids[:1]], ids)


def draw(precision: str, device: str) -> None:
    """Draw from a network."""
    zeros = {name: np.zeros(shape, np.float32) for name, shape in _TOY.tensor_shapes().items()}
    sampler = Sampler(ModelFile(_TOY, Vocab("ab"), zeros, {}, {}), precision=precision, device=device)
    list(sampler.stream(length=1, seed=0))
