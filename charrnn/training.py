"""Training: truncated backpropagation through time over lanes, as a generator of facts.

`train` is the one loop. It yields events and writes the run's files; others draw and log.
What is scored and kept is the average of the weights (state.py), which at any moment is
about as good as if the rate had decayed by then, so a run may end early too.

Letters: G lanes, T steps in a window, P parameters, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from charrnn import sampling
from charrnn.batches import read_window
from charrnn.budget import Pace, evaluation_is_due, valid_part
from charrnn.checkpoint import ModelFile, load_model, save_model
from charrnn.config import Precision, TrainConfig
from charrnn.corpus import Corpus
from charrnn.errors import DivergenceError, Interrupted, ModelFileError
from charrnn.evaluation import evaluate
from charrnn.kernels.counters import dropout_mask, weight_mask
from charrnn.lanes import Workers, recurrent_weights
from charrnn.metrics import Evaluated, Evaluation, Event, Finished, Progress, Sample, Saved, Stopped, bits
from charrnn.model import CharRNN
from charrnn.plans import RunPlan
from charrnn.runs import StopRequest
from charrnn.state import TrainState
from charrnn.vocab import UNKNOWN

WARM_UP_STEPS = 200  # or a quarter of a short run: a high rate ruins a network that begins with it
FINAL_RATE = 0.02  # of the peak
NUM_PROGRESS = 500  # progress events in a run
SAMPLE_LENGTH = 200
_ADVICE = "start over with --fresh and half the --learning-rate"


def learning_rate(step: int, *, peak: float, num_steps: int | None, start: int = 0) -> float:
    """The rate of update number `step` (from 0): linear warm-up, then a cosine to 2 % of the peak.

    num_steps None: the end isn't known yet, which it is long before the decay would show.
    start: where the schedule began, for a run that was extended.
    """
    span = num_steps - start if num_steps else None
    warm_up = min(WARM_UP_STEPS, max(1, span // 4)) if span else WARM_UP_STEPS
    rate = peak * min(1.0, (step - start + 1) / warm_up)
    if not span:
        return rate
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / span)))
    return rate * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


def train(plan: RunPlan, *, stop: StopRequest | None = None) -> Iterator[Event]:
    """Train to the end of the plan's budget, yielding what happens.

    Raises Interrupted, after saving, once `stop` is set; DivergenceError when the gradient
    is not finite: the files then hold the last good state and the best model.
    """
    state = starting_state(plan, torch.device(plan.device))
    save_state(state, plan)
    compile_kernels(plan)  # outside the budget
    precision = cast(Precision, plan.precision)
    with Workers(state.model, num_workers=plan.num_workers, precision=precision) as workers:
        yield from train_steps(state, plan, workers, stop)
    if not is_at_end(state):
        yield Stopped(state.step, best_step=state.best_step)
    if state.best_nats is None:  # nothing was kept, or it is gone
        yield from evaluate_and_keep(state, plan)
    yield finish(state, plan)


def train_steps(state: TrainState, plan: RunPlan, workers: Workers, stop: StopRequest | None) -> Iterator[Event]:
    """The loop."""
    config, ids, device = plan.training, plan.corpus.train_ids, torch.device(plan.device)
    pace = Pace()
    while not (is_at_end(state) or is_hopeless(state, config)):
        # read the next window of every lane; a new pass starts from no state
        pace.begin_step()
        window = read_window(ids, state.cursor, batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed)
        if window.starts_pass:
            state.hidden = state.model.initial_state(config.batch_size)

        # forward and backward
        x, targets = (torch.from_numpy(array).to(device) for array in (window.x, window.targets))
        masks = dropout_masks(state, config, device), weight_masks(state, config, device)
        result = workers.window_gradient(x, targets, state.hidden, *masks)

        # clip the mean's gradient and update
        rate = learning_rate(
            state.step, peak=config.learning_rate, num_steps=state.num_steps, start=state.schedule_start
        )
        apply_gradient(state, result.gradient, window.num_targets, rate=rate, grad_clip=config.grad_clip)
        state.hidden, state.cursor = result.state, window.after
        state.step += 1
        state.follow(rate / config.learning_rate)
        state.recent_nats += result.nats
        state.recent_chars += window.num_targets

        # the first steps measure the speed, which fixes the number of steps
        pace.end_step(window.num_targets)
        if state.num_steps is None and plan.seconds is not None and pace.is_known(plan.seconds):
            left = pace.steps_left(plan.seconds, num_valid=len(plan.corpus.valid_ids))
            fix_num_steps(state, plan, state.step + left)

        # tell, evaluate, save
        if is_due(state, NUM_PROGRESS):
            yield progress(state, pace, rate)
        if evaluation_is_due(state.since_start(state.step), state.since_start(state.evaluated_step), state.span):
            yield from evaluate_and_keep(state, plan)
            save_state(state, plan)
        elif pace.state_is_due():
            save_state(state, plan)
        if stop and stop.signal_number:
            save_state(state, plan)
            message = f"stopped after step {state.step}; the same command goes on from there"
            raise Interrupted(message, signal_number=stop.signal_number)


def compile_kernels(plan: RunPlan) -> None:
    """Compile what the run needs, by training, scoring and sampling toy networks; quick where that was done before."""
    config = replace(plan.model, vocab_size=2, embedding_dim=1, hidden_size=2, num_layers=2, reset_id=None)
    model = CharRNN(config).to(torch.device(plan.device))
    x = torch.zeros(2, 1, dtype=torch.int64, device=plan.device)
    with Workers(model, num_workers=1, precision=cast(Precision, plan.precision)) as workers:
        workers.window_gradient(x, x, model.initial_state(1), None)
    evaluate(model, np.zeros(2, np.uint8), context=np.zeros(1, np.uint8))
    sampling.compile_kernels()


def starting_state(plan: RunPlan, device: torch.device) -> TrainState:
    """The state before the plan's first step: a fresh one, or where the run stood."""
    state = TrainState.fresh(plan.model, plan.training, device)
    if plan.resume:
        state.restore(plan.resume)
        if not plan.extends:  # what was logged after the state happens again
            plan.run.rewind_log(plan.resume.meta["num_events"])
    if plan.extends:  # a longer run scores more on its way, which the best so far is measured by too
        state.schedule_start, state.num_steps, state.finished = state.step, None, False
        state.valid_chars, state.best_nats = 0, None
        state.evaluated_step, state.bad_evaluations = state.step, 0
    if not plan.run.model_path.exists():  # somebody moved it: better a later best than none
        state.best_nats, state.best_step = None, 0
    if state.num_steps is None and plan.seconds is None:
        assert plan.training.steps is not None
        fix_num_steps(state, plan, plan.training.steps)
    return state


def fix_num_steps(state: TrainState, plan: RunPlan, num_steps: int) -> None:
    """Settle where the run ends and, once for all, how many held-out characters it scores on the way."""
    state.num_steps = num_steps
    corpus = plan.corpus
    if state.valid_chars == 0:
        state.valid_chars = valid_part(len(corpus.valid_ids), plan.training, num_steps - state.schedule_start)
    if state.best_nats is None and state.best_step > 0:
        _, kept = kept_model(plan)
        score = score_held_out(kept, corpus, num_scored=state.valid_chars)
        state.best_nats = score.nats_per_char


def dropout_masks(state: TrainState, config: TrainConfig, device: torch.device) -> list[Tensor] | None:
    """One mask a layer for the window at hand, (G, H) each; None without dropout."""
    if config.dropout == 0.0:
        return None
    sizes = state.model.config
    return [
        torch.from_numpy(
            dropout_mask(
                config.dropout,
                seed=config.seed,
                step=state.step,
                layer=layer,
                lanes=range(config.batch_size),
                hidden_size=sizes.hidden_size,
            )
        ).to(device)
        for layer in range(sizes.num_layers)
    ]


def weight_masks(state: TrainState, config: TrainConfig, device: torch.device) -> list[Tensor] | None:
    """One mask for each layer's recurrent weight in the window at hand; None where none is dropped."""
    if config.weight_drop == 0.0:
        return None
    return [
        torch.from_numpy(
            weight_mask(config.weight_drop, seed=config.seed, step=state.step, layer=layer, shape=weight.shape)
        ).to(device)
        for layer, weight in enumerate(recurrent_weights(state.model))
    ]


def apply_gradient(state: TrainState, gradient: Tensor, num_targets: int, *, rate: float, grad_clip: float) -> None:
    """Turn the gradient (P,) of a sum into the mean's, clip its norm and let AdamW take a step.

    Raises DivergenceError, with nothing changed, where the norm is not finite.
    """
    norm = float(gradient.norm()) / num_targets
    if not math.isfinite(norm):
        raise DivergenceError(f"training diverged at step {state.step}: the gradient is not finite; {_ADVICE}")
    gradient *= min(1.0, grad_clip / (norm + 1e-12)) / num_targets
    start = 0
    for parameter in state.model.parameters():
        parameter.grad = gradient[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()


def is_due(state: TrainState, times: int) -> bool:
    """Whether something that happens `times` times in a run, the last at its end, happens now."""
    if state.span is None:
        return True
    done = state.since_start(state.step)
    return done * times // state.span > (done - 1) * times // state.span


def is_at_end(state: TrainState) -> bool:
    """Whether all steps are done."""
    return state.num_steps is not None and state.step >= state.num_steps


def is_hopeless(state: TrainState, config: TrainConfig) -> bool:
    """Whether the last evaluations have all been worse than the best.

    Not so in the first two passes: what a network hasn't seen yet it can't have learnt by heart.
    """
    return 0 < config.patience <= state.bad_evaluations and state.cursor.pass_index >= 2


def progress(state: TrainState, pace: Pace, rate: float) -> Progress:
    """The training loss since the last such event, which is then forgotten."""
    event = Progress(
        step=state.step,
        num_steps=state.num_steps,
        nats_per_char=state.recent_nats / state.recent_chars,
        learning_rate=rate,
        chars_per_second=pace.chars_per_second(),
        seconds_left=None if state.num_steps is None else pace.seconds_left(state.num_steps - state.step),
    )
    state.recent_nats, state.recent_chars = 0.0, 0
    return event


def evaluate_and_keep(state: TrainState, plan: RunPlan) -> Iterator[Event]:
    """Score the fixed part of the held-out text, keep the averaged weights if they are the best, draw a sample."""
    corpus = plan.corpus
    score = score_held_out(state.average, corpus, num_scored=state.valid_chars)
    if not math.isfinite(score.nats):
        raise DivergenceError(f"training diverged by step {state.step}: the held-out loss is not finite; {_ADVICE}")
    whole = state.valid_chars == len(corpus.valid_ids)
    best = state.best_nats is None or score.nats_per_char < state.best_nats
    model = describe_model(state, plan, scores(score, step=state.step, whole=whole))
    state.evaluated_step, state.bad_evaluations = state.step, 0 if best else state.bad_evaluations + 1
    if best:
        state.best_nats, state.best_step = score.nats_per_char, state.step
        save_model(plan.run.model_path, model)
    yield Evaluated(state.step, score.nats_per_char, score.bits_per_char, score.num_chars, whole=whole, best=best)
    yield draw_sample(model, plan, step=state.step)
    if best:
        yield Saved(state.step, path=str(plan.run.model_path))


def score_held_out(model: CharRNN, corpus: Corpus, *, num_scored: int | None = None) -> Evaluation:
    """Score what chooses the weights, or stretches spread over it."""
    context, rare = corpus.valid_context, corpus.vocab.id_of(UNKNOWN)
    return evaluate(model, corpus.valid_ids, context=context, num_scored=num_scored, rare=rare)


def draw_sample(model: ModelFile, plan: RunPlan, *, step: int) -> Sample:
    """A short text from the weights of a step."""
    drawn = sampling.Sampler(model, threads=1).stream(length=SAMPLE_LENGTH, seed=plan.training.seed, stream=step)
    return Sample(step, text="".join(drawn))


def kept_model(plan: RunPlan) -> tuple[ModelFile, CharRNN]:
    """The best weights so far: the run's model file, and the network made from it."""
    file = load_model(plan.run.model_path)
    return file, CharRNN.from_arrays(file.config, file.tensors).to(torch.device(plan.device))


def finish(state: TrainState, plan: RunPlan) -> Finished:
    """Score the best weights on the whole held-out text, and on the test text; write that into the model file."""
    file, kept = kept_model(plan)
    corpus = plan.corpus
    score = score_held_out(kept, corpus)
    final = scores(score, step=state.best_step, whole=True)
    if len(corpus.test_ids) > 0:
        before = corpus.ids[: -len(corpus.test_ids)]
        score = evaluate(kept, corpus.test_ids, context=before, rare=corpus.vocab.id_of(UNKNOWN))
        final["test"] = {"nats_per_char": score.nats_per_char, "num_chars": score.num_chars}
    save_model(plan.run.model_path, replace(file, scores=final))
    state.finished = True
    save_state(state, plan)
    return finished(plan, state.step)


def finished(plan: RunPlan, step: int) -> Finished:
    """The last event of a run that ended after `step`, from the scores in its model file."""
    path = plan.run.model_path
    if not path.exists():
        raise ModelFileError(f"{path}: gone, though the run is finished; put it back, or start over with --fresh")
    scores = load_model(path).scores
    nats = scores["nats_per_char"]
    test = scores.get("test", {})
    return Finished(
        step,
        str(path),
        scores["step"],
        nats,
        bits(nats),
        scores["num_chars"],
        test_nats_per_char=test.get("nats_per_char"),
        num_test_chars=test.get("num_chars", 0),
    )


def describe_model(state: TrainState, plan: RunPlan, scores: dict[str, Any]) -> ModelFile:
    """The averaged weights of the moment as a model file."""
    corpus = plan.corpus
    text = {"paths": list(corpus.names), "sha256": corpus.sha256, "key": corpus.key}
    parts = {"num_train": corpus.num_train, "num_valid": corpus.num_valid, "num_test": len(corpus.test_ids)}
    split = {**parts, **asdict(plan.corpus_config)}
    training = {**asdict(plan.training), "steps": state.num_steps, "minutes": plan.minutes}
    provenance = {"text": text, "split": split, "training": training}
    return ModelFile(plan.model, corpus.vocab, state.average.to_arrays(), scores, provenance)


def scores(score: Evaluation, *, step: int, whole: bool) -> dict[str, Any]:
    """A model file's record of its score, by which its weights were chosen: a selection score."""
    return {
        "step": step,
        "nats_per_char": score.nats_per_char,
        "num_chars": score.num_chars,
        "whole": whole,
        "selection": True,
    }


def save_state(state: TrainState, plan: RunPlan) -> None:
    """Write all that an exact resume needs."""
    arrays, meta = state.to_arrays()
    settled = {
        "minutes": plan.minutes,
        "seconds": plan.seconds,
        "model": asdict(plan.model),
        "training": asdict(plan.training),
        "corpus": asdict(plan.corpus_config),
        "text": {"sha256": plan.corpus.sha256, "vocab": plan.corpus.vocab.fingerprint},
        "place": plan.place,
    }
    plan.run.save_state(state.step, arrays, {**meta, **settled})
