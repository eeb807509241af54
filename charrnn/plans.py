"""What a run is going to do: recommended and overlaid for a new one, looked up for one that goes on."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from charrnn.checkpoint import ModelFile
from charrnn.config import (
    SECONDS_BETWEEN_STATES,
    Checked,
    CorpusConfig,
    ModelConfig,
    TrainConfig,
    count_workers,
    default_budget,
    estimate_memory,
    flag,
    overlay,
    recommend,
    setting,
)
from charrnn.corpus import Corpus
from charrnn.distributed import ALONE, Ranks
from charrnn.errors import ModelFileError, UsageError
from charrnn.kernels.products import processor
from charrnn.metrics import Plan
from charrnn.runs import Run, SavedState
from charrnn.standing import Standing, check_arrays, standing_of
from charrnn.vocab import END, UNKNOWN, describe
from charrnn.withholding import Withheld, withhold

MAX_PARTS, MAX_BYTES = 10_000, 1 << 21  # of a description, for a text's files; checkpoint.py reads twice that
_LIBRARIES = ("charrnn", "torch", "numpy", "numba")  # whose versions may round sums otherwise


@dataclass(frozen=True)
class RunPlan:
    """Everything about a run that is settled before its first step.

    minutes: the whole time budget; seconds: what of it is still to be turned into steps.
    Both None where training.steps is the budget. resume: the state to go on from;
    extends: that run had finished, and its budget has grown; done: there is nothing to do.
    base: the model a new run begins with. save_every: seconds between two states. ranks: the
    processes that share the run; threads are those of each.
    notes: what the user should know, for a run that goes on how first. reasons: why settings
    that the user left open have their values.
    """

    run: Run
    corpus: Corpus
    corpus_config: CorpusConfig
    model: ModelConfig
    training: TrainConfig
    device: str
    threads: int
    precision: str = "float32"
    minutes: float | None = None
    seconds: float | None = None
    resume: SavedState | None = None
    extends: bool = False
    done: bool = False
    base: ModelFile | None = None
    save_every: float = SECONDS_BETWEEN_STATES
    ranks: Ranks = ALONE
    notes: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def lanes(self) -> slice:
        """Those of the run's lanes that are this process's."""
        return self.ranks.lanes(self.training.batch_size)

    @property
    def num_workers(self) -> int:
        """Threads that share a step's lanes."""
        return count_workers(self.lanes.stop - self.lanes.start, device=self.device, threads=self.threads)

    @cached_property
    def learnt(self) -> Withheld:
        """The training text without what the network doesn't learn."""
        return _learnt(self.corpus, self.training.mix)

    @cached_property
    def place(self) -> dict[str, Any]:
        """Where the run is computed: in another place it goes on, but not to the last bit as it would have."""
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
        facts = {"device": self.device, "threads": self.threads, "precision": self.precision}
        facts["processes"] = self.ranks.size
        return {**facts, "processor": processor(), "versions": versions}

    @cached_property
    def settled(self) -> dict[str, Any]:
        """What a state says of its run, as plain values: the same in all of them, once the seconds are steps."""
        corpus = self.corpus
        text = {"sha256": corpus.sha256, "vocab": corpus.vocab.fingerprint, "num_chars": len(corpus.ids)}
        return {
            "minutes": self.minutes,
            "seconds": self.seconds,
            "model": asdict(self.model),
            "training": asdict(self.training),
            "corpus": asdict(self.corpus_config),
            "text": {**text, "paths": self._paths},
            "place": self.place,
        }

    @property
    def common(self) -> dict[str, Any]:
        """What all processes of a run must have alike, by the names that a person knows."""
        configs = {**asdict(self.corpus_config), **asdict(self.model), **asdict(self.training)}
        return {
            "the text's SHA-256": self.corpus.sha256,
            "the vocabulary's fingerprint": self.corpus.vocab.fingerprint,
            "the step to go on from": self.resume.meta["step"] if self.resume else "none",
            **{flag(name): value for name, value in configs.items()},
            "--minutes": self.minutes,
            "--precision": self.precision,
            "--device": self.device.partition(":")[0],
        }

    def provenance(self, num_steps: int | None) -> dict[str, Any]:
        """Where a model of the run comes from: its text, how that was split, how it was trained."""
        corpus = self.corpus
        text = {"paths": self._paths, "sha256": corpus.sha256, "key": corpus.key}
        parts = {"num_train": corpus.num_train, "num_valid": corpus.num_valid, "num_test": len(corpus.test_ids)}
        training = {**asdict(self.training), "steps": num_steps, "minutes": self.minutes}
        return {"text": text, "split": {**parts, **asdict(self.corpus_config)}, "training": training}

    @cached_property
    def _paths(self) -> list[str]:
        return _first(self.corpus.names)

    def _num_steps(self) -> int | None:
        """Where the run ends, as far as it is known before it starts."""
        if self.seconds:
            return None
        if self.resume and not self.extends:
            num_steps: int | None = self.resume.meta["num_steps"]
            return num_steps
        return self.training.steps

    def fact(self) -> Plan:
        """The plan as an event."""
        return Plan(
            step=self.resume.meta["step"] if self.resume else 0,
            run=self.run.name,
            texts=list(self.corpus.names),
            num_chars=len(self.corpus.ids),
            num_train_chars=len(self.corpus.train_ids),
            num_valid_chars=len(self.corpus.valid_ids),
            num_test_chars=len(self.corpus.test_ids),
            valid=self.corpus_config.valid,
            vocab_size=len(self.corpus.vocab),
            model=asdict(self.model),
            training=asdict(self.training),
            num_parameters=self.model.num_parameters,
            memory_bytes=estimate_memory(self.model, self.training),
            steps=self._num_steps(),
            minutes=self.minutes,
            device=self.device,
            threads=self.threads,
            processes=self.ranks.size,
            precision=self.precision,
            notes=list(self.notes),
            reasons=dict(self.reasons),
        )


def _first(paths: tuple[str, ...]) -> list[str]:
    """As many of a text's files as a file's description has room for."""
    first, parts, size = [], 0, 0
    for path in paths:
        parts += 1 + sum(path.count(sign) for sign in ",:[{")  # as JSON's, for who counts them before reading it
        size += len(json.dumps(json.dumps(path)))  # JSON in JSON
        if parts > MAX_PARTS or size > MAX_BYTES:
            break
        first.append(path)
    return first


def settle_corpus(run: Run, given: Mapping[str, Any], *, fresh: bool) -> CorpusConfig:
    """How the text is read and split: as when the run began, else as the command line says.

    Raises UsageError where those differ.
    """
    saved = None if fresh else run.newest_state()
    if saved is None:
        return overlay(CorpusConfig(), given)
    config = _configs_of(run, saved)[0]
    _check_same(run, asdict(config), {name: value for name, value in given.items() if name != "known"})
    return config


def begin_with(base: ModelFile, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the user gave, with the sizes and the characters of the model that a run begins with.

    Raises UsageError where the user wants others.
    """
    path, sizes = given["init_from"], asdict(base.config)
    for name in ("cell", "num_layers", "hidden_size", "embedding_dim"):
        if given.get(name, sizes[name]) != sizes[name]:
            raise UsageError(f"{flag(name)} {given[name]} differs from the {sizes[name]} of {path}; leave it out")
        given = {**given, name: sizes[name]}
    if base.vocab.of_bytes and not given.get("bytes"):
        raise UsageError(f"{path} has learnt bytes; add --bytes")
    if given.get("bytes") and not base.vocab.of_bytes and not base.vocab.chars.strip(END + UNKNOWN).isascii():
        raise UsageError(f"{path} has learnt characters, not bytes; leave --bytes out")
    if END in base.vocab.chars and not given.get("documents"):
        raise UsageError(f"{path} has learnt where documents end; add --documents")
    return {**given, "known": base.vocab.chars}


def _check_same(run: Run, settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise UsageError where a run's settings are not those that are given now."""
    for name, value in given.items():
        if settings.get(name, value) != value:
            raise UsageError(f"{flag(name)} {value} differs from this run's {settings[name]}; {_choices(run)}")


def make_plan(
    run: Run,
    corpus: Corpus,
    corpus_config: CorpusConfig,
    given: Mapping[str, Any],
    *,
    minutes: float | None,
    device: str,
    threads: int,
    precision: str = "float32",
    fresh: bool = False,
    base: ModelFile | None = None,
    save_every: float = SECONDS_BETWEEN_STATES,
    ranks: Ranks = ALONE,
) -> RunPlan:
    """Settle what the run in this folder does, given what the command line asks for.

    given: the settings the user named, by field; the text or an earlier state says the rest.
    fresh: whatever is in the folder doesn't count. base: what a new run begins with. ranks: the
    processes that share the run. Raises UsageError where text or settings differ from those of the run that is there.
    """
    num_train = len(_learnt(corpus, given.get("mix", TrainConfig.mix)))
    notes: list[str] = []
    if given.get("batch_size", 0) > num_train:
        notes.append(f"the text has only {num_train} characters to train on, so as many lanes")
        given = {**given, "batch_size": num_train}
    saved = None if fresh else run.newest_state()
    if saved is not None:
        plan = RunPlan(
            run, corpus, *_configs_of(run, saved), device, threads, precision, save_every=save_every, ranks=ranks
        )
        return _checked(_continued(saved, plan, given, minutes))
    if run.model_path.exists() and not fresh:
        raise UsageError(f"{run.folder} has a model but no state to go on from; {_choices(run)}")
    if fresh and (forgotten := run.last_step()) is not None:
        notes.append(f"starting over: what {run.name!r} had learned in {forgotten:,} steps is forgotten")
    choice = recommend(
        *(num_train, len(corpus.vocab)),
        seconds=None if minutes is None else 60 * minutes,
        steps=given.get("steps"),
        device=device,
        threads=threads * ranks.size,
    )
    model = overlay(choice.model, {**given, "reset_id": corpus.vocab.id_of(END)})
    training = overlay(choice.training, given)
    if minutes is None and training.steps is None:
        minutes, steps = default_budget(num_train, training)
        training = replace(training, steps=steps)
    return _checked(
        RunPlan(
            *(run, corpus, corpus_config, model, training, device, threads, precision),
            minutes=minutes,
            seconds=None if minutes is None else 60 * minutes,
            base=base,
            save_every=save_every,
            ranks=ranks,
            notes=(*corpus.notes, *notes, *_added(base, corpus)),
            reasons={name: reason for name, reason in choice.reasons.items() if name not in given},
        )
    )


def _checked(plan: RunPlan) -> RunPlan:
    lanes, size = plan.training.batch_size, plan.ranks.size
    if size > lanes:
        raise UsageError(f"{size} processes for {lanes} lanes; start at most as many, or give a larger --batch-size")
    return plan


def _learnt(corpus: Corpus, mix: bool) -> Withheld:
    ids = corpus.train_ids
    return withhold(ids, len(corpus.vocab)) if mix else Withheld(ids, np.empty(0, np.int64))


def _choices(run: Run) -> str:
    return f"use --run NAME for another run, or --fresh to start {run.name!r} over"


def _added(base: ModelFile | None, corpus: Corpus) -> list[str]:
    """The characters that a run learns beyond those of the model it begins with."""
    new = sorted(set(corpus.vocab.chars) - set(base.vocab.chars)) if base else []
    if not new:
        return []
    more = f", and {len(new) - 20} more" if len(new) > 20 else ""
    count = "1 character is" if len(new) == 1 else f"{len(new)} characters are"
    return [f"{count} new to the model: {', '.join(map(describe, new[:20]))}{more}"]


def _configs_of(run: Run, saved: SavedState) -> tuple[CorpusConfig, ModelConfig, TrainConfig]:
    """The settings a run has had since its first step. Raises ModelFileError where a file says nonsense."""
    try:
        meta = saved.meta
        return CorpusConfig(**meta["corpus"]), ModelConfig(**meta["model"]), TrainConfig(**meta["training"])
    except (UsageError, KeyError, TypeError) as error:
        raise _foreign(run, saved, error) from None


def _foreign(run: Run, saved: SavedState, error: Exception) -> ModelFileError:
    why = str(error) if isinstance(error, UsageError) else repr(error)
    return ModelFileError(f"{saved.path}: not a state of a run ({why}); {_choices(run)}")


@dataclass(frozen=True)
class _Budget(Checked):
    """What a run was given: minutes in all; seconds of it that were still to be turned into steps when it began."""

    minutes: float | None = setting(0.0, 1e9, default=None)
    seconds: float | None = setting(0.0, 1e11, default=None)


@dataclass(frozen=True)
class _Text(Checked):
    """What a run has read: a text's SHA-256, the fingerprint of its vocabulary, its length and its files."""

    sha256: str
    vocab: str
    paths: list[str]
    num_chars: int = setting(1, 10**15)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.paths, list) or not all(isinstance(path, str) for path in self.paths):
            raise UsageError("its files are not a list of names")


def _continued(saved: SavedState, plan: RunPlan, given: Mapping[str, Any], minutes: float | None) -> RunPlan:
    """The plan of a run that is there already. What the user left open stays as it was."""
    meta, run = saved.meta, plan.run
    stood = standing_of(saved.path, meta)
    settings = {**asdict(plan.model), **asdict(plan.training), **asdict(plan.corpus_config)}
    unchecked = ("steps", "known")
    _check_same(run, {name: value for name, value in settings.items() if name not in unchecked}, given)
    try:
        budget = _Budget(meta["minutes"], meta["seconds"])
        text, place = _Text(**meta["text"]), dict(meta["place"])
    except (UsageError, KeyError, TypeError, ValueError) as error:
        raise _foreign(run, saved, error) from None
    _check_text(plan, text)
    batch_size = plan.training.batch_size
    check_arrays(saved.path, saved.tensors, plan.model, batch_size=batch_size, stepped=stood.step > 0)
    longest_lane = -(-len(plan.learnt) // batch_size)
    if stood.cursor.time >= longest_lane or stood.valid_chars > len(plan.corpus.valid_ids):
        raise _foreign(run, saved, UsageError("it stands outside its text"))
    plan = replace(plan, minutes=budget.minutes, resume=saved)
    if not stood.finished:
        return _resumed(plan, stood, place, given.get("steps"), minutes, budget.seconds)
    return _extended(plan, stood, given.get("steps"), minutes)


def _check_text(plan: RunPlan, then: _Text) -> None:
    """Raise UsageError where the text is not the one that the run has read so far."""
    corpus, run = plan.corpus, plan.run
    if (then.sha256, then.vocab) == (corpus.sha256, corpus.vocab.fingerprint):
        return
    if then.paths != plan._paths:
        other = next((name for name in plan._paths if name not in then.paths), None)
        what = f"it was trained on {_listed(then.paths)}" + (f", {other} is new" if other else "")
    elif then.num_chars != len(corpus.ids):
        what = f"it had {then.num_chars:,} characters then and has {len(corpus.ids):,} now"
    else:
        what = f"its {then.num_chars:,} characters are as many as then, but not the same"
    raise UsageError(f"the text is not the one that run {run.name!r} was trained on: {what}; {_choices(run)}")


def _listed(paths: list[str]) -> str:
    return ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _resumed(
    plan: RunPlan,
    stood: Standing,
    place: Mapping[str, Any],
    steps: int | None,
    minutes: float | None,
    seconds: float | None,
) -> RunPlan:
    """The plan of a run that was stopped on its way."""
    run, total, spent = plan.run, stood.num_steps, plan.minutes
    if (steps or total) != total or (minutes or spent) != spent:
        raise UsageError(
            f"run {run.name!r} isn't finished; finish it first, with no --minutes or --steps, or {_choices(run)}"
        )
    left = None if total else seconds  # none of it is steps yet if it stopped before its speed was known
    return replace(plan, seconds=left, notes=(f"going on from step {stood.step}", *_moved(place, plan)))


def _extended(plan: RunPlan, stood: Standing, steps: int | None, minutes: float | None) -> RunPlan:
    """The plan of a run that had finished: done, unless its budget has grown."""
    run, total, spent = plan.run, stood.num_steps, plan.minutes
    anew = "the learning rate starts anew"
    if steps and steps > (total or 0):
        note = f"extending the finished run from step {stood.step} to step {steps}; {anew}"
        return replace(plan, training=replace(plan.training, steps=steps), extends=True, notes=(note,))
    if minutes and minutes > (spent or 0):
        how = f"from {spent:g} to {minutes:g}" if spent else f"by {minutes:g}"
        note = f"extending the finished run {how} minutes; {anew}"
        seconds = 60 * (minutes - (spent or 0))
        return replace(plan, minutes=minutes, seconds=seconds, extends=True, notes=(note,))
    over = f"run {run.name!r} is finished after {stood.step} steps"
    note = f"{over}; more --steps or --minutes extend it, --fresh starts over"
    return replace(plan, done=True, notes=(note,))


def _moved(before: Mapping[str, Any], plan: RunPlan) -> list[str]:
    """What to know about a run that goes on in another place than it was in."""
    here = plan.place
    changes = [f"{name} {before.get(name)} before, {here[name]} now" for name in here if before.get(name) != here[name]]
    if not changes:
        return []
    return [f"the run will not end bit for bit as it would have: {'; '.join(changes)}, which rounds sums otherwise"]
