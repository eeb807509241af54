"""Compiles the kernels that a command needs before it starts. This takes seconds, once per machine.

Toy networks call all these kernels. Child processes compile those that are not in the cache yet,
all at once; then this process loads them from the cache. All cells use the same kernels.
"""

import itertools
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np

from charrnn.config import ModelConfig, Precision, SampleConfig
from charrnn.data.vocab import Vocab
from charrnn.model.file import ModelFile
from charrnn.model.windows import KernelNetwork
from charrnn.numerics.compilation import compile_in_children
from charrnn.numerics.products import product
from charrnn.numerics.vectors import Floats
from charrnn.sampling.sampler import Sampler

_TOY = ModelConfig("gru", vocab_size=2, embedding_dim=1, hidden_size=2, num_layers=2)


def for_training(precision: Precision) -> None:
    """Compile and load the kernels for training, scoring and sampling."""
    _load([partial(train_toy, precision)], [partial(sample_toy, "float32"), partial(score_toy)])


def for_scoring() -> None:
    """Compile and load the kernels for scoring, and for the samples that a score comes with."""
    _load([partial(score_toy)], [partial(sample_toy, "float32")])


def for_adapting() -> None:
    """Compile and load the kernels for scoring by dynamic evaluation."""
    _load([partial(adapt_toy)], [partial(score_toy), partial(sample_toy, "float32")])


def for_inspecting() -> None:
    """Compile and load the kernels for scoring, and for gradients that reach back to a text's characters."""
    _load([partial(inspect_toy)], [partial(score_toy), partial(sample_toy, "float32")])


def for_sampling(precision: Precision) -> None:
    """Compile and load the kernels for sampling."""
    _load([partial(sample_toy, precision)])


def for_exporting() -> None:
    """Compile and load the kernels for what an exported page costs: the likelihood of texts, and drawing one."""
    _load([partial(measure_toy)], [partial(sample_toy, "float32")])


def _load(*queues: Sequence[partial[None]]) -> None:
    """Run toys of this module in child processes, one per queue, and then here; warn if a child fails."""
    for reason in compile_in_children(product, *([_as_code(toy) for toy in queue] for queue in queues)):
        warnings.warn(
            f"kernels could not be compiled ahead ({reason}); "
            "results of this run may differ in the last digits from those of later runs",
            RuntimeWarning,
            stacklevel=3,
        )
    for toy in itertools.chain(*queues):
        toy()


def _as_code(toy: partial[None]) -> str:
    """Write the call of a toy as a line of Python."""
    return f"from charrnn import precompile as p; p.{toy.func.__name__}({', '.join(map(repr, toy.args))})"


def train_toy(precision: Precision) -> None:
    """Compute a gradient with dropout."""
    import torch

    from charrnn.config import TrainConfig
    from charrnn.model.gradients import Workers
    from charrnn.model.network import CharRNN
    from charrnn.training.optimizer import dropout_masks, weight_masks
    from charrnn.training.state import TrainState

    config = TrainConfig(batch_size=1, seq_len=2, learning_rate=1e-3, dropout=0.5, weight_drop=0.5)
    state, x = TrainState.initial(CharRNN(_TOY), config), torch.zeros(2, 1, dtype=torch.int64)
    with Workers(state.model, num_workers=1, precision=precision) as workers:
        workers.compute(x, x, state.hidden, dropout_masks(state, config), weight_masks(state, config))


def adapt_toy() -> None:
    """Score a text while learning from it."""
    from charrnn.evaluation.adaptation import evaluate_adapting
    from charrnn.model.network import CharRNN

    ids = np.zeros(3, np.uint8)
    evaluate_adapting(CharRNN(_TOY), ids[1:], context=ids[:1], train=ids)


def inspect_toy() -> None:
    """Compute gradients at a text's characters."""
    from charrnn.inspection.reach import gradient_norms

    network = KernelNetwork.from_arrays(_TOY, _toy_weights(), threads=1)
    gradient_norms(network, _toy_weights()["layers.0.weight_ih_l0"], np.zeros((3, 1), np.int64))


def score_toy() -> None:
    """Score a text, fit its n-grams and look for copied text."""
    from charrnn.data.batches import make_train_text
    from charrnn.evaluation.copying import find_copied
    from charrnn.evaluation.scoring import evaluate
    from charrnn.training.mixture import fit_mixture

    network, ids = KernelNetwork.from_arrays(_TOY, _toy_weights(), threads=1), np.zeros(50_000, np.uint8)
    evaluate(network, ids[:2], context=ids[:1])
    fit_mixture(network, make_train_text(ids, vocab_size=2), num_counted=len(ids))
    ids.flags.writeable = False  # as the ids of a mapped file are; kernels are compiled for both kinds
    find_copied([ids[:1]], ids)


def measure_toy() -> None:
    """Compute how likely a text is."""
    from charrnn.sampling.likelihood import text_nats

    ids = np.zeros(3, np.uint8)
    text_nats(ModelFile(_TOY, Vocab("ab"), _toy_weights(), {}, {}), ids[1:], context=ids[:1])


def sample_toy(precision: Precision) -> None:
    """Draw a character."""
    sampler = Sampler(ModelFile(_TOY, Vocab("ab"), _toy_weights(), {}, {}), threads=1, precision=precision)
    list(sampler.stream(SampleConfig(length=1, seed=0)))


def _toy_weights() -> dict[str, Floats]:
    return {name: np.zeros(shape, np.float32) for name, shape in _TOY.tensor_shapes().items()}
