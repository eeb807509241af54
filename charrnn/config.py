"""Settings: what can be chosen, its range and its default, each written once.

The dataclasses hold resolved values; a command line overlays what the user gave on what
`recommend` chose. A field's option has the field's name, so an error can name the flag.

Letters: V vocabulary, E embedding, H hidden, L layers, G lanes, T steps in a window.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

from charrnn.errors import UsageError

Cell = Literal["rnn", "gru", "lstm"]
Precision = Literal["float32", "bfloat16"]
CELLS: tuple[Cell, ...] = get_args(Cell)
NUM_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
NUM_STATES = {"rnn": 1, "gru": 1, "lstm": 2}
C = TypeVar("C", "ModelConfig", "TrainConfig", "SourceConfig", "CorpusConfig", "SampleConfig")
CHECKPOINTS = "checkpoints"  # the folder of all runs, under the current one
MAX_VALID_CHARS = 2_000_000  # more says nothing new and costs minutes
MIN_CHARS = 20  # a text of fewer can't be split in anything worth training on
SECONDS_BETWEEN_STATES = 60.0
ADAPT_RATE = 4e-4  # of dynamic evaluation: of a step in which every gradient is as large as usual


def setting(low: float, high: float, *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field whose value lies in low…high; nan lies nowhere."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def flag(field_name: str) -> str:
    """The command-line option of a field."""
    return "--" + field_name.replace("_", "-")


class Checked:
    """Base of the settings: checks each field's type and range when an instance is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(cast(Any, self)):
            value, kind = getattr(self, field.name), cast(Any, field.type)
            if kind in (str, bool, str | None) and not isinstance(value, kind):
                raise UsageError(
                    f"{flag(field.name)} must be {'yes or no' if kind is bool else 'a text'}, not {value!r}"
                )
            if "range" not in field.metadata or (value is None and field.default is None):
                continue
            low, high = field.metadata["range"]
            whole = isinstance(low, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise UsageError(f"{flag(field.name)} must be a {'whole ' * whole}number, not {value!r}")
            if not low <= value <= high:
                raise UsageError(f"{flag(field.name)} must lie between {low:g} and {high:g}, not {value}")


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network: embedding, L recurrent layers of one cell, linear head.

    reset_id: the character before which the state is forgotten, the end of a document; or None.
    """

    cell: Cell
    vocab_size: int = setting(1, 0x110000)
    embedding_dim: int = setting(1, 65536)
    hidden_size: int = setting(1, 65536)
    num_layers: int = setting(1, 64)
    reset_id: int | None = setting(0, 0x110000, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell not in CELLS:
            raise UsageError(f"--cell must be one of {', '.join(CELLS)}, not {self.cell!r}")

    @property
    def num_states(self) -> int:
        """Tensors in a state: h, and for the LSTM also c."""
        return NUM_STATES[self.cell]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the model's own order."""
        gates, hidden = NUM_GATES[self.cell] * self.hidden_size, self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab_size, self.embedding_dim)}
        for layer in range(self.num_layers):
            inputs = self.embedding_dim if layer == 0 else hidden
            shapes |= {
                f"layers.{layer}.weight_ih_l0": (gates, inputs),
                f"layers.{layer}.weight_hh_l0": (gates, hidden),
                f"layers.{layer}.bias_ih_l0": (gates,),
                f"layers.{layer}.bias_hh_l0": (gates,),
            }
        return shapes | {"head.weight": (self.vocab_size, hidden), "head.bias": (self.vocab_size,)}

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How the network is trained. A step is one optimiser update over G lanes of T characters."""

    batch_size: int = setting(1, 65536)  # G
    seq_len: int = setting(1, 65536)  # T
    dropout: float = setting(0.0, 0.95)  # on each layer's output, one mask a window
    learning_rate: float = setting(1e-7, 10.0)  # the peak
    weight_drop: float = setting(0.0, 0.95, default=0.0)  # of each recurrent weight, one mask a window
    weight_decay: float = setting(0.0, 10.0, default=0.1)  # decoupled, matrices only
    grad_clip: float = setting(1e-6, 1e6, default=1.0)  # norm of the gradient of the mean
    patience: int = setting(0, 10**6, default=4)  # evaluations without a better one that end a run; 0: never
    steps: int | None = setting(1, 10**12, default=None)  # None: the time budget decides
    seed: int = setting(0, 2**63 - 1, default=1)
    mix: bool = True  # n-grams into the predictions, where that pays
    init_from: str | None = None  # the model file whose weights the first step finds; None: random ones


@dataclass(frozen=True)
class SourceConfig(Checked):
    """Which files are read, and how much of them at most."""

    glob: str = "*"  # of a folder's files
    max_bytes: int | None = setting(1, 10**18, default=None)  # None: half of what is free on the disk


@dataclass(frozen=True)
class CorpusConfig(Checked):
    """How a text is read and what of it is held out."""

    encoding: str = "utf-8"
    errors: Literal["strict", "replace"] = "strict"  # what to do with bytes that are wrong in that encoding
    bytes: bool = False  # learn bytes instead of characters
    min_count: int = setting(1, 10**12, default=1)  # rarer characters become one symbol, which is never drawn
    documents: str = ""  # lines, blank-lines, or what stands between two documents; nothing: one text
    known: str = ""  # characters that have an id though the text may lack them: those of the model a run begins with
    valid: str | None = None  # a text to be held out instead of a share
    valid_fraction: float = setting(1e-6, 0.5, default=0.1)
    test_fraction: float = setting(0.0, 0.4, default=0.0)  # a second tail, behind the first

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.errors not in ("strict", "replace"):
            raise UsageError(f"--errors must be strict or replace, not {self.errors!r}")
        if self.valid is not None and self.test_fraction:
            raise UsageError("--valid FILE and --test-fraction don't go together; score a test text by charrnn eval")


@dataclass(frozen=True)
class SampleConfig(Checked):
    """How text is drawn. seed None: one is chosen and told."""

    prompt: str = ""
    length: int = setting(-1, 10**15, default=500)  # characters after the prompt; -1 endless
    lines: int = setting(0, 10**15, default=0)  # stop after so many; 0 doesn't count them
    stop: tuple[str, ...] = ()  # texts that end a sample and are never part of it
    temperature: float = setting(0.0, 1e308, default=0.8)  # 0 is greedy
    top_k: int = setting(0, 0x110000, default=0)  # 0 is off
    top_p: float = setting(0.0, 1.0, default=1.0)  # 1 is off
    min_p: float = setting(0.0, 1.0, default=0.0)  # 0 is off
    no_repeat_ngram: int = setting(0, 10**6, default=0)  # 0 is off
    num_samples: int = setting(1, 10**9, default=1)
    seed: int | None = setting(0, 2**63 - 1, default=None)
    unknown: Literal["error", "skip"] = "error"  # what to do with prompt characters outside the vocabulary

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unknown not in ("error", "skip"):
            raise UsageError(f"--unknown must be error or skip, not {self.unknown!r}")
        if isinstance(self.stop, str) or not all(isinstance(stop, str) for stop in self.stop):
            raise UsageError(f"--stop takes texts, one each time it is given, not {self.stop!r}")
        if "" in self.stop:
            raise UsageError("--stop '' would end every sample before its first character; leave it out")


def overlay(config: C, given: Mapping[str, Any]) -> C:
    """The settings with what the user gave laid over them, by field name."""
    names = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: value for name, value in given.items() if name in names})
