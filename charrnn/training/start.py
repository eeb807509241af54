"""From what the user asks for to a run's plan: reads the texts, finds the run's state, settles everything."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from charrnn.config import CorpusConfig, SourceConfig, overlay
from charrnn.data.cache import Cache
from charrnn.data.corpus import Corpus, load_corpus
from charrnn.data.sources import STDIN
from charrnn.errors import ModelFileError, RunLockedError, UsageError
from charrnn.model.file import ModelFile, load_model
from charrnn.training.folder import Run, find_model
from charrnn.training.plan import Environment, RunPlan, plan_new_run, start_from
from charrnn.training.resume import plan_resumed_run, settle_corpus_config


def make_plan(
    run: Run, texts: Sequence[str], given: Mapping[str, Any], environment: Environment, *, fresh: bool = False
) -> RunPlan:
    """Read the texts and settle what the run does: a new run, or one that continues from its newest state.

    given: the settings the user named, by field, `minutes` and `steps` among them.
    fresh: start over, whatever the run's folder holds.
    Raises UsageError, InputError or ModelFileError that says what to change.
    """
    given = _check_given(texts, given, environment)
    saved = None if fresh else run.newest_state()
    base = None
    if "init_from" in given:
        given, base = _find_base(given, is_new=saved is None)
    corpus_config = settle_corpus_config(run, saved, given)
    corpus = _read(texts, corpus_config, given, environment)
    if saved is not None:
        return plan_resumed_run(run, saved, corpus, given, environment)
    return plan_new_run(run, corpus, corpus_config, given, environment, base=base, fresh=fresh)


def check_unchanged(plan: RunPlan) -> None:
    """Raise RunLockedError where another run has trained in this folder since the plan was made. The folder is locked."""
    newest = plan.run.last_step()
    if newest is not None and newest > plan.newest_step:
        raise RunLockedError(
            f"{plan.run.folder}: another run trained here in the meantime; give the same command again"
        )


def _check_given(texts: Sequence[str], given: Mapping[str, Any], environment: Environment) -> Mapping[str, Any]:
    """Check what no single setting can check; make the path of --valid absolute."""
    minutes, valid = given.get("minutes"), given.get("valid")
    if minutes is not None and given.get("steps") is not None:
        raise UsageError("--minutes and --steps are two kinds of budget; give one of them")
    if minutes is not None and not 0.01 <= minutes <= 1e6:
        raise UsageError(f"--minutes must lie between 0.01 and 1e+06, not {minutes}")
    if valid is not None and "valid_fraction" in given:
        raise UsageError("--valid FILE and --valid-fraction are two ways to hold a text out; give one of them")
    if environment.ranks.size > 1 and STDIN in (*texts, valid):
        raise UsageError("several processes can't read one stdin; give the text as a file")
    if valid is not None and valid != STDIN:
        return {**given, "valid": os.path.abspath(valid)}
    return given


def _find_base(given: Mapping[str, Any], *, is_new: bool) -> tuple[Mapping[str, Any], ModelFile | None]:
    """Find the model of --init-from: what the user gave plus what the model implies, and the model for a new run."""
    rest = {name: value for name, value in given.items() if name != "init_from"}
    try:
        path = os.path.abspath(find_model(given["init_from"]))
    except ModelFileError:
        if is_new:
            raise
        return rest, None  # a run that resumes doesn't need it any more
    given = {**rest, "init_from": path}
    if not is_new:
        return given, None
    base = load_model(path)
    return start_from(base, given), base


def _read(texts: Sequence[str], config: CorpusConfig, given: Mapping[str, Any], environment: Environment) -> Corpus:
    with environment.ranks.local_rank_first("reading"), Cache.of_user().writable() as cache:
        return load_corpus(texts, config, overlay(SourceConfig(), given), cache)
