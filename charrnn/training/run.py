"""A run from its command to its last event: make the plan, lock the folder, train, log every event."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from charrnn.config import SECONDS_BETWEEN_STATES, CorpusConfig, SourceConfig, check_number, overlay
from charrnn.data.cache import Cache
from charrnn.data.corpus import Corpus, load_corpus
from charrnn.errors import ModelFileError, RunLockedError, UsageError
from charrnn.events import Event, Resumed, Warned
from charrnn.model.file import ModelFile, load_model
from charrnn.runs.folder import Run
from charrnn.runs.log import Log
from charrnn.runs.models import find_model
from charrnn.text.sources import STDIN
from charrnn.training.loop import train
from charrnn.training.plan import Environment, RunPlan
from charrnn.training.planning import plan_new_run, start_from
from charrnn.training.recipe import StopRequest
from charrnn.training.resume import plan_resumed_run, resolve_corpus_config
from charrnn.training.saving import read_finished_event


def make_plan(
    run: Run, texts: Sequence[str], given: Mapping[str, Any], environment: Environment, *, fresh: bool = False
) -> RunPlan:
    """Read the run's newest state and the texts, and plan a new or a resumed run.

    given: the settings the user named, by field, with `minutes` and `steps`.
    fresh: plan a new run, whatever the folder contains.
    Raises UsageError, InputError or ModelFileError with a message that says what to change.
    """
    given = _check_given(texts, given, environment)
    newest_step = run.last_step()  # before the state is read: check_unchanged must notice a state written later
    saved = None if fresh else run.newest_state()
    base = None
    if "init_from" in given:
        given, base = _find_base(given, is_new=saved is None)
    corpus_config = resolve_corpus_config(run, saved, given)
    corpus = _read(texts, corpus_config, given, environment)
    if saved is not None:
        plan = plan_resumed_run(run, saved, corpus, given, environment)
    else:
        plan = plan_new_run(run, corpus, corpus_config, given, environment, base=base, fresh=fresh)
    return replace(plan, newest_step=newest_step)


def check_unchanged(plan: RunPlan) -> None:
    """Raise RunLockedError if another run has trained in the folder, now locked, since the plan was made."""
    if plan.run.last_step() != plan.newest_step:
        raise RunLockedError(f"{plan.run.folder}: another run trained here in the meantime; repeat the command")


def _check_given(texts: Sequence[str], given: Mapping[str, Any], environment: Environment) -> Mapping[str, Any]:
    """Check settings against each other and make the path of --valid absolute."""
    minutes, valid = given.get("minutes"), given.get("valid")
    if minutes is not None and given.get("steps") is not None:
        raise UsageError("--minutes and --steps are both budgets; give one of them")
    if minutes is not None:
        check_number("--minutes", minutes, 0.01, 1e6)
    if valid is not None and "valid_fraction" in given:
        raise UsageError("--valid FILE and --valid-fraction both hold out text; give one of them")
    if environment.ranks.size > 1 and STDIN in (*texts, valid):
        raise UsageError("several processes can't share stdin; give the text as a file")
    if valid is not None and valid != STDIN:
        return {**given, "valid": os.path.abspath(valid)}
    return given


def _find_base(given: Mapping[str, Any], *, is_new: bool) -> tuple[Mapping[str, Any], ModelFile | None]:
    """Load the model of --init-from for a new run; return the settings with those it implies, and the model."""
    rest = {name: value for name, value in given.items() if name != "init_from"}
    try:
        path = os.path.abspath(find_model(given["init_from"]))
    except ModelFileError:
        if is_new:
            raise
        return rest, None  # a resumed run no longer needs it
    given = {**rest, "init_from": path}
    if not is_new:
        return given, None
    base = load_model(path)
    return start_from(base, given), base


def _read(texts: Sequence[str], config: CorpusConfig, given: Mapping[str, Any], environment: Environment) -> Corpus:
    with environment.ranks.local_rank_first("reading"), Cache.for_user().writable() as cache:
        return load_corpus(texts, config, overlay(SourceConfig(), given), cache)


@contextmanager
def lock(plan: RunPlan, *, fresh: bool = False) -> Iterator[None]:
    """Hold the run's folder, unchanged since the plan was made; with fresh, discard the earlier run in it.

    A new run that fails before its first step, for example out of memory, leaves nothing behind: its settings would
    otherwise be those of the next command.
    Raises RunLockedError where another run holds the folder, or has trained in it meanwhile.
    """
    with plan.run.locked():
        if fresh:
            plan.run.clear()
        else:
            check_unchanged(plan)
        try:
            yield
        except BaseException:
            if plan.resume is None and not plan.run.last_step() and plan.run.num_logged() <= 1:  # 1: the plan
                plan.run.clear()
            raise


def train_and_log(
    plan: RunPlan, *, stop: StopRequest | None = None, save_every: float = SECONDS_BETWEEN_STATES
) -> Iterator[Event]:
    """Train as planned, log every event and yield it; a run that is finished only yields its end.

    Of several ranks only the first logs and yields. Errors as those of `loop.train`.
    """
    ranks, log = plan.environment.ranks, Log(plan.run)
    if plan.is_finished:
        if ranks.is_first:
            yield from finished_events(plan, log)
        return
    for event in train(plan, stop=stop, save_every=save_every):
        if not ranks.is_first:
            continue
        if problem := log.append(event.record()):
            yield Warned(event.step, problem)
        yield event
    if ranks.is_first:
        log.finish()


def finished_events(plan: RunPlan, log: Log) -> Iterator[Event]:
    """Yield how a finished run ended, and log it if the run was killed before it could."""
    assert plan.resume is not None
    scalars = plan.resume.scalars
    finished = read_finished_event(plan.run, scalars.step)
    yield Resumed(scalars.step, plan.notes[0])
    if plan.run.num_logged() < scalars.num_events:
        log.append(finished.record())
    yield finished
