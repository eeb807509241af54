"""The plan of a run: the task, the environment, the budget, and the state it resumes from.

A plan is complete before the first step. `given` holds the settings that the user named, by field;
the recipe, or the state of a resumed run, gives the others.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import Checked, CorpusConfig, ModelConfig, Precision, TrainConfig, flag, overlay, setting
from charrnn.data.batches import TrainText, make_train_text
from charrnn.data.corpus import Corpus
from charrnn.data.novelty import unlike_rest
from charrnn.data.shuffling import hash_documents, short_hashes, without_labels
from charrnn.distributed import SINGLE, Ranks
from charrnn.errors import UsageError
from charrnn.events import Plan
from charrnn.hardware import count_workers
from charrnn.model.file import MAX_NAMES, ModelFile
from charrnn.numerics.processor import processor
from charrnn.text.characters import END, LABEL_END, UNKNOWN, describe
from charrnn.training.folder import Run, SavedState
from charrnn.training.recipe import default_budget, estimate_memory, recommend
from charrnn.training.state import ScalarState

MAX_BYTES = 1 << 21  # of the list of text files in a file's metadata; model/container.py reads twice that
MAX_KNOWN = 200_000  # documents whose hashes a model file holds, 4 bytes each
_LIBRARIES = ("charrnn", "torch", "numpy", "numba")  # other versions may round sums differently
_NEW_CHARS_SHOWN = 20


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
        return _train_text(self.corpus, self.training.mix)

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
        """Every setting by name."""
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
        """Everything that rounding depends on."""
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
        """Where a model of the run comes from: its text, the split and the training settings."""
        task, corpus = self.task, self.task.corpus
        parts = {"num_train": corpus.num_train, "num_valid": corpus.num_valid, "num_test": len(corpus.test_ids)}
        text = {"paths": task.paths, "sha256": corpus.sha256, "key": corpus.key}
        return {
            "text": {**text, "labels": dict(corpus.labels)} if corpus.labels else text,
            "split": {**parts, **asdict(task.corpus_config)},
            "training": {**asdict(task.training), "steps": num_steps, "minutes": self.budget.minutes},
        }

    def event(self) -> Plan:
        """The plan as the first event of a run."""
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
        """The run's last step, if known before it starts."""
        if self.budget.seconds:
            return None
        if self.resume and not self.resume.extends:
            return self.resume.scalars.num_steps
        return self.task.training.steps


def plan_new_run(
    run: Run,
    corpus: Corpus,
    corpus_config: CorpusConfig,
    given: Mapping[str, Any],
    environment: Environment,
    *,
    base: ModelFile | None = None,
    fresh: bool = False,
) -> RunPlan:
    """Plan a new run.

    given: the settings the user named, with `minutes`; the recipe chooses the others.
    base: the model whose weights it starts from. fresh: an earlier run of this name will be discarded.
    Raises UsageError if the folder already has a model, nothing can be scored, or settings contradict each other.
    """
    if run.model_path.exists() and not fresh:
        raise UsageError(f"{run.folder} has a model but no state to resume from; {advice_for(run)}")
    _check_scorable(corpus, corpus_config)
    num_train = len(_train_text(corpus, given.get("mix", TrainConfig.mix)))
    notes = [*corpus.notes, *unlike_rest(corpus)]
    given, more_notes = fit_batch_size(given, num_train)
    notes += more_notes
    if fresh and (step := run.last_step()) is not None:
        notes.append(f"starting over: discarding the {step:,} steps of run {run.name!r}")
    minutes = given.get("minutes")
    choice = recommend(
        num_train,
        len(corpus.vocab),
        seconds=None if minutes is None else 60 * minutes,
        steps=given.get("steps"),
        device=environment.device,
        threads=environment.threads * environment.ranks.size,
        precision=environment.precision,
    )
    training = overlay(choice.training, given)
    if minutes is None and training.steps is None:
        minutes, steps = default_budget(num_train, training)
        training = replace(training, steps=steps)
    check_ranks(environment.ranks, training)
    symbols = {"reset_id": corpus.vocab.id_of(END), "label_id": corpus.vocab.id_of(LABEL_END)}
    model = overlay(choice.model, {**given, **symbols})
    return RunPlan(
        run,
        Task(corpus, corpus_config, model, training),
        environment,
        Budget(minutes, None if minutes is None else 60 * minutes),
        base=base,
        notes=(*notes, *_new_characters(base, corpus)),
        reasons={name: reason for name, reason in choice.reasons.items() if name not in given},
    )


def start_from(base: ModelFile, given: Mapping[str, Any]) -> dict[str, Any]:
    """Add the sizes and characters of the model that a run starts from to the given settings.

    Raises UsageError if the given settings contradict the model.
    """
    path, sizes = given["init_from"], asdict(base.config)
    for name in ("cell", "num_layers", "hidden_size", "embedding_dim"):
        if given.get(name, sizes[name]) != sizes[name]:
            raise UsageError(f"{flag(name)} {given[name]} differs from the {sizes[name]} of {path}; leave it out")
        given = {**given, name: sizes[name]}
    if base.vocab.has_bytes and not given.get("bytes"):
        raise UsageError(f"{path} was trained on bytes; add --bytes")
    chars = base.vocab.chars.strip(END + LABEL_END + UNKNOWN)
    if given.get("bytes") and not base.vocab.has_bytes and not chars.isascii():
        raise UsageError(f"{path} was trained on characters, not bytes; leave --bytes out")
    if LABEL_END in base.vocab.chars and not (given.get("label") or given.get("label_from")):
        raise UsageError(f"{path} was trained with labels; add --column and --label, or --label-from")
    if END in base.vocab.chars and not (given.get("documents") or given.get("column")):
        raise UsageError(f"{path} was trained on documents; add --documents or --column")
    return {**given, "known": base.vocab.chars}


def advice_for(run: Run) -> str:
    """Say which options avoid a conflict with an existing run."""
    return f"use --run NAME for another run, or --fresh to start {run.name!r} over"


def fit_batch_size(given: Mapping[str, Any], num_train: int) -> tuple[Mapping[str, Any], list[str]]:
    """Lower a batch size that is too large for the text; return the settings and a note about it."""
    if given.get("batch_size", 0) <= num_train:
        return given, []
    note = f"--batch-size lowered to {num_train}, the number of characters to train on"
    return {**given, "batch_size": num_train}, [note]


def check_ranks(ranks: Ranks, training: TrainConfig) -> None:
    """Raise UsageError if there are more processes than lanes."""
    if ranks.size > training.batch_size:
        raise UsageError(
            f"{ranks.size} processes for {training.batch_size} lanes; start fewer, or use a larger --batch-size"
        )


def _train_text(corpus: Corpus, mix: bool) -> TrainText:
    ids = corpus.train_ids
    return make_train_text(ids, len(corpus.vocab)) if mix else TrainText(ids, np.empty(0, np.int64))


def _check_scorable(corpus: Corpus, config: CorpusConfig) -> None:
    """Raise UsageError if --min-count leaves nothing to score."""
    for name, ids in (("held-out", corpus.valid_ids), ("test", corpus.test_ids)):
        if len(ids) > 0 and (ids == corpus.vocab.id_of(UNKNOWN)).all():
            raise UsageError(
                f"--min-count {config.min_count}: every character of the {name} text is rarer; choose a lower count"
            )


def _new_characters(base: ModelFile | None, corpus: Corpus) -> list[str]:
    """Say which characters of the text are new to the model that a run starts from."""
    new = sorted(set(corpus.vocab.chars) - set(base.vocab.chars) - {LABEL_END}) if base else []
    if not new:
        return []
    more = f", and {len(new) - _NEW_CHARS_SHOWN} more" if len(new) > _NEW_CHARS_SHOWN else ""
    count = "1 character is" if len(new) == 1 else f"{len(new)} characters are"
    return [f"{count} new to the model: {', '.join(map(describe, new[:_NEW_CHARS_SHOWN]))}{more}"]


def _first_paths(paths: tuple[str, ...]) -> list[str]:
    first, parts, size = [], 0, 0
    for path in paths:
        parts += 1 + sum(path.count(sign) for sign in ",:[{")  # as model/container.py counts the parts of JSON
        size += len(json.dumps(json.dumps(path)))  # the metadata is JSON inside JSON
        if parts > MAX_NAMES or size > MAX_BYTES:
            break
        first.append(path)
    return first
