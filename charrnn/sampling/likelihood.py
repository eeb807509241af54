"""How likely a text is, by the kernels that draw text: no PyTorch, and little to compile that sampling doesn't.

Letters: N characters, B lanes, L layers, H hidden size, V vocabulary.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.cells import GRU, RNN, gru_step, lstm_step, rnn_step
from charrnn.kernels.generation import Shard
from charrnn.kernels.head import Predictions, predict_from_logits
from charrnn.kernels.ngrams import no_mixture
from charrnn.model.file import ModelFile
from charrnn.model.ngrams import find_contexts
from charrnn.numerics.products import padded, product
from charrnn.numerics.vectors import Doubles, Floats
from charrnn.sampling.engine import make_shards

_WARM_UP = 250  # characters that a lane reads before those that it scores
_CHARS_PER_LANE = 100  # at least, else most of the work would be warming up
_MAX_LANES = 64


def text_nats(file: ModelFile, ids: NDArray[Any], *, context: NDArray[Any]) -> Doubles:
    """Compute the nats of each character of a text, (N,).

    context: the characters before the text, at least one. The text is cut in lanes. A lane first reads the
    characters before it, up to 250, so the mean is that of a sequential reading to three digits or more.
    """
    context = context[-_WARM_UP:]
    before, lanes = len(context), max(1, min(_MAX_LANES, len(ids) // _CHARS_PER_LANE))
    length = -(-len(ids) // lanes)
    mixture = file.mixture or no_mixture()
    contexts = find_contexts(mixture, ids, context=context, boundary_ids=file.config.boundary_ids)
    text = np.concatenate([context, ids, np.zeros(lanes * length - len(ids), ids.dtype)]).astype(np.int64)
    places = np.arange(lanes) * length  # where each lane begins in `text`
    nats, network = np.empty((lanes, length)), _Network(file, lanes)
    for step in range(before + length - 1):
        network.feed(text[places + step])
        position = step + 1 - before
        if position < 0:
            continue
        out = Predictions(
            ids=text[places + step + 1],
            nats=np.empty(lanes),
            ranks=np.empty(lanes, np.int32),
            top=np.empty((lanes, 0), np.int32),
            probabilities=np.empty((lanes, 0), np.float32),
            experts=np.empty((lanes, 2)),
        )
        rows = contexts[np.minimum(places + position, len(ids) - 1)]
        predict_from_logits(network.compute_logits(), mixture, rows, out)
        nats[:, position] = out.nats
    return nats.ravel()[: len(ids)]


class _Network:
    """A network that reads B lanes side by side."""

    def __init__(self, file: ModelFile, lanes: int) -> None:
        config = file.config
        self.reset_id = config.reset_id
        self.shard: Shard = make_shards(config, file.tensors, 1)[0]
        self.h, self.c = np.zeros((2, config.num_layers, lanes, config.hidden_size), np.float32)
        self.projected, self.recurrent = np.empty((2, lanes, padded(self.shard.table.shape[1])), np.float32)
        self.logits = np.empty((lanes, padded(config.vocab_size)), np.float32)

    def feed(self, chars: NDArray[np.int64]) -> None:
        """Feed one character of each lane, (B,). The id that ends a document first resets a lane's state to zero."""
        shard, width = self.shard, self.shard.table.shape[1]
        if self.reset_id is not None:
            self.h[:, chars == self.reset_id] = 0
            self.c[:, chars == self.reset_id] = 0
        self.projected[:, :width] = shard.table[chars]
        for layer, (h, c) in enumerate(zip(self.h, self.c, strict=True)):
            if layer > 0:
                product(self.h[layer - 1], shard.input[layer - 1], self.projected)
                self.projected[:, :width] += shard.bias[layer - 1]
            product(h, shard.recurrent[layer], self.recurrent)
            inner = shard.inner_bias[layer]
            self.recurrent[:, width - len(inner) : width] += inner
            for lane in range(len(chars)):
                p, r = self.projected[lane, :width], self.recurrent[lane, :width]
                if shard.cell == RNN:
                    rnn_step(p, r, h[lane])
                elif shard.cell == GRU:
                    gru_step(p, r, h[lane])
                else:
                    lstm_step(p, r, h[lane], c[lane])

    def compute_logits(self) -> Floats:
        """Return the logits of each lane's next character, (B, V)."""
        bias = self.shard.head_bias
        product(self.h[-1], self.shard.head, self.logits)
        logits: Floats = self.logits[:, : len(bias)] + bias
        return logits
