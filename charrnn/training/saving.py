"""Evaluating and saving: the weights that score best on the held-out text, and the states a run resumes from.

The scores here choose the weights, so they are selection scores.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from charrnn.config import SampleConfig
from charrnn.data.corpus import Corpus
from charrnn.distributed import Ranks
from charrnn.errors import DivergenceError, ModelFileError
from charrnn.evaluation.scores import EXPERTS, Evaluation
from charrnn.evaluation.scoring import evaluate
from charrnn.events import Evaluated, Event, Finished, Sample, Saved, Warned, bits
from charrnn.kernels.ngrams import Mixture
from charrnn.model.file import ModelFile, load_model
from charrnn.model.network import CharRNN
from charrnn.model.windows import Reader
from charrnn.runs.folder import Run
from charrnn.runs.writer import StateSnapshot, Writer
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import UNKNOWN, valid_unicode
from charrnn.training.mixture import fit_mixture
from charrnn.training.plan import RunPlan
from charrnn.training.recipe import counted_part, final_part
from charrnn.training.state import TrainState

MAX_WAIT = 5.0  # seconds, for a slow disk
SAMPLE_LENGTH = 200


def evaluate_and_save(state: TrainState, plan: RunPlan, writer: Writer) -> Iterator[Event]:
    """Score part of the held-out text, save the averaged weights if they are the best so far, and draw a sample."""
    corpus, ranks = plan.task.corpus, plan.environment.ranks
    network = state.ema.reader(plan.environment.threads)
    score = score_held_out(network, corpus, ranks, num_scored=state.valid_chars)
    if not math.isfinite(score.nats):
        raise DivergenceError(f"training diverged by step {state.step}: the held-out loss is not finite")
    whole = state.valid_chars == len(corpus.valid_ids)
    best = state.best_nats is None or score.nats_per_char < state.best_nats
    record = score_record(score, step=state.step, whole=whole)
    model = ModelFile(
        plan.task.model,
        corpus.vocab,
        state.ema_arrays(),
        record,
        plan.provenance(state.num_steps),
        known_documents=plan.task.known_documents,
    )
    state.evaluated_step = state.step
    if best:
        state.best_nats, state.best_step, state.bad_evaluations = score.nats_per_char, state.step, 0
        writer.put(model)
    else:
        state.bad_evaluations += 1
    figures = score.nats_per_char, score.bits_per_char, score.num_chars
    yield Evaluated(state.step, *figures, whole=whole, best=best, unit=corpus.vocab.unit)
    if ranks.is_first:
        yield draw_sample(model, seed=plan.task.training.seed, step=state.step)
    if best:
        path = str(plan.run.model_path)
        if not writer.wait(MAX_WAIT):
            yield Warned(state.step, f"{path}: the disk is slow and has not written it yet; training continues")
        elif problem := writer.problem():
            yield Warned(state.step, problem)
        yield Saved(state.step, path=path)  # even if not written yet: events must not depend on the disk


def score_held_out(
    network: Reader, corpus: Corpus, ranks: Ranks, *, num_scored: int | None, mixture: Mixture | None = None
) -> Evaluation:
    """Score the held-out text that chooses the weights, or num_scored characters of it in stretches spread over it."""
    return evaluate(
        network,
        corpus.valid_ids,
        context=corpus.valid_context,
        num_scored=num_scored,
        rare_id=corpus.vocab.id_of(UNKNOWN),
        mixture=mixture,
        ranks=ranks,
    )


def draw_sample(model: ModelFile, *, seed: int, step: int) -> Sample:
    """Draw a short text from a step's weights."""
    config = SampleConfig(length=SAMPLE_LENGTH, seed=seed)
    stream = Sampler(model, threads=1).stream(config, number=step)
    label = "" if stream.opening.label is None else f"{stream.opening.label}: "
    return Sample(step, text=label + valid_unicode("".join(stream)))


def load_best_model(plan: RunPlan) -> tuple[ModelFile, Reader]:
    """Load the run's model file, which has the best weights so far, and its network, which reads text.

    The first rank reads the file and broadcasts the weights; the other ranks' ModelFile is empty.
    """
    task, ranks = plan.task, plan.environment.ranks
    if ranks.is_first:
        file = load_model(plan.run.model_path)
        network = CharRNN.from_arrays(file.config, file.tensors)
    else:
        file, network = ModelFile(task.model, task.corpus.vocab, {}, {}, {}), CharRNN(task.model)
    ranks.broadcast(parameter.detach() for parameter in network.parameters())
    return file, network.to(torch.device(plan.environment.device)).reader(plan.environment.threads)


def is_model_damaged(plan: RunPlan) -> bool:
    """Return whether the run's model file is missing or damaged, as seen by the first rank."""
    damaged = False
    if plan.environment.ranks.is_first:
        try:
            load_model(plan.run.model_path)
        except ModelFileError:
            damaged = True
    return bool(plan.environment.ranks.broadcast_number(damaged))


def finish_run(state: TrainState, plan: RunPlan, writer: Writer) -> Iterator[Event]:
    """Fit the n-gram mixture, score the best model on the held-out text and the test text, and save it.

    With a time budget, long texts are scored in part. n-grams that make the held-out score worse are left out: the
    end of a text can be unlike the rest.
    """
    corpus, ranks = plan.task.corpus, plan.environment.ranks
    file, network = load_best_model(plan)
    ngram = {}
    if plan.task.mixes_ngrams:
        num_counted = counted_part(corpus.num_train, plan.task.training, state.span or 0)
        ngram = fit_mixture(network, plan.task.train_text, num_counted=num_counted)
    file = replace(file, ngram=ngram)
    num_valid = num_test = None
    if plan.budget.minutes is not None and state.span is not None:
        config, num_texts = plan.task.training, 2 if len(corpus.test_ids) else 1
        num_valid = final_part(len(corpus.valid_ids), config, state.span, num_texts=num_texts)
        num_test = final_part(len(corpus.test_ids), config, state.span, num_texts=num_texts)
    score = score_held_out(network, corpus, ranks, num_scored=num_valid, mixture=file.mixture)
    if score.experts and score.nats > score.experts[0]:
        mixed = score.nats_per_char
        file, score = replace(file, ngram={}), score_held_out(network, corpus, ranks, num_scored=num_valid)
        yield Warned(
            state.step,
            f"n-grams left out: they raise the held-out loss from {score.nats_per_char:.4f} to {mixed:.4f} nats",
        )
    record = score_record(score, step=state.best_step, whole=num_valid is None)
    if len(corpus.test_ids) > 0:
        score = evaluate(
            network,
            corpus.test_ids,
            context=corpus.ids[: -len(corpus.test_ids)],
            num_scored=num_test,
            rare_id=corpus.vocab.id_of(UNKNOWN),
            mixture=file.mixture,
            ranks=ranks,
        )
        record["test"] = {"nats_per_char": score.nats_per_char, "num_chars": score.num_chars}
    writer.put(replace(file, scores=record))
    state.finished = True
    state.num_events += 1  # the finished event, which is yielded when all is on the disk
    save_state(state, plan, writer)
    yield from wait_until_saved(plan.run, writer, state.step)
    yield finished_event(plan.run, state.step, record, corpus.vocab.unit)


def read_finished_event(run: Run, step: int) -> Finished:
    """Make the last event of a run that has finished after `step` from its model file. Raises ModelFileError."""
    path = run.model_path
    if not path.exists():
        raise ModelFileError(f"{path}: missing, but the run is finished; restore it, or start over with --fresh")
    model = load_model(path)
    return finished_event(run, step, model.scores, model.vocab.unit)


def finished_event(run: Run, step: int, record: dict[str, Any], unit: str) -> Finished:
    """Make the last event of a run that ended after `step` from its model's score record."""
    path = run.model_path
    try:
        nats, test = record["nats_per_char"], record.get("test", {})
        rest = {"test_nats_per_char": test.get("nats_per_char"), "num_test_chars": test.get("num_chars", 0)}
        rest |= {f"{expert}_nats_per_char": record.get(expert) for expert in EXPERTS}
        return Finished(step, str(path), record["step"], nats, bits(nats), record["num_chars"], **rest, unit=unit)
    except (KeyError, AttributeError):
        raise ModelFileError(f"{path}: has no scores of a finished run; --fresh starts over") from None


def score_record(score: Evaluation, *, step: int, whole: bool) -> dict[str, Any]:
    """Describe, for a model file, the score that chose its weights: a selection score."""
    experts = dict(zip(EXPERTS, score.experts, strict=True)) if score.experts else {}
    return {
        "step": step,
        "nats_per_char": score.nats_per_char,
        "num_chars": score.num_chars,
        "whole": whole,
        "selection": True,
        **{expert: nats / score.num_chars for expert, nats in experts.items()},
    }


def wait_until_saved(run: Run, writer: Writer, step: int) -> Iterator[Event]:
    """Wait for the disk, with a warning if that takes long. Raises CharrnnError if something can't be written."""
    if not writer.wait(MAX_WAIT):
        yield Warned(step, f"waiting for the disk that {run.folder} is on")
    writer.finish()


def save_state(state: TrainState, plan: RunPlan, writer: Writer) -> None:
    """Give the writer everything that an exact resume needs."""
    seconds = plan.budget.seconds if state.num_steps is None else None  # the budget that is not turned into steps yet
    meta = {**state.scalars(), **plan.state_facts, "seconds": seconds}
    writer.put(StateSnapshot(state.step, state.to_arrays(), meta))
