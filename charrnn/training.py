"""Training: truncated backpropagation through time over lanes, as a generator of facts.

`train` is the one loop. It yields events and writes the run's files; others draw and log.
What is scored and kept is the average of the weights (state.py), which at any moment is
about as good as if the rate had decayed by then, so a run may end early too.

Letters: G lanes, T steps in a window, P parameters, V vocabulary.
"""

import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from charrnn import precompilation
from charrnn.batches import EVERY_LANE, Step, next_step
from charrnn.budget import Pace, evaluation_is_due, valid_part
from charrnn.config import Precision, TrainConfig
from charrnn.distributed import Ranks
from charrnn.errors import CharrnnError, DivergenceError, Interrupted
from charrnn.feed import Feed, to_device
from charrnn.keeping import (
    evaluate_and_keep,
    finish,
    is_damaged,
    kept_model,
    save_state,
    score_held_out,
    until_saved,
)
from charrnn.kernels.counters import dropout_mask, weight_mask
from charrnn.lanes import WindowResult, Workers, recurrent_weights
from charrnn.metrics import Event, Finished, Progress, Resumed, Stopped, Warned
from charrnn.ngram import MOST_COUNTED
from charrnn.plans import RunPlan
from charrnn.runs import OF_A_SITTING, StopRequest
from charrnn.standing import MAX_ROLLBACKS
from charrnn.state import TrainState
from charrnn.writer import Writer

WARM_UP_STEPS = 200  # or a quarter of a short run: a high rate ruins a network that begins with it
FINAL_RATE = 0.02  # of the peak
NUM_PROGRESS = 500  # progress events in a run
HEARD_EVERY = 32  # steps of a GPU


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

    Raises Interrupted, after saving, once `stop` is set; DivergenceError where numbers are not
    finite, in whatever was tried; CharrnnError where nothing can be saved. The files always
    hold the last good state and the best model. The ranks of a run do this together; what the
    first one yields is what counts.
    """
    stop = stop or StopRequest()
    state = starting_state(plan, torch.device(plan.device))
    precision = cast(Precision, plan.precision)
    precompilation.for_training(plan.precision, plan.device)  # outside the budget
    with (
        Writer(plan.run, idle=not plan.ranks.is_first) as writer,
        Workers(state.model, num_workers=plan.num_workers, precision=precision) as workers,
    ):
        for event in opening(plan):
            yield counted(event, state)
        save_state(state, plan, writer)
        yield from until_saved(state, plan, writer)  # nobody should train for an hour, and then find a full disk
        pace = Pace(stop.clock, save_every=plan.save_every)
        while True:
            try:
                for event in train_to_the_end(state, plan, workers, writer, pace, stop):
                    yield counted(event, state)
                return
            except DivergenceError as error:
                yield roll_back(state, plan, writer, error)


def counted(event: Event, state: TrainState) -> Event:
    """The event, which the state has counted if a run that was never interrupted would have it too."""
    state.num_events += event.event not in (*OF_A_SITTING, Finished.event)
    return event


def opening(plan: RunPlan) -> Iterator[Event]:
    """What is told before the first step."""
    if plan.resume is None:
        yield plan.fact()
        return
    step = plan.resume.meta["step"]
    for damage in plan.resume.damaged:
        yield Warned(step, f"{damage}; going on from the state before it")
    yield Resumed(step, plan.notes[0])
    for note in plan.notes[1:]:
        yield Warned(step, note)


def train_to_the_end(
    state: TrainState, plan: RunPlan, workers: Workers, writer: Writer, pace: Pace, stop: StopRequest
) -> Iterator[Event]:
    """All steps that are left, and the last score."""
    yield from train_steps(state, plan, workers, writer, pace, stop)
    if not is_at_end(state):
        yield Stopped(state.step, best_step=state.best_step)
    yield from until_saved(state, plan, writer)
    if state.best_nats is None or is_damaged(plan):  # nothing was kept, or it is gone
        state.best_nats = None
        yield from evaluate_and_keep(state, plan, writer)
        yield from until_saved(state, plan, writer)
    last = finish(state, plan, writer)
    yield from until_saved(state, plan, writer)
    yield last


def train_steps(
    state: TrainState, plan: RunPlan, workers: Workers, writer: Writer, pace: Pace, stop: StopRequest
) -> Iterator[Event]:
    """The loop."""
    config, device = plan.training, torch.device(plan.device)
    feed, words = Feed(plan.learnt, device), list[Tensor]()
    while not (is_at_end(state) or is_hopeless(state, config)):
        # read the next window of every lane; a new pass starts from no state
        pace.begin_step()
        step = step_of(state, plan)
        if step.starts_pass:
            state.hidden = state.model.initial_state(len(step.starts))

        # forward and backward
        masks = dropout_masks(state, config, device, plan.lanes), weight_masks(state, config, device)
        result = workers.window_gradient(*feed.window(step), state.hidden, *masks)
        asked = stop.signal_number is not None, plan.ranks.is_first and pace.state_is_due()
        result, word = add_up(plan.ranks, result, asked)
        words.append(word)

        # clip the mean's gradient and update
        share = learning_rate(state.step, peak=1.0, num_steps=state.num_steps, start=state.schedule_start)
        rate = share * state.rate_factor * config.learning_rate
        apply_gradient(state, result, step.num_targets, rate=rate, grad_clip=config.grad_clip)
        state.hidden, state.cursor = result.state, step.after
        state.step += 1
        state.follow(share)
        state.recent_chars += step.num_targets
        stopping, saving = hear(state, words) if is_heard(state, device) else (False, False)

        # the first steps measure the speed, which fixes the number of steps
        pace.end_step(step.num_targets)
        if state.num_steps is None and (left := steps_left(plan, pace)):
            fix_num_steps(state, plan, state.step + left)

        # tell, evaluate, save
        if is_due(state, NUM_PROGRESS):
            yield progress(state, pace, rate)
        if evaluation_is_due(state.since_start(state.step), state.since_start(state.evaluated_step), state.span):
            yield from evaluate_and_keep(state, plan, writer)
        if saving or state.step == state.best_step:
            save_state(state, plan, writer)
            pace.state_was_saved()
        if problem := writer.problem():
            yield Warned(state.step, problem)
        if stopping:
            save_state(state, plan, writer)
            yield from until_saved(state, plan, writer)
            message = f"stopped after step {state.step}; the same command goes on from there"
            raise Interrupted(message, signal_number=stop.signal_number or signal.SIGTERM)


def step_of(state: TrainState, plan: RunPlan) -> Step:
    """What is read at the cursor, of this rank's lanes."""
    config = plan.training
    sizes = {"batch_size": config.batch_size, "seq_len": config.seq_len}
    return next_step(len(plan.learnt), state.cursor, **sizes, seed=config.seed, lanes=plan.lanes)


def add_up(ranks: Ranks, result: WindowResult, asked: Sequence[bool]) -> tuple[WindowResult, Tensor]:
    """The nats and the gradient of all ranks' lanes; and these nats beside how many ranks ask for each thing.

    What any of them asks for all then do; and all find the same numbers, so none alone takes
    a step for diverged.
    """
    asking = torch.tensor(asked, dtype=torch.float64).to(result.nats.device)
    word = torch.cat([result.nats.view(1), asking])
    if ranks.size > 1:
        word = word.to(result.gradient.dtype)
        ranks.add(result.gradient, word)
    return replace(result, nats=word[0]), word


def is_heard(state: TrainState, device: torch.device) -> bool:
    """Whether the step that was just done is waited for: each one on a CPU, some on a GPU, which works ahead."""
    evaluated = evaluation_is_due(state.since_start(state.step), state.since_start(state.evaluated_step), state.span)
    return device.type == "cpu" or state.step % HEARD_EVERY == 0 or evaluated or is_due(state, NUM_PROGRESS)


def hear(state: TrainState, words: list[Tensor]) -> list[bool]:
    """Take note of the steps' nats, and forget the words; whether anything was asked for in them.

    Raises DivergenceError where a loss is not finite.
    """
    steps = torch.stack(words).tolist()
    words.clear()
    for nats, *_ in steps:
        if not math.isfinite(nats):
            raise DivergenceError(f"training diverged by step {state.step}: the loss is not finite")
        state.recent_nats += nats
    return [any(asking) for asking in list(zip(*steps, strict=True))[1:]]


def steps_left(plan: RunPlan, pace: Pace) -> int:
    """The steps that still fit, as the first rank's clock says; 0 while that isn't known, or time is no matter."""
    if plan.seconds is None:
        return 0
    left = 0
    if pace.is_known(plan.seconds):
        num_counted = min(plan.corpus.num_train, MOST_COUNTED) if len(plan.learnt.starts) else 0
        left = pace.steps_left(plan.seconds, num_valid=len(plan.corpus.valid_ids), num_counted=num_counted)
    return plan.ranks.said(left)


def starting_state(plan: RunPlan, device: torch.device) -> TrainState:
    """The state before the plan's first step: a fresh one, or where the run stood."""
    state = TrainState.fresh(plan.model, plan.training, device, plan.ranks)
    if plan.base:
        state.begin_from(plan.base, plan.corpus.vocab)
    if plan.resume:
        state.restore(plan.resume)
    if not plan.extends:  # what was logged after the state happens again
        rewind_log(plan, state)
    else:  # a longer run scores more on its way, which the best so far is measured by too
        state.schedule_start, state.num_steps, state.finished = state.step, None, False
        state.valid_chars, state.best_nats, state.num_rollbacks = 0, None, 0
        state.evaluated_step, state.bad_evaluations = state.step, 0
    if is_damaged(plan):  # or somebody moved it: better a later best than none
        state.best_nats, state.best_step = None, 0
    if state.num_steps is None and plan.seconds is None:
        assert plan.training.steps is not None
        fix_num_steps(state, plan, plan.training.steps)
    return state


def roll_back(state: TrainState, plan: RunPlan, writer: Writer, error: DivergenceError) -> Warned:
    """Go back to the last state that was saved, from where the learning rate is half of what it was.

    Raises the error where that was tried often enough.
    """
    writer.wait()
    plan.ranks.said(0)  # no rank looks before the first one has written
    saved = plan.run.newest_state()
    assert saved is not None  # one is written before the first step
    if plan.ranks.said(saved.meta["step"]) != saved.meta["step"]:
        raise CharrnnError(f"{plan.run.folder} is not what rank 0 sees; all processes need the same checkpoints folder")
    num_rollbacks, rate_factor = state.num_rollbacks + 1, 0.5 * state.rate_factor
    if num_rollbacks > MAX_ROLLBACKS:
        advice = "start over with --fresh and a lower --learning-rate, or a lower --grad-clip"
        raise DivergenceError(f"{error}, at a fraction of the learning rate too; {advice}") from None
    state.restore(saved)
    rewind_log(plan, state)
    state.num_rollbacks, state.rate_factor = num_rollbacks, rate_factor
    save_state(state, plan, writer)
    return Warned(state.step, f"{error}; going on from step {state.step} with {rate_factor:g} of the learning rate")


def rewind_log(plan: RunPlan, state: TrainState) -> None:
    """Forget what was logged after the state; it happens again."""
    if plan.ranks.is_first:
        plan.run.rewind_log(state.num_events)


def fix_num_steps(state: TrainState, plan: RunPlan, num_steps: int) -> None:
    """Settle where the run ends and, once for all, how many held-out characters it scores on the way."""
    state.num_steps = num_steps
    corpus = plan.corpus
    if state.valid_chars == 0:
        state.valid_chars = valid_part(len(corpus.valid_ids), plan.training, num_steps - state.schedule_start)
    if state.best_nats is None and state.best_step > 0:
        _, kept = kept_model(plan)
        score = score_held_out(kept, plan, num_scored=state.valid_chars)
        state.best_nats = score.nats_per_char


def dropout_masks(
    state: TrainState, config: TrainConfig, device: torch.device, lanes: slice = EVERY_LANE
) -> list[Tensor] | None:
    """One mask a layer for the window at hand, (B, H) each, for some lanes; None without dropout."""
    if config.dropout == 0.0:
        return None
    sizes = state.model.config
    return [
        to_device(
            dropout_mask(
                config.dropout,
                seed=config.seed,
                step=state.step,
                layer=layer,
                lanes=range(config.batch_size)[lanes],
                hidden_size=sizes.hidden_size,
            ),
            device,
        )
        for layer in range(sizes.num_layers)
    ]


def weight_masks(state: TrainState, config: TrainConfig, device: torch.device) -> list[Tensor] | None:
    """One mask for each layer's recurrent weight in the window at hand; None where none is dropped."""
    if config.weight_drop == 0.0:
        return None
    return [
        to_device(
            weight_mask(config.weight_drop, seed=config.seed, step=state.step, layer=layer, shape=weight.shape), device
        )
        for layer, weight in enumerate(recurrent_weights(state.model))
    ]


def apply_gradient(state: TrainState, result: WindowResult, num_targets: int, *, rate: float, grad_clip: float) -> None:
    """Turn a sum's gradient (P,) into the mean's, clip its norm and let AdamW take a step.

    Raises DivergenceError, with nothing changed, where the norm or the loss is not finite; not on
    a GPU, which isn't waited for: there the next loss isn't finite either.
    """
    gradient, where = result.gradient, f"training diverged at step {state.step}"
    norm = gradient.norm().double() / num_targets
    if gradient.device.type == "cpu":
        if not math.isfinite(result.nats):
            raise DivergenceError(f"{where}: the loss is not finite")
        if not math.isfinite(norm):
            raise DivergenceError(f"{where}: the gradient is not finite")
    gradient *= torch.clamp(grad_clip / (norm + 1e-12), max=1.0) / num_targets
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
