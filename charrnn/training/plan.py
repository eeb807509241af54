"""The plan of a run: the task, the environment, the budget, and the state it resumes from.

A plan is complete before the first step. training/planning makes that of a new run, training/resume that of a resumed
one.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import Checked, CorpusConfig, ModelConfig, Precision, TrainConfig, flag, setting
from charrnn.data.batches import TrainText, make_train_text
from charrnn.data.corpus import Corpus
from charrnn.data.documents import hash_documents, short_hashes, without_labels
from charrnn.distributed import SINGLE, Ranks
from charrnn.events import Plan
from charrnn.hardware import count_workers
from charrnn.model.file import MAX_NAMES, ModelFile
from charrnn.numerics.processor import processor
from charrnn.runs.folder import Run, SavedState
from charrnn.text.characters import END, LABEL_END
from charrnn.training.recipe import estimate_memory
from charrnn.training.state import ScalarState

MAX_BYTES = 1 << 21  # of the list of text files in a file's metadata; model/container.py reads twice that
MAX_MIXED_VOCAB = 1 << 14  # with more characters, computing their distributions would dominate the run
MAX_KNOWN = 200_000  # documents whose hashes a model file holds, 4 bytes each
_LIBRARIES = ("charrnn", "torch", "numpy", "numba")  # other versions may round sums differently


@dataclass(frozen=True)
class Task:
    """What is learned: a text and how it was read, a network and how it is trained."""

    corpus: Corpus
    corpus_config: CorpusConfig
    model: ModelConfig
    training: TrainConfig

    @cached_property
    def train_text(self) -> TrainText:
        """The training text without the pieces that are withheld to fit the mixture weights."""
        return text_to_train_on(self.corpus, self.training.mix)

    @property
    def mixes_ngrams(self) -> bool:
        """Whether n-grams are mixed into the network's predictions."""
        return mixes_ngrams(self.corpus, self.training.mix)

    @cached_property
    def known_documents(self) -> NDArray[np.uint32] | None:
        """Sorted hashes of all documents, the held-out ones too; None for too many, or for a text without any."""
        ids, end = self.corpus.ids, self.corpus.vocab.id_of(END)
        if end is None or np.count_nonzero(ids == end) > MAX_KNOWN:
            return None
        texts = without_labels(ids, end, self.corpus.vocab.id_of(LABEL_END))
        return np.unique(short_hashes(hash_documents(texts, end)))

    @cached_property
    def paths(self) -> list[str]:
        """The text's files, as many as fit a file's metadata."""
        return _first_paths(self.corpus.names)

    def settings(self) -> dict[str, Any]:
        """Return every setting by name."""
        return {**asdict(self.corpus_config), **asdict(self.model), **asdict(self.training)}


@dataclass(frozen=True)
class Environment:
    """Where a run computes. It can resume in another environment, but sums may round differently there.

    threads: per process. ranks: the processes that share the run.
    """

    device: str = "cpu"
    threads: int = 1
    precision: Precision = "float32"
    ranks: Ranks = SINGLE

    def facts(self) -> dict[str, Any]:
        """Return everything that rounding depends on."""
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
        return {
            "device": self.device,
            "threads": self.threads,
            "precision": self.precision,
            "processes": self.ranks.size,
            "processor": processor(),
            "versions": versions,
        }


@dataclass(frozen=True)
class Budget(Checked):
    """A time budget. minutes: all of it. seconds: the part that has not been turned into steps yet.

    Both are None if the budget is a number of steps.
    """

    minutes: float | None = setting(0.0, 1e9, default=None)
    seconds: float | None = setting(0.0, 1e11, default=None)


@dataclass(frozen=True)
class Resume:
    """The saved state a run resumes from, verified.

    extends: the run had finished and has a larger budget now. is_finished: there is nothing left to do.
    """

    saved: SavedState
    scalars: ScalarState
    extends: bool = False
    is_finished: bool = False


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    resume: None for a new run. base: the model whose weights a new run starts from.
    notes: what the user should know; the first one of a resumed run says how it resumes.
    reasons: why the recipe chose its settings, by name.
    newest_step: Run.last_step() when the plan was made.
    """

    run: Run
    task: Task
    environment: Environment = Environment()
    budget: Budget = Budget()
    resume: Resume | None = None
    base: ModelFile | None = None
    notes: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    newest_step: int | None = None

    @property
    def lanes(self) -> slice:
        """The lanes of this process."""
        return self.environment.ranks.lanes(self.task.training.batch_size)

    @property
    def num_workers(self) -> int:
        """Worker threads that share the lanes of this process."""
        environment = self.environment
        return count_workers(self.lanes.stop - self.lanes.start, device=environment.device, threads=environment.threads)

    @property
    def first_step(self) -> int:
        """The step after which the run starts or resumes."""
        return self.resume.scalars.step if self.resume else 0

    @property
    def extends(self) -> bool:
        return self.resume is not None and self.resume.extends

    @property
    def is_finished(self) -> bool:
        return self.resume is not None and self.resume.is_finished

    @cached_property
    def state_facts(self) -> dict[str, Any]:
        """What every state file says about the run; its `seconds` become null once the number of steps is known."""
        task, corpus = self.task, self.task.corpus
        return {
            **asdict(self.budget),
            "model": asdict(task.model),
            "training": asdict(task.training),
            "corpus": asdict(task.corpus_config),
            "text": {
                "sha256": corpus.sha256,
                "vocab": corpus.vocab.fingerprint,
                "num_chars": len(corpus.ids),
                "paths": task.paths,
            },
            "place": self.environment.facts(),
        }

    @property
    def shared_facts(self) -> dict[str, Any]:
        """What must be equal in all ranks of a run, by names for error messages."""
        corpus, environment = self.task.corpus, self.environment
        return {
            "the text's SHA-256": corpus.sha256,
            "the vocabulary's fingerprint": corpus.vocab.fingerprint,
            "the step to resume from": self.first_step if self.resume else "none",
            **{flag(name): value for name, value in self.task.settings().items()},
            "--minutes": self.budget.minutes,
            "--precision": environment.precision,
            "--device": environment.device.partition(":")[0],
        }

    def provenance(self, num_steps: int | None) -> dict[str, Any]:
        """Return where a model of the run comes from: its text, the split and the training settings."""
        task, corpus = self.task, self.task.corpus
        parts = {"num_train": corpus.num_train, "num_valid": corpus.num_valid, "num_test": len(corpus.test_ids)}
        text = {"paths": task.paths, "sha256": corpus.sha256, "key": corpus.key}
        return {
            "text": {**text, "labels": dict(corpus.labels)} if corpus.labels else text,
            "split": {**parts, **asdict(task.corpus_config)},
            "training": {**asdict(task.training), "steps": num_steps, "minutes": self.budget.minutes},
        }

    def event(self) -> Plan:
        """Return the plan as the first event of a run."""
        task, corpus, environment = self.task, self.task.corpus, self.environment
        return Plan(
            step=self.first_step,
            run=self.run.name,
            texts=list(corpus.names),
            num_chars=len(corpus.ids),
            num_train_chars=len(corpus.train_ids),
            num_valid_chars=len(corpus.valid_ids),
            num_test_chars=len(corpus.test_ids),
            valid=task.corpus_config.valid,
            vocab_size=len(corpus.vocab),
            model=asdict(task.model),
            training=asdict(task.training),
            num_parameters=task.model.num_parameters,
            memory_bytes=estimate_memory(task.model, task.training),
            steps=self._num_steps(),
            minutes=self.budget.minutes,
            device=environment.device,
            threads=environment.threads,
            processes=environment.ranks.size,
            precision=environment.precision,
            notes=list(self.notes),
            reasons=dict(self.reasons),
            unit=corpus.vocab.unit,
        )

    def _num_steps(self) -> int | None:
        """Return the run's last step, if known before it starts."""
        if self.budget.seconds:
            return None
        if self.resume and not self.resume.extends:
            return self.resume.scalars.num_steps
        return self.task.training.steps


def mixes_ngrams(corpus: Corpus, mix: bool) -> bool:
    """Return whether n-grams are mixed in: if `mix` asks for them, and the vocabulary is not too large."""
    return mix and len(corpus.vocab) <= MAX_MIXED_VOCAB


def text_to_train_on(corpus: Corpus, mix: bool) -> TrainText:
    """Return the training text, without the pieces that are withheld if n-grams are mixed in."""
    ids = corpus.train_ids
    if mixes_ngrams(corpus, mix):
        return make_train_text(ids, len(corpus.vocab))
    return TrainText(ids, np.empty(0, np.int64))


def _first_paths(paths: tuple[str, ...]) -> list[str]:
    first, parts, size = [], 0, 0
    for path in paths:
        parts += 1 + sum(path.count(sign) for sign in ",:[{")  # as model/container.py counts the parts of JSON
        size += len(json.dumps(json.dumps(path)))  # the metadata is JSON inside JSON
        if parts > MAX_NAMES or size > MAX_BYTES:
            break
        first.append(path)
    return first
