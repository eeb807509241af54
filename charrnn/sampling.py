"""Drawing text from a model, without PyTorch.

Stream i of seed s draws its character at position p with a random number keyed by
(s, i, p), so the same seed gives the same text whatever else is asked for.

Letters: L layers, H hidden size, V vocabulary.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from charrnn.checkpoint import ModelFile, Tensors, load_model
from charrnn.config import ModelConfig, SampleConfig
from charrnn.kernels.counters import uniforms
from charrnn.kernels.generation import Filters, Weights, feed, generate
from charrnn.kernels.recurrent import CELLS
from charrnn.vocab import Vocab

_FIRST_BLOCK, _LAST_BLOCK = 16, 4096  # characters drawn at a time; the text doesn't depend on it
_SECONDS_PER_BLOCK = 0.02  # so that text flows and Ctrl-C is heard


class Sampler:
    """A model ready to write."""

    def __init__(self, model: ModelFile) -> None:
        self.vocab = model.vocab
        self.config = model.config
        self.weights = make_weights(model.config, model.tensors)

    @classmethod
    def load(cls, path: Path | str) -> "Sampler":
        """Read a model file. Raises ModelFileError."""
        return cls(load_model(path))

    def stream(self, prompt: str = "", *, stream: int = 0, **settings: Any) -> "Stream":
        """Draw the text that follows the prompt: an iterator over its pieces.

        settings: any field of SampleConfig, such as temperature=0.8, length=500, seed=1.
        Without a prompt the text starts as if after a newline.
        Raises UnknownCharacterError for a prompt the model can't read, UsageError for a
        value out of range; both before the first character.
        """
        config = SampleConfig(prompt=prompt, **settings)
        encode = self.vocab.encode if config.unknown == "error" else lambda text: self.vocab.encode_known(text)[0]
        ids = encode(prompt).astype(np.int64)
        if len(ids) == 0:  # as if after a newline, where the model knows one
            ids = np.array([max(0, self.vocab.chars.find("\n"))])
        return Stream(self, ids, config, stream)


def compile_kernels() -> None:
    """Compile the loop, by drawing from a toy network; quick where that was done before."""
    config = ModelConfig("gru", vocab_size=1, embedding_dim=1, hidden_size=1, num_layers=2)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    list(Sampler(ModelFile(config, Vocab("a"), zeros, {}, {})).stream(length=1, seed=0))


def make_weights(config: ModelConfig, tensors: Tensors) -> Weights:
    """Lay a model's tensors out for the loop."""

    def stacked(name: str, first_layer: int) -> Any:
        layers = [tensors[f"layers.{k}.{name}_l0"] for k in range(first_layer, config.num_layers)]
        shape = tensors[f"layers.{config.num_layers - 1}.{name}_l0"].shape  # of a layer above the first
        return np.stack(layers) if layers else np.empty((0, *shape), np.float32)

    first_ih, first_bias = tensors["layers.0.weight_ih_l0"], tensors["layers.0.bias_ih_l0"]
    return Weights(
        cell=CELLS[config.cell],
        table=np.ascontiguousarray(tensors["embedding.weight"] @ first_ih.T + first_bias),
        weight_ih=stacked("weight_ih", 1),
        bias_ih=stacked("bias_ih", 1),
        weight_hh=stacked("weight_hh", 0),
        bias_hh=stacked("bias_hh", 0),
        head_weight=np.array(tensors["head.weight"]),  # copies: arrays from a file lie unaligned
        head_bias=np.array(tensors["head.bias"]),
    )


class Stream:
    """One sample: an iterator over its text that knows what it drew.

    num_drawn: characters so far, those of a stop included; nats: what the unfiltered model at
    temperature 1 pays for them; seed: the one that gives this text again.
    """

    def __init__(self, sampler: Sampler, prompt: Any, config: SampleConfig, stream: int) -> None:
        self.num_drawn = 0
        self.nats = 0.0
        self.seed = random_seed() if config.seed is None else config.seed
        pieces = self._draw(sampler, prompt, config, stream)
        if config.lines:
            pieces = first_lines(pieces, config.lines)
        self._pieces = until(pieces, config.stop) if config.stop else pieces

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def _draw(self, sampler: Sampler, ids: Any, config: SampleConfig, stream: int) -> Iterator[str]:
        """Yield the characters, one at a time, drawn in blocks."""
        filters = Filters(config.temperature, config.top_k, config.top_p, config.min_p, config.no_repeat_ngram)
        h = np.zeros((sampler.config.num_layers, sampler.config.hidden_size), np.float32)
        c = np.zeros_like(h)
        feed(sampler.weights, ids[:-1], h, c)
        size = _FIRST_BLOCK
        while self.num_drawn != config.length:
            count = size if config.length < 0 else min(size, config.length - self.num_drawn)
            start, nats = len(ids), np.empty(count)
            ids = np.concatenate([ids, np.empty(count, np.int64)])
            numbers = uniforms(count, seed=self.seed, stream=stream, position=self.num_drawn)
            begun = time.perf_counter()
            generate(sampler.weights, filters, ids, start, numbers, h, c, nats)
            if time.perf_counter() - begun < _SECONDS_PER_BLOCK / 2:
                size = min(2 * size, _LAST_BLOCK)
            for char, cost in zip(ids[start:].tolist(), nats.tolist(), strict=True):
                self.num_drawn += 1
                self.nats += cost
                yield sampler.vocab.chars[char]
            if not config.no_repeat_ngram:  # only its guard needs to know what was long ago
                ids = ids[-1:]


def first_lines(chars: Iterator[str], num_lines: int) -> Iterator[str]:
    """The characters up to and including the num_lines-th newline."""
    for char in chars:
        yield char
        num_lines -= char == "\n"
        if num_lines == 0:
            return


def until(chars: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """The text before the first of the stops; what may be the beginning of one is held back."""
    held = ""
    for char in chars:
        held += char
        ended = [stop for stop in stops if held.endswith(stop)]
        if ended:
            if rest := held[: -max(map(len, ended))]:
                yield rest
            return
        longest = max(map(len, stops)) - 1
        keep = next(
            n for n in range(min(longest, len(held)), -1, -1) if any(s.startswith(held[len(held) - n :]) for s in stops)
        )
        if keep < len(held):
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def random_seed() -> int:
    """A seed short enough to be typed again."""
    return secrets.randbelow(2**31)
