"""Drawing text from a model, without PyTorch.

Stream i of seed s draws its character at position p with a random number keyed by
(s, i, p), so the same seed gives the same text whatever else is asked for.
"""

import secrets
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from charrnn.checkpoint import ModelFile, load_model
from charrnn.config import SampleConfig
from charrnn.kernels.counters import uniforms
from charrnn.kernels.drawing import draw, filter_logits, nats
from charrnn.kernels.recurrence import STEPS, Floats, State

_BLOCK = 256  # random numbers made at a time; the text doesn't depend on it


class Sampler:
    """A model ready to write.

    The first layer's input projection is a table of one row per character, because its
    input is one of V embeddings.
    """

    def __init__(self, model: ModelFile) -> None:
        self.vocab = model.vocab
        self._config = model.config
        self._tensors = model.tensors
        self._step = STEPS[model.config.cell]
        weight, bias = model.tensors["layers.0.weight_ih_l0"], model.tensors["layers.0.bias_ih_l0"]
        self._table: Floats = model.tensors["embedding.weight"] @ weight.T + bias  # (V, gates * H)

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
        ids = encode(prompt).tolist() or [self._opening()]
        return Stream(self, ids, config, random_seed() if config.seed is None else config.seed, stream)

    def _opening(self) -> int:
        """What an unprompted text follows: a newline where the model knows one."""
        return max(0, self.vocab.chars.find("\n"))

    def zeros(self) -> list[State]:
        """A state of zeros for each layer, (1, H)."""
        zeros = np.zeros((1, self._config.hidden_size), np.float32)
        return [(zeros,) * self._config.num_states] * self._config.num_layers

    def advance(self, char: int, states: list[State]) -> Floats:
        """Feed one character; the states are replaced. Returns the last layer's output, (1, H)."""
        tensors = self._tensors
        projected = self._table[char : char + 1]  # (1, gates * H)
        for layer, state in enumerate(states):
            prefix = f"layers.{layer}."
            if layer > 0:
                below = states[layer - 1][0]
                projected = below @ tensors[prefix + "weight_ih_l0"].T + tensors[prefix + "bias_ih_l0"]
            states[layer] = self._step(
                projected, state, tensors[prefix + "weight_hh_l0"], tensors[prefix + "bias_hh_l0"]
            )
        return states[-1][0]

    def logits(self, output: Floats) -> Floats:
        """The head: (1, H) to (V,)."""
        logits: Floats = (output @ self._tensors["head.weight"].T + self._tensors["head.bias"])[0]
        return logits


class Stream:
    """One sample: an iterator over its text that knows what it drew.

    num_drawn: characters drawn so far; nats: what the unfiltered model at temperature 1
    pays for them.
    """

    def __init__(self, sampler: Sampler, prompt: list[int], config: SampleConfig, seed: int, stream: int) -> None:
        self.num_drawn = 0
        self.nats = 0.0
        pieces = self._draw(sampler, prompt, config, seed, stream)
        if config.lines:
            pieces = first_lines(pieces, config.lines)
        self._pieces = until(pieces, config.stop) if config.stop else pieces

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def _draw(self, sampler: Sampler, prompt: list[int], config: SampleConfig, seed: int, stream: int) -> Iterator[str]:
        """Yield the characters, one at a time."""
        guard = RepeatGuard(config.no_repeat_ngram) if config.no_repeat_ngram else None
        states = sampler.zeros()
        for char in prompt:
            output = sampler.advance(char, states)
            if guard:
                guard.note(char)
        numbers = chain.from_iterable(
            uniforms(_BLOCK, seed=seed, stream=stream, position=position) for position in count(0, _BLOCK)
        )
        while self.num_drawn != config.length:
            logits = sampler.logits(output)
            allowed = logits.copy()
            if guard:
                guard.forbid(allowed)
            filter_logits(allowed, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)
            char = draw(allowed, float(next(numbers)), temperature=config.temperature)
            self.num_drawn += 1
            self.nats += nats(logits, char)
            yield sampler.vocab.chars[char]
            output = sampler.advance(char, states)
            if guard:
                guard.note(char)


class RepeatGuard:
    """Forbids whatever would complete an n-gram that was there before, prompt included.

    Source: Paulus et al. 2017, with characters for words.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._followers: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self._last: tuple[int, ...] = ()

    def note(self, char: int) -> None:
        """Remember that this character came next."""
        if len(self._last) == self._n - 1:
            self._followers[self._last].add(char)
        self._last = (*self._last, char)[1 - self._n :] if self._n > 1 else ()

    def forbid(self, logits: Floats) -> None:
        """Set the logits (V,) of forbidden characters to -inf, unless that would leave none."""
        forbidden = list(self._followers.get(self._last, ()))
        if len(forbidden) < len(logits):
            logits[forbidden] = -np.inf


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
