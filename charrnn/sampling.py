"""Drawing text from a model, without PyTorch.

Stream i of seed s draws its character at position p with a random number keyed by
(s, i, p), so the same seed gives the same text whatever else is asked for.
"""

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from charrnn.checkpoint import ModelFile, load_model
from charrnn.config import SampleConfig
from charrnn.kernels.counters import uniforms
from charrnn.kernels.recurrence import STEPS, Floats, State, draw

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

    def stream(
        self, prompt: str = "", *, temperature: float = 0.8, length: int = 500, seed: int | None = None, stream: int = 0
    ) -> Iterator[str]:
        """Yield `length` characters (-1: without end) that follow the prompt, one at a time.

        Without a prompt the text starts as if after a newline. seed None draws one.
        Raises UnknownCharacterError for a prompt the model can't read, UsageError for a
        value out of range; both before the first character.
        """
        SampleConfig(temperature=temperature, length=length, seed=seed)
        ids = self.vocab.encode(prompt or self._opening())
        return self._draw(ids.tolist(), temperature, length, random_seed() if seed is None else seed, stream)

    def _opening(self) -> str:
        """What an unprompted text follows: a newline where the model knows one."""
        return "\n" if "\n" in self.vocab.chars else self.vocab.chars[0]

    def _draw(self, prompt: list[int], temperature: float, length: int, seed: int, stream: int) -> Iterator[str]:
        zeros = np.zeros((1, self._config.hidden_size), np.float32)
        states: list[State] = [(zeros,) * self._config.num_states] * self._config.num_layers
        for char in prompt:
            output = self._advance(char, states)
        position = 0
        while position != length:
            count = _BLOCK if length < 0 else min(_BLOCK, length - position)
            for uniform in uniforms(count, seed=seed, stream=stream, position=position):
                char = draw(self._logits(output), float(uniform), temperature=temperature)
                yield self.vocab.chars[char]
                output = self._advance(char, states)
            position += count

    def _advance(self, char: int, states: list[State]) -> Floats:
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

    def _logits(self, output: Floats) -> Floats:
        logits: Floats = (output @ self._tensors["head.weight"].T + self._tensors["head.bias"])[0]
        return logits  # (V,)


def random_seed() -> int:
    """A seed short enough to be typed again."""
    return secrets.randbelow(2**31)
