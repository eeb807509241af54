"""The plan of a run that has a saved state: it resumes, is extended by a larger budget, or is already finished."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from charrnn.config import CorpusConfig, ModelConfig, TrainConfig, flag, overlay
from charrnn.data.corpus import Corpus
from charrnn.errors import ModelFileError, UsageError
from charrnn.model.container import shorten
from charrnn.runs.folder import Run, SavedState, SavedText
from charrnn.text.characters import first_of
from charrnn.training.plan import Budget, Environment, Resume, RunPlan, Task
from charrnn.training.planning import advice_for, check_ranks, fit_batch_size
from charrnn.training.state import verify_state

_UNCHECKED = ("steps", "known")  # settings that may differ from the run's


def resolve_corpus_config(run: Run, saved: SavedState | None, given: Mapping[str, Any]) -> CorpusConfig:
    """Return how to read and split the text: as the saved run did, or, for a new run, as given.

    Raises UsageError if the given settings differ from the saved run's.
    """
    if saved is None:
        return overlay(CorpusConfig(), given)
    config = _saved_configs(run, saved)[0]
    _check_same(run, asdict(config), {name: value for name, value in given.items() if name != "known"})
    return config


def plan_resumed_run(
    run: Run, saved: SavedState, corpus: Corpus, given: Mapping[str, Any], environment: Environment
) -> RunPlan:
    """Plan how a run continues from its saved state, with its own settings.

    given: as for plan_new_run. Raises UsageError if the text or a given setting differs from the run's,
    ModelFileError if the state contradicts itself.
    """
    task = Task(corpus, *_saved_configs(run, saved))
    given, _ = fit_batch_size(given, len(task.train_text))
    settings = {name: value for name, value in task.settings().items() if name not in _UNCHECKED}
    _check_same(run, settings, given)
    try:
        budget = Budget(saved.meta["minutes"], saved.meta["seconds"])
        text, place = SavedText(**saved.meta["text"]), dict(saved.meta["place"])
    except (UsageError, KeyError, TypeError, ValueError) as error:
        raise _not_a_state(run, saved, error) from None
    _check_text(run, task, text)
    check_ranks(environment.ranks, task.training)
    scalars = verify_state(saved, task.model, batch_size=task.training.batch_size)
    longest_lane = -(-len(task.train_text) // task.training.batch_size)
    if scalars.cursor.time >= longest_lane or scalars.valid_chars > len(corpus.valid_ids):
        raise _not_a_state(run, saved, UsageError("its position is outside the text"))
    plan, steps, minutes = RunPlan(run, task, environment, budget), given.get("steps"), given.get("minutes")
    if scalars.finished:
        return _continue_finished(plan, Resume(saved, scalars), steps, minutes)
    plan = _continue_unfinished(plan, Resume(saved, scalars), steps, minutes)
    return replace(plan, notes=(*plan.notes, *_environment_changes(place, environment)))


def _continue_unfinished(plan: RunPlan, resume: Resume, steps: int | None, minutes: float | None) -> RunPlan:
    """Complete the plan of a run that was stopped before its end."""
    scalars = resume.scalars
    total, spent = scalars.num_steps, plan.budget.minutes
    if (steps or total) != total or (minutes or spent) != spent:
        raise UsageError(
            f"run {plan.run.name!r} isn't finished; finish it first, without --minutes or --steps, "
            f"or {advice_for(plan.run)}"
        )
    left = None if total else plan.budget.seconds  # all of them, if the run stopped before its speed was known
    budget = replace(plan.budget, seconds=left)
    return replace(plan, budget=budget, resume=resume, notes=(f"resuming from step {scalars.step}",))


def _continue_finished(plan: RunPlan, resume: Resume, steps: int | None, minutes: float | None) -> RunPlan:
    """Complete the plan of a run that had finished: nothing is left to do unless its budget has grown."""
    plan = replace(plan, budget=replace(plan.budget, seconds=None))  # all of them were turned into steps
    scalars, spent, extension = resume.scalars, plan.budget.minutes, replace(resume, extends=True)
    outlook = (
        "the learning rate rises to its peak again, so scores get worse before they improve; "
        "the saved model is replaced only by a better one"
    )
    if steps and steps > (scalars.num_steps or 0):
        note = f"extending the finished run from step {scalars.step} to step {steps}; {outlook}"
        task = replace(plan.task, training=replace(plan.task.training, steps=steps))
        return replace(plan, task=task, resume=extension, notes=(note,))
    if minutes and minutes > (spent or 0):
        growth = f"from {spent:g} to {minutes:g}" if spent else f"by {minutes:g}"
        note = f"extending the finished run {growth} minutes; {outlook}"
        budget = Budget(minutes, 60 * (minutes - (spent or 0)))
        return replace(plan, budget=budget, resume=extension, notes=(note,))
    note = (
        f"run {plan.run.name!r} finished after {scalars.step} steps; "
        "more --steps or --minutes extend it, --fresh starts over"
    )
    return replace(plan, resume=replace(resume, is_finished=True), notes=(note,))


def _saved_configs(run: Run, saved: SavedState) -> tuple[CorpusConfig, ModelConfig, TrainConfig]:
    """Return the run's settings. Raises ModelFileError if the file contradicts itself."""
    try:
        meta = saved.meta
        return CorpusConfig(**meta["corpus"]), ModelConfig(**meta["model"]), TrainConfig(**meta["training"])
    except (UsageError, KeyError, TypeError) as error:
        raise _not_a_state(run, saved, error) from None


def _not_a_state(run: Run, saved: SavedState, error: Exception) -> ModelFileError:
    why = str(error) if isinstance(error, (UsageError, ValueError)) else repr(error)
    return ModelFileError(f"{saved.path}: not a state of a run ({shorten(why)}); {advice_for(run)}")


def _check_same(run: Run, settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise UsageError if a given value differs from the run's."""
    for name, value in given.items():
        if settings.get(name, value) != value:
            before = settings[name]
            if before is None or before is False or before == "":
                named = flag(name) if value is True else f"{flag(name)} {shorten(value)}"
                raise UsageError(f"{named}: this run was started without it; {advice_for(run)}")
            if value is False:
                no = flag(f"no_{name}")
                raise UsageError(f"{no}: this run was started with {flag(name)}; {advice_for(run)}")
            raise UsageError(
                f"{flag(name)} {shorten(value)} differs from this run's {shorten(before)}; {advice_for(run)}"
            )


def _check_text(run: Run, task: Task, before: SavedText) -> None:
    """Raise UsageError if the text is not the one that the run was trained on."""
    corpus = task.corpus
    if (before.sha256, before.vocab) == (corpus.sha256, corpus.vocab.fingerprint):
        return
    if before.paths != task.paths:
        new = next((name for name in task.paths if name not in before.paths), None)
        difference = first_of(list(map(shorten, before.paths)), 3) + (f" ({new} is new)" if new else "")
    elif before.num_chars != len(corpus.ids):
        difference = f"it had {before.num_chars:,} characters and has {len(corpus.ids):,} now"
    else:
        difference = f"it still has {before.num_chars:,} characters, but not the same ones"
    advice = advice_for(run)
    if run.model_path.exists():
        name = shlex.quote(run.name)
        advice = (
            f"use --run NAME --init-from {name} to train its model further on this text, "
            f"or --fresh to start {run.name!r} over"
        )
    raise UsageError(f"run {run.name!r} was trained on another text: {difference}; {advice}")


def _environment_changes(before: Mapping[str, Any], environment: Environment) -> list[str]:
    """Warn if the run resumes in another environment."""
    now = environment.facts()
    changes = [
        f"{name} was {shorten(before.get(name))}, is {now[name]}" for name in now if before.get(name) != now[name]
    ]
    if not changes:
        return []
    return [f"the environment has changed, so the result will not be bit-identical: {'; '.join(changes)}"]
