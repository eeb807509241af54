"""What a run is going to do: recommended and overlaid for a new one, looked up for one that goes on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from charrnn.config import (
    CorpusConfig,
    ModelConfig,
    TrainConfig,
    count_workers,
    default_budget,
    estimate_memory,
    flag,
    overlay,
    recommend,
)
from charrnn.corpus import Corpus
from charrnn.errors import ModelFileError, UsageError
from charrnn.metrics import Plan
from charrnn.runs import Run, SavedState
from charrnn.vocab import END


@dataclass(frozen=True)
class RunPlan:
    """Everything about a run that is settled before its first step.

    minutes: the whole time budget; seconds: what of it is still to be turned into steps.
    Both None where training.steps is the budget. resume: the state to go on from;
    extends: that run had finished, and its budget has grown; done: there is nothing to do.
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
    notes: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_workers(self) -> int:
        """Threads that share a step's lanes."""
        return count_workers(self.training.batch_size, device=self.device, threads=self.threads)

    @property
    def place(self) -> dict[str, Any]:
        """Where the run is computed: in another place it goes on, but not to the last bit as it would have."""
        return {"device": self.device, "threads": self.threads, "precision": self.precision}

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
            precision=self.precision,
            notes=list(self.notes),
            reasons=dict(self.reasons),
        )


def settle_corpus(run: Run, given: Mapping[str, Any], *, fresh: bool) -> CorpusConfig:
    """How the text is read and split: as when the run began, else as the command line says.

    Raises UsageError where those differ.
    """
    saved = None if fresh else run.newest_state()
    if saved is None:
        return overlay(CorpusConfig(), given)
    config = _configs_of(run, saved)[0]
    _check_same(run, asdict(config), given)
    return config


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
) -> RunPlan:
    """Settle what the run in this folder does, given what the command line asks for.

    given: the settings the user named, by field; the text or an earlier state says the rest.
    fresh: whatever is in the folder doesn't count.
    Raises UsageError where text or settings differ from those of the run that is there.
    """
    num_train, notes = len(corpus.train_ids), []
    if given.get("batch_size", 0) > num_train:
        notes.append(f"the text has only {num_train} characters to train on, so as many lanes")
        given = {**given, "batch_size": num_train}
    saved = None if fresh else run.newest_state()
    if saved is not None:
        plan = RunPlan(run, corpus, *_configs_of(run, saved), device, threads, precision)
        try:
            return _continued(saved, plan, given, minutes)
        except (KeyError, TypeError, AttributeError) as error:
            raise _foreign(run, saved, error) from None
    if run.model_path.exists() and not fresh:
        raise UsageError(f"{run.folder} has a model but no state to go on from; {_choices(run)}")
    choice = recommend(
        *(num_train, len(corpus.vocab)),
        seconds=None if minutes is None else 60 * minutes,
        steps=given.get("steps"),
        device=device,
        threads=threads,
    )
    model = overlay(choice.model, {**given, "reset_id": corpus.vocab.id_of(END)})
    training = overlay(choice.training, given)
    if minutes is None and training.steps is None:
        minutes, steps = default_budget(num_train, training)
        training = replace(training, steps=steps)
    return RunPlan(
        run,
        corpus,
        corpus_config,
        model,
        training,
        device,
        threads,
        precision,
        minutes=minutes,
        seconds=None if minutes is None else 60 * minutes,
        notes=(*corpus.notes, *notes),
        reasons={name: reason for name, reason in choice.reasons.items() if name not in given},
    )


def _choices(run: Run) -> str:
    return f"use --run NAME for another run, or --fresh to start {run.name!r} over"


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


def _continued(saved: SavedState, plan: RunPlan, given: Mapping[str, Any], minutes: float | None) -> RunPlan:
    """The plan of a run that is there already. What the user left open stays as it was."""
    meta, run = saved.meta, plan.run
    settings = {**asdict(plan.model), **asdict(plan.training), **asdict(plan.corpus_config)}
    _check_same(run, {name: value for name, value in settings.items() if name != "steps"}, given)
    if meta["text"]["sha256"] != plan.corpus.sha256 or meta["text"]["vocab"] != plan.corpus.vocab.fingerprint:
        raise UsageError(f"the text is not the one that run {run.name!r} was trained on; {_choices(run)}")
    steps, total, spent = given.get("steps"), meta["num_steps"], meta["minutes"]
    plan = replace(plan, minutes=spent, resume=saved)
    if not meta["finished"]:
        if (steps or total) != total or (minutes or spent) != spent:
            raise UsageError(
                f"run {run.name!r} isn't finished; finish it first, with no --minutes or --steps, or {_choices(run)}"
            )
        seconds = None if total else meta["seconds"]  # None of it is steps yet if it stopped before its speed was known
        return replace(plan, seconds=seconds, notes=(f"going on from step {meta['step']}", *_moved(meta, plan)))
    anew = "the learning rate starts anew"
    if steps and steps > total:
        note = f"extending the finished run from step {meta['step']} to step {steps}; {anew}"
        return replace(plan, training=replace(plan.training, steps=steps), extends=True, notes=(note,))
    if minutes and minutes > (spent or 0):
        how = f"from {spent:g} to {minutes:g}" if spent else f"by {minutes:g}"
        note = f"extending the finished run {how} minutes; {anew}"
        seconds = 60 * (minutes - (spent or 0))
        return replace(plan, minutes=minutes, seconds=seconds, extends=True, notes=(note,))
    over = f"run {run.name!r} is finished after {meta['step']} steps"
    note = f"{over}; more --steps or --minutes extend it, --fresh starts over"
    return replace(plan, done=True, notes=(note,))


def _moved(meta: Mapping[str, Any], plan: RunPlan) -> list[str]:
    """What to know about a run that goes on in another place than it was in."""
    here = plan.place
    before = meta.get("place") or here  # the first version's files don't say
    changes = [f"{name} {before[name]} before, {here[name]} now" for name in here if before[name] != here[name]]
    if not changes:
        return []
    return [f"the run will not end bit for bit as it would have: {'; '.join(changes)}, which rounds sums otherwise"]
