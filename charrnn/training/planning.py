"""Planning a new run: the settings that the user gave, the recipe for the others, and what contradicts what.

`given` holds the settings that the user named, by field.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from charrnn.config import CorpusConfig, TrainConfig, flag, overlay
from charrnn.data.corpus import Corpus
from charrnn.data.novelty import unlike_rest
from charrnn.distributed import Ranks
from charrnn.errors import UsageError
from charrnn.model.file import ModelFile
from charrnn.runs.folder import Run
from charrnn.text.characters import END, LABEL_END, UNKNOWN, describe, first_of
from charrnn.training.plan import Budget, Environment, RunPlan, Task, text_to_train_on
from charrnn.training.recipe import default_budget, recommend

_NEW_CHARS_SHOWN = 20


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
    num_train = len(text_to_train_on(corpus, given.get("mix", TrainConfig.mix)))
    notes = [*corpus.notes, *unlike_rest(corpus)]
    given, more_notes = fit_batch_size(given, num_train)
    notes += more_notes
    if fresh and (step := run.last_step()) is not None:
        done = "1 step" if step == 1 else f"{step:,} steps"
        notes.append(f"starting over: discarding the {done} of run {run.name!r}")
    choice = recommend(
        num_train,
        len(corpus.vocab),
        given,
        device=environment.device,
        threads=environment.threads * environment.ranks.size,
        precision=environment.precision,
        documents=corpus_config.has_documents,
    )
    training, minutes = overlay(choice.training, given), given.get("minutes")
    if minutes is None and training.steps is None:
        minutes, steps = default_budget(num_train, training.batch_size * training.seq_len)
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
    count = "1 character is" if len(new) == 1 else f"{len(new)} characters are"
    return [f"{count} new to the model: {first_of(list(map(describe, new)), _NEW_CHARS_SHOWN)}"]
