"""A model in fewer bytes: rounded weights, only the shorter n-grams, and what both cost on a text.

In int8 each row of a matrix has a scale, by which its largest weight becomes 127; biases stay float32. An n-gram's
share is rounded down to one of 256 levels, so the shares of a node's children still sum to less than 1. What is
computed is float32 again: a rounded model is a model whose weights need fewer bytes.

Letters: N characters, R rows, V vocabulary, K n-grams, B lanes, T steps, H hidden size, L layers.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import NUM_STATES, PagePrecision
from charrnn.kernels.head import Predictions, predict_from_logits
from charrnn.kernels.ngrams import no_mixture
from charrnn.kernels.vectors import Doubles, Floats
from charrnn.model.file import ModelFile
from charrnn.model.ngrams import Arrays, find_contexts

_LARGEST = 127
_NUM_LEVELS = 256
_WARM_UP = 250  # characters that a lane reads before those that it scores
_CHARS_PER_LANE = 100  # at least, else most of the work would be warming up
_MAX_LANES = 64


def store_weights(file: ModelFile, precision: PagePrecision) -> Arrays:
    """Round the network's tensors: int8 with `<name>.scale` (R,), uint16 (the bits of bfloat16), or float32."""
    stored: Arrays = {}
    for name, tensor in file.tensors.items():
        values = np.ascontiguousarray(tensor, np.float32)
        if values.ndim == 1 or precision == "float32":
            stored[name] = values
        elif precision == "bfloat16":
            bits = values.view(np.uint32)
            stored[name] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even
        else:
            scale = np.maximum(np.abs(values).max(axis=1) / _LARGEST, np.finfo(np.float32).tiny)
            stored[name] = np.rint(values / scale[:, None]).astype(np.int8)
            stored[f"{name}.scale"] = scale
    return stored


def store_ngrams(file: ModelFile, precision: PagePrecision) -> Arrays:
    """Store the n-grams in the smallest types that hold them; `ngram.kept` as indices into `ngram.levels`.

    In float32 the shares are exact and there are no levels.
    """
    stored = {name: np.array(array) for name, array in file.ngram.items()}
    for name in ("ngram.children", "ngram.char"):
        if name in stored and stored[name].max(initial=0) < 256:
            stored[name] = stored[name].astype(np.uint8)
    if stored and precision != "float32":
        kept = stored["ngram.kept"]
        smallest = kept[kept > 0].min(initial=1.0)
        levels = np.append(0, np.geomspace(smallest, 1, _NUM_LEVELS - 1)).astype(np.float32)
        levels[1] = smallest
        stored["ngram.kept"] = (np.searchsorted(levels, kept, side="right") - 1).astype(np.uint8)
        stored["ngram.levels"] = levels
    return stored


def restore(file: ModelFile, stored: Mapping[str, NDArray[Any]]) -> ModelFile:
    """Return the model that stored arrays stand for, with the characters and facts of the original."""
    tensors, ngram = {}, {}
    for name in file.tensors:
        array = stored[name]
        if array.dtype == np.uint16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        elif array.dtype == np.int8:
            array = array * stored[f"{name}.scale"][:, None]
        tensors[name] = array
    for name in file.ngram.keys() & stored.keys():
        levels = stored.get("ngram.levels")
        is_share = name == "ngram.kept"
        array = levels[stored[name]] if is_share and levels is not None else stored[name]
        ngram[name] = array.astype(file.ngram[name].dtype)
    return replace(file, tensors=tensors, ngram=ngram)


def cut_ngrams(file: ModelFile, order: int) -> ModelFile:
    """Leave out the n-grams of more than `order` characters, all of them for 0."""
    if order == 0:
        return replace(file, ngram={})
    children, num_nodes, num_inner = file.ngram["ngram.children"], 1, 0  # nodes up to some length, and shorter ones
    for _ in range(order):
        num_children = int(children[num_inner:num_nodes].sum(dtype=np.int64))
        num_inner, num_nodes = num_nodes, num_nodes + num_children
    return replace(
        file,
        ngram={
            "ngram.children": children[:num_inner],
            "ngram.char": file.ngram["ngram.char"][: num_nodes - 1],
            "ngram.kept": file.ngram["ngram.kept"][: num_nodes - 1],
            "ngram.weights": file.ngram["ngram.weights"][:order],
        },
    )


def text_nats(file: ModelFile, ids: NDArray[Any], *, context: NDArray[Any]) -> Doubles:
    """Score a text in numpy, without compiling what scoring in full needs: the nats of each character, (N,).

    context: the characters before the text, at least one. The text is cut in lanes. A lane first reads the
    characters before it, up to 250, so its nats are those of a sequential reading to three digits or more.
    """
    context = context[-_WARM_UP:]
    before, lanes = len(context), max(1, min(_MAX_LANES, len(ids) // _CHARS_PER_LANE))
    length = -(-len(ids) // lanes)
    mixture = file.mixture or no_mixture()
    contexts = find_contexts(mixture, ids, context=context)
    text = np.concatenate([context, ids, np.zeros(lanes * length - len(ids), ids.dtype)]).astype(np.int64)
    places = np.arange(lanes) * length  # where each lane begins in `text`
    nats, states = np.empty((lanes, length)), _new_states(file, lanes)
    for step in range(before + length - 1):
        logits = _step(file, text[places + step], states)
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
        predict_from_logits(logits, mixture, rows, out)
        nats[:, position] = out.nats
    return nats.ravel()[: len(ids)]


def _new_states(file: ModelFile, lanes: int) -> Floats:
    """Return zeros for h and the LSTM's c of each layer: (L, 1 or 2, B, H)."""
    config = file.config
    return np.zeros((config.num_layers, NUM_STATES[config.cell], lanes, config.hidden_size), np.float32)


def _step(file: ModelFile, chars: NDArray[Any], states: Floats) -> Floats:
    """Feed one character of each lane (B,); update the states and return the logits (B, V)."""
    tensors, config = file.tensors, file.config
    if config.reset_id is not None:
        states[:, :, chars == config.reset_id] = 0
    x = tensors["embedding.weight"][chars]
    for layer, state in enumerate(states):
        weight_ih, weight_hh, bias_ih, bias_hh = (
            tensors[f"layers.{layer}.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        projected, recurrent = x @ weight_ih.T + bias_ih, state[0] @ weight_hh.T + bias_hh
        if config.cell == "rnn":
            state[0] = np.tanh(projected + recurrent)
        elif config.cell == "gru":
            _gru_step(projected, recurrent, state[0])
        else:
            _lstm_step(projected + recurrent, *state)
        x = state[0]
    logits: Floats = x @ tensors["head.weight"].T + tensors["head.bias"]
    return logits


def _gru_step(projected: Floats, recurrent: Floats, h: Floats) -> None:
    """Compute h' (B, H) in place, as kernels/cells.gru_step."""
    size = h.shape[1]
    gates = _sigmoid(projected[:, : 2 * size] + recurrent[:, : 2 * size])
    candidate = np.tanh(projected[:, 2 * size :] + gates[:, :size] * recurrent[:, 2 * size :])
    h += (1 - gates[:, size:]) * (candidate - h)


def _lstm_step(gates: Floats, h: Floats, c: Floats) -> None:
    """Compute h' and c' (B, H) in place, as kernels/cells.lstm_step."""
    size = h.shape[1]
    i, f, g, o = (gates[:, start : start + size] for start in range(0, 4 * size, size))
    c[...] = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    h[...] = _sigmoid(o) * np.tanh(c)


def _sigmoid(x: Floats) -> Floats:
    half = np.float32(0.5)
    y: Floats = half + half * np.tanh(half * x)  # exp could overflow
    return y
