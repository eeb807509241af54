"""What a run keeps: the weights that are best on the held-out text, and its states.

Scores here choose, so they are selection scores. Files are written by the run's `Writer`.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from charrnn import sampling
from charrnn.checkpoint import ModelFile, load_model
from charrnn.errors import DivergenceError, ModelFileError
from charrnn.evaluation import evaluate
from charrnn.kernels.mixing import Mixture
from charrnn.metrics import EXPERTS, Evaluated, Evaluation, Event, Finished, Sample, Saved, Warned, bits
from charrnn.mixture import make
from charrnn.model import CharRNN
from charrnn.plans import RunPlan
from charrnn.state import TrainState
from charrnn.vocab import UNKNOWN
from charrnn.writer import State, Writer

SAMPLE_LENGTH = 200
MOST_WAITED = 5.0  # seconds, for a slow disk


def evaluate_and_keep(state: TrainState, plan: RunPlan, writer: Writer) -> Iterator[Event]:
    """Score the fixed part of the held-out text, keep the averaged weights if they are the best, draw a sample."""
    corpus = plan.corpus
    score = score_held_out(state.average, plan, num_scored=state.valid_chars)
    if not math.isfinite(score.nats):
        raise DivergenceError(f"training diverged by step {state.step}: the held-out loss is not finite")
    whole = state.valid_chars == len(corpus.valid_ids)
    best = state.best_nats is None or score.nats_per_char < state.best_nats
    facts = scores(score, step=state.step, whole=whole)
    model = ModelFile(plan.model, corpus.vocab, state.kept_arrays(), facts, plan.provenance(state.num_steps))
    state.evaluated_step, state.bad_evaluations = state.step, 0 if best else state.bad_evaluations + 1
    if best:
        state.best_nats, state.best_step = score.nats_per_char, state.step
        writer.put(model)
    yield Evaluated(state.step, score.nats_per_char, score.bits_per_char, score.num_chars, whole=whole, best=best)
    if plan.ranks.is_first:
        yield draw_sample(model, plan, step=state.step)
    if best:
        path = str(plan.run.model_path)
        slow = f"{path}: still not on the disk, which is slow; training goes on"
        if problem := writer.problem() if writer.wait(MOST_WAITED) else slow:
            yield Warned(state.step, problem)
        yield Saved(state.step, path=path)  # or will be: a state counts this, and must not depend on the disk


def score_held_out(
    model: CharRNN, plan: RunPlan, *, num_scored: int | None = None, mixture: Mixture | None = None
) -> Evaluation:
    """Score what chooses the weights, or stretches spread over it."""
    corpus = plan.corpus
    return evaluate(
        *(model, corpus.valid_ids),
        context=corpus.valid_context,
        num_scored=num_scored,
        rare=corpus.vocab.id_of(UNKNOWN),
        mixture=mixture,
        ranks=plan.ranks,
    )


def draw_sample(model: ModelFile, plan: RunPlan, *, step: int) -> Sample:
    """A short text from the weights of a step."""
    drawn = sampling.Sampler(model, threads=1).stream(length=SAMPLE_LENGTH, seed=plan.training.seed, stream=step)
    return Sample(step, text="".join(drawn))


def kept_model(plan: RunPlan) -> tuple[ModelFile, CharRNN]:
    """The best weights so far: the run's model file, and the network made from it.

    The first rank reads it, and tells the others the weights.
    """
    if plan.ranks.is_first:
        file = load_model(plan.run.model_path)
        network = CharRNN.from_arrays(file.config, file.tensors)
    else:
        file, network = ModelFile(plan.model, plan.corpus.vocab, {}, {}, {}), CharRNN(plan.model)
    plan.ranks.spread(parameter.detach() for parameter in network.parameters())
    return file, network.to(torch.device(plan.device))


def is_damaged(plan: RunPlan) -> bool:
    """Whether the run's model file is not there, or not whole, as the first rank sees it."""
    damaged = False
    if plan.ranks.is_first:
        try:
            load_model(plan.run.model_path)
        except ModelFileError:
            damaged = True
    return bool(plan.ranks.said(damaged))


def finish(state: TrainState, plan: RunPlan, writer: Writer) -> Finished:
    """Mix n-grams into the best weights' predictions, score them on all that was held out; have that put into the file.

    What is held out for the test is scored as well.
    """
    file, kept = kept_model(plan)
    corpus = plan.corpus
    file = replace(file, ngram=make(kept, plan.learnt))
    mixture = file.mixture
    score = score_held_out(kept, plan, mixture=mixture)
    final = scores(score, step=state.best_step, whole=True)
    if len(corpus.test_ids) > 0:
        before = corpus.ids[: -len(corpus.test_ids)]
        rare = corpus.vocab.id_of(UNKNOWN)
        score = evaluate(kept, corpus.test_ids, context=before, rare=rare, mixture=mixture, ranks=plan.ranks)
        final["test"] = {"nats_per_char": score.nats_per_char, "num_chars": score.num_chars}
    writer.put(replace(file, scores=final))
    state.finished = True
    state.num_events += 1  # this one, which is told when all is on the disk
    save_state(state, plan, writer)
    return finished(plan, state.step, final)


def finished_before(plan: RunPlan, step: int) -> Finished:
    """The same for a run that is over, from the scores in its model file."""
    path = plan.run.model_path
    if not path.exists():
        raise ModelFileError(f"{path}: gone, though the run is finished; put it back, or start over with --fresh")
    return finished(plan, step, load_model(path).scores)


def finished(plan: RunPlan, step: int, scores: dict[str, Any]) -> Finished:
    """The last event of a run that ended after `step`."""
    path = plan.run.model_path
    try:
        nats, test = scores["nats_per_char"], scores.get("test", {})
        rest = {"test_nats_per_char": test.get("nats_per_char"), "num_test_chars": test.get("num_chars", 0)}
        rest |= {f"{expert}_nats_per_char": scores.get(expert) for expert in EXPERTS}
        return Finished(step, str(path), scores["step"], nats, bits(nats), scores["num_chars"], **rest)
    except (KeyError, AttributeError):
        raise ModelFileError(f"{path}: lacks the scores of a finished run; --fresh starts over") from None


def scores(score: Evaluation, *, step: int, whole: bool) -> dict[str, Any]:
    """A model file's record of its score, by which its weights were chosen: a selection score."""
    alone = zip(EXPERTS, score.experts or (), strict=False)
    return {
        "step": step,
        "nats_per_char": score.nats_per_char,
        "num_chars": score.num_chars,
        "whole": whole,
        "selection": True,
        **{expert: nats / score.num_chars for expert, nats in alone},
    }


def until_saved(state: TrainState, plan: RunPlan, writer: Writer) -> Iterator[Event]:
    """Wait for the disk, saying so where that takes long. Raises CharrnnError where something can't be written."""
    if not writer.wait(MOST_WAITED):
        yield Warned(state.step, f"waiting for the disk that {plan.run.folder} is on")
    writer.finish()


def save_state(state: TrainState, plan: RunPlan, writer: Writer) -> None:
    """Have all that an exact resume needs written."""
    left = plan.seconds if state.num_steps is None else None  # of the budget, to be turned into steps
    writer.put(State(state.step, state.to_arrays(), {**state.standing(), **plan.settled, "seconds": left}))
