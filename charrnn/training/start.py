"""The start of a run: reads its newest state and the texts once, and makes the plan."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from charrnn.config import CorpusConfig, SourceConfig, overlay
from charrnn.data.cache import Cache
from charrnn.data.corpus import Corpus, load_corpus
from charrnn.data.sources import STDIN
from charrnn.errors import ModelFileError, RunLockedError, UsageError
from charrnn.model.file import ModelFile, load_model
from charrnn.training.folder import Run, find_model
from charrnn.training.plan import Environment, RunPlan, plan_new_run, start_from
from charrnn.training.resume import plan_resumed_run, resolve_corpus_config


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
    if minutes is not None and not 0.01 <= minutes <= 1e6:
        raise UsageError(f"--minutes must lie between 0.01 and 1e+06, not {minutes}")
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
