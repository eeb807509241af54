"""Settings: every value the user can choose, with its range and its default.

The dataclasses hold resolved values; the command line overlays the user's options on the
values chosen by `recommend`. A field's option has the field's name, so an error can name it.

Letters: V vocabulary, E embedding, H hidden, L layers, G lanes, T steps in a window.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from charrnn.errors import UsageError

Cell = Literal["rnn", "gru", "lstm"]
Precision = Literal["float32", "bfloat16"]
PagePrecision = Literal["int8", "bfloat16", "float32"]  # of the weights in an exported page
CELLS: tuple[Cell, ...] = get_args(Cell)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PAGE_PRECISIONS: tuple[PagePrecision, ...] = get_args(PagePrecision)
NUM_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
NUM_STATES = {"rnn": 1, "gru": 1, "lstm": 2}
C = TypeVar("C", "ModelConfig", "TrainConfig", "SourceConfig", "CorpusConfig", "SampleConfig", "ListConfig")
MAX_VALID_CHARS = 2_000_000  # more would take minutes to score without changing the result
FORMATS = ("csv", "tsv", "jsonl", "fasta")  # of records
LINES, BLANK_LINES = "lines", "blank-lines"  # what separates documents, unless it is a text
MIN_CHARS = 20  # shorter texts can't be split into useful parts
SECONDS_BETWEEN_STATES = 60.0
RESAMPLE = 8  # candidates for each constrained sample
COPIED_RUN = 30  # characters; a run this long that two texts share is no coincidence
LIMITLESS = 1e308  # in place of infinity, which is refused
ADAPT_RATE = 4e-4  # learning rate of dynamic evaluation, for gradients of typical size


def setting(low: float, high: float, *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a dataclass field whose value must lie in low…high; nan never does."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def resembled_kind(documents: str) -> str:
    """Return the keyword, lines or blank-lines, that a kind of documents is or resembles, if any."""
    words = "" if documents.startswith("\\") else documents.lower().replace("_", "-")
    return next(iter(difflib.get_close_matches(words, (LINES, BLANK_LINES), n=1, cutoff=0.8)), "")


def flag(field_name: str) -> str:
    """Return the command-line option of a field, under the name that people type."""
    return "--temp" if field_name == "temperature" else "--" + field_name.replace("_", "-")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise UsageError for a value that is no number or not in low…high; a whole number if low is one."""
    is_whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, int if is_whole else (int, float)):
        raise UsageError(f"{name} must be a {'whole number' if is_whole else 'number'}, not {value!r}")
    if not low <= value <= high:
        form = "," if is_whole else ",.15g"
        span = f"lie between {low:{form}} and {high:{form}}"
        if high == LIMITLESS:
            span = f"be a finite number of at least {low:{form}}"
        raise UsageError(f"{name} must {span}, not {value}")


class Checked:
    """Base class of the settings: checks each field's type and range when an instance is created."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # its subclasses are dataclasses
            value = getattr(self, field.name)
            kind: Any = field.type
            if kind in (str, bool, str | None) and not isinstance(value, kind):
                expected = "true or false" if kind is bool else "a text"
                raise UsageError(f"{flag(field.name)} must be {expected}, not {value!r}")
            if "range" not in field.metadata or (value is None and field.default is None):
                continue
            check_number(flag(field.name), value, *field.metadata["range"])


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network: embedding, L recurrent layers of one cell, linear head.

    reset_id: the id of the character before which the state is reset to zero, or None. In a model file it is that of
    END, the end of a document; eval sets that of the newline to score each line of other texts by itself.
    label_id: the id of LABEL_END, between a document's label and its text, or None. The network reads on there, but
    n-grams do not reach back beyond it.
    """

    cell: Cell
    vocab_size: int = setting(1, 0x110000)
    embedding_dim: int = setting(1, 65536)
    hidden_size: int = setting(1, 65536)
    num_layers: int = setting(1, 64)
    reset_id: int | None = setting(0, 0x110000, default=None)
    label_id: int | None = setting(0, 0x110000, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell not in CELLS:
            raise UsageError(f"--cell must be one of {', '.join(CELLS)}, not {self.cell!r}")

    @property
    def boundary_ids(self) -> tuple[int, ...]:
        """The ids of the characters that n-grams do not reach back beyond."""
        return tuple(one for one in (self.reset_id, self.label_id) if one is not None)

    @property
    def num_states(self) -> int:
        """Number of tensors in a layer's state: h, and for the LSTM also c."""
        return NUM_STATES[self.cell]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every parameter, in the model's order."""
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
    """How to train the network. A step is one optimiser update over G lanes of T characters."""

    batch_size: int = setting(1, 65536)  # G
    seq_len: int = setting(1, 65536)  # T
    dropout: float = setting(0.0, 0.95)  # on each layer's output, one mask per window
    learning_rate: float = setting(1e-7, 10.0)  # the peak
    weight_drop: float = setting(0.0, 0.95, default=0.0)  # on the recurrent weights, one mask per window
    weight_decay: float = setting(0.0, 10.0, default=0.1)  # decoupled, matrices only
    grad_clip: float = setting(1e-6, 1e6, default=1.0)  # maximum norm of the gradient of the mean loss
    patience: int = setting(0, 10**6, default=4)  # stop after this many evaluations without improvement; 0: never
    steps: int | None = setting(1, 10**12, default=None)  # None: the time budget determines it
    seed: int = setting(0, 2**63 - 1, default=1)
    mix: bool = True  # mix n-grams into the predictions if that improves them
    init_from: str | None = None  # the model file with the initial weights; None: random weights


@dataclass(frozen=True)
class SourceConfig(Checked):
    """Which files to read, and how much at most."""

    glob: str = "*"  # which files of a folder
    max_bytes: int | None = setting(1, 10**18, default=None)  # None: half of the free disk space


@dataclass(frozen=True)
class CorpusConfig(Checked):
    """How to read a text, and which part to hold out."""

    encoding: str = "utf-8"
    errors: Literal["strict", "replace"] = "strict"  # how to treat bytes that are invalid in that encoding
    bytes: bool = False  # learn bytes instead of characters
    min_count: int = setting(1, 10**12, default=1)  # rarer characters become one symbol, which is never generated
    documents: str = ""  # lines, blank-lines, or the text between two documents; empty: one text
    keep_separator: bool = False  # begin each document with that text
    keep_empty: bool = False  # empty lines are documents as well; only in texts to score
    column: str = ""  # of records, which are documents: the column with the text; empty: plain text
    label: str = ""  # of records: the column with the label; empty: no labels
    label_from: str = ""  # file or folder, whose name is the label of its documents; empty: no labels
    format: str = ""  # of records; empty: as the file's name says
    known: str = ""  # characters that always get an id: those of the model that a run starts from
    valid: str | None = None  # a separate text to hold out, instead of a share
    valid_fraction: float = setting(1e-6, 0.5, default=0.1)
    test_fraction: float = setting(0.0, 0.4, default=0.0)  # a second held-out tail, after the first

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.errors not in ("strict", "replace"):
            raise UsageError(f"--errors must be strict or replace, not {self.errors!r}")
        for name in ("encoding", "errors"):
            if self.bytes and getattr(self, name) != getattr(CorpusConfig, name):
                raise UsageError(
                    f"{flag(name)} {getattr(self, name)} has no effect on a text read as bytes; leave it out"
                )
        if (kind := resembled_kind(self.documents)) and kind != self.documents:
            raise UsageError(
                f"--documents {self.documents}: did you mean {kind}? "
                f"If this word itself separates the documents, write '\\{self.documents}'"
            )
        if self.keep_separator and self.documents in ("", LINES, BLANK_LINES):
            raise UsageError("--keep-separator needs a text that separates documents, for example --documents '>'")
        self._check_records()
        if self.valid is not None and self.test_fraction:
            raise UsageError("--valid and --test-fraction can't be combined; score a test text by charrnn eval")

    def _check_records(self) -> None:
        if self.column and self.label_from:
            raise UsageError("--label-from and --column can't be combined; --label NAME reads labels from a column")
        if self.column and self.documents:
            raise UsageError("--documents has no effect on records, each of which is a document; leave it out")
        for name, allowed in (("format", FORMATS), ("label_from", ("file", "folder"))):
            value = getattr(self, name)
            if value and value not in allowed:
                raise UsageError(f"{flag(name)} must be {', '.join(allowed[:-1])} or {allowed[-1]}, not {value!r}")
        for name in ("label", "format"):
            if getattr(self, name) and not self.column:
                raise UsageError(f"{flag(name)} needs --column NAME, the column with the text")
        if self.label_from and not self.documents:
            raise UsageError("--label-from needs --documents, which says what separates the documents of a file")

    @property
    def has_documents(self) -> bool:
        """Whether the text consists of documents."""
        return bool(self.documents or self.column)


@dataclass(frozen=True)
class SampleConfig(Checked):
    """How to generate text. seed None: a random one is chosen and printed."""

    prompt: str = ""
    length: int = setting(-1, 10**15, default=500)  # characters after the prompt; -1: no limit
    lines: int = setting(0, 10**15, default=0)  # stop after this many lines; 0: no limit
    stop: tuple[str, ...] = ()  # a sample ends before any of these texts
    keep_stop: bool = False  # a sample ends after the stop text instead
    temperature: float = setting(0.0, LIMITLESS, default=0.8)  # 0 is greedy
    top_k: int = setting(0, 0x110000, default=0)  # 0 is off
    top_p: float = setting(0.0, 1.0, default=1.0)  # 1 is off
    min_p: float = setting(0.0, 1.0, default=0.0)  # 0 is off
    no_repeat_ngram: int = setting(0, 10**6, default=0)  # 0 is off
    match: str | None = None  # a regular expression that the whole text, or each line, matches
    allow: str | None = None  # the only characters to draw
    forbid: str | None = None  # characters never to draw
    min_length: int = setting(0, 10**15, default=0)  # a document or line doesn't end before
    no_copy: int = setting(0, 10**6, default=0)  # never draw so many characters of the training text in a row; 0 is off
    resample: int | None = setting(1, 10**4, default=None)  # candidates for each sample; None: RESAMPLE if constrained
    num_samples: int = setting(1, 10**9, default=1)
    seed: int | None = setting(0, 2**63 - 1, default=None)
    label: str | None = None  # of the texts; None: each text's is drawn, if the model knows labels
    unknown: Literal["error", "skip"] = "error"  # how to treat prompt characters that the model does not know

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unknown not in ("error", "skip"):
            raise UsageError(f"--unknown must be error or skip, not {self.unknown!r}")
        if not isinstance(self.stop, tuple | list) or not all(isinstance(stop, str) for stop in self.stop):
            shown = list(self.stop) if isinstance(self.stop, tuple) else self.stop
            raise UsageError(f"--stop must be a list of texts, not {shown!r}")
        if self.keep_stop and not self.stop:
            raise UsageError("--keep-stop needs a text to stop at: --stop TEXT")
        if "" in self.stop:
            raise UsageError("--stop '' would end every sample before its first character; leave it out")
        self._check_constraints()

    def _check_constraints(self) -> None:
        """Raise UsageError for constraints that can't take effect."""
        for name in ("allow", "forbid"):
            if getattr(self, name) == "":
                raise UsageError(f"{flag(name)} needs at least one character")
        for name in ("match", "min_length"):
            if self.stop and getattr(self, name):
                raise UsageError(f"--stop and {flag(name)} can't be combined, because both say where a text ends")
        if self.no_copy == 1:
            raise UsageError("--no-copy 1 has no effect, because every character is in the training text")
        if self.resample is not None and not self.is_constrained:
            raise UsageError("--resample needs a constraint: --match, --allow, --forbid, --min-length or --no-copy")
        if self.resample is not None and self.resample > 1 and self.temperature == 0:
            raise UsageError("--resample has no effect at --temp 0, because all candidates would be the same")

    def ends(self, *, documents: bool) -> bool:
        """Return whether texts with these settings end. documents: whether they are documents, which end."""
        return self.length >= 0 or bool(self.lines or self.stop) or documents

    def ends_early(self, *, documents: bool) -> bool:
        """Return whether they may end before their length."""
        return bool(self.lines or self.stop or self.match is not None) or documents

    @property
    def is_constrained(self) -> bool:
        """Whether some characters may not be drawn."""
        return any((self.match is not None, self.allow, self.forbid, self.min_length, self.no_copy))


@dataclass(frozen=True)
class ListConfig(Checked):
    """Which of the drawn samples to write."""

    unique: bool = False  # all different
    new: bool = False  # none that is known from the training text
    new_run: int = setting(2, 10**6, default=COPIED_RUN)  # in continuous text: the shortest run that makes one known
    max_draws: int | None = setting(1, 10**15, default=None)  # None: 100 for each sample asked for
    best: int | None = setting(1, 10**9, default=None)  # only so many, the most probable ones; None: all
    best_by: Literal["char", "total"] = "char"  # bits per character, or bits in all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best_by not in ("char", "total"):
            raise UsageError(f"--best-by must be char or total, not {self.best_by!r}")

    @property
    def selects(self) -> bool:
        """Whether some samples are passed over, and others drawn in their place."""
        return self.unique or self.new


def overlay(config: C, given: Mapping[str, Any]) -> C:
    """Replace fields by the values that the user gave, by name; ignore names of other settings."""
    names = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: value for name, value in given.items() if name in names})
