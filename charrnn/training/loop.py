"""Training: truncated backpropagation through time over lanes, as a generator of events.

`train` is the one loop. It yields events and writes the run's files; others show and log the events.
The average of the weights (state.py) is scored and saved. At any moment it is about as good
as if the rate had decayed by then, so a run may also end early.

Letters: G lanes, T steps in a window, P parameters, V vocabulary.
"""

import math
import signal
from collections.abc import Iterator

import torch
from torch import Tensor

from charrnn.config import SECONDS_BETWEEN_STATES, TrainConfig
from charrnn.data.batches import ALL_LANES, MOST_COUNTED, Step, next_step, read_window
from charrnn.distributed import Ranks
from charrnn.errors import CharrnnError, DivergenceError, Interrupted
from charrnn.events import Event, Finished, Progress, Resumed, Stopped, Warned
from charrnn.kernels.counters import dropout_mask, weight_mask
from charrnn.model.gradients import WindowResult, Workers, recurrent_weights
from charrnn.model.network import CharRNN
from charrnn.training.folder import SESSION_EVENTS
from charrnn.training.plan import RunPlan
from charrnn.training.recipe import Pace, StopRequest, evaluation_is_due, valid_part
from charrnn.training.saving import (
    Writer,
    evaluate_and_save,
    finish_run,
    is_model_damaged,
    load_best_model,
    save_state,
    score_held_out,
    wait_until_saved,
)
from charrnn.training.state import MAX_ROLLBACKS, TrainState, verify_state

WARM_UP_STEPS = 200  # or a quarter of a short run: starting at the peak rate ruins a network
FINAL_RATE = 0.02  # of the peak
NUM_PROGRESS = 500  # progress events in a run


def learning_rate(step: int, *, peak: float, num_steps: int | None, start: int = 0) -> float:
    """The rate of update number `step` (from 0): linear warm-up, then a cosine to 2 % of the peak.

    num_steps: None until the end is known, which is long before the decay would show.
    start: the schedule's first step, for a run that was extended.
    """
    span = num_steps - start if num_steps else None
    warm_up = min(WARM_UP_STEPS, max(1, span // 4)) if span else WARM_UP_STEPS
    rate = peak * min(1.0, (step - start + 1) / warm_up)
    if not span:
        return rate
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / span)))
    return rate * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


def train(
    plan: RunPlan, *, stop: StopRequest | None = None, save_every: float = SECONDS_BETWEEN_STATES
) -> Iterator[Event]:
    """Train to the end of the plan's budget, yielding events. save_every: seconds between two states.

    Raises Interrupted, after saving, once `stop` is set; DivergenceError where the loss stays not
    finite after all rollbacks; CharrnnError where nothing can be saved. The files always hold the
    last good state and the best model. All ranks of a run do this together; only the first
    one's events count.
    """
    stop = stop or StopRequest()
    state, environment = starting_state(plan), plan.environment
    with (
        Writer(plan.run, idle=not environment.ranks.is_first) as writer,
        Workers(state.model, num_workers=plan.num_workers, precision=environment.precision) as workers,
    ):
        for event in opening_events(plan):
            yield count_event(event, state)
        save_state(state, plan, writer)
        yield from wait_until_saved(plan.run, writer, state.step)  # better to find a full disk now than in an hour
        pace = Pace(stop.clock, save_every=save_every)
        while True:
            try:
                for event in train_to_the_end(state, plan, workers, writer, pace, stop):
                    yield count_event(event, state)
                return
            except DivergenceError as error:
                yield roll_back(state, plan, writer, error)


def count_event(event: Event, state: TrainState) -> Event:
    """Count the event in the state if an uninterrupted run would have it too; return it."""
    state.num_events += event.event not in (*SESSION_EVENTS, Finished.event)
    return event


def opening_events(plan: RunPlan) -> Iterator[Event]:
    """What is reported before the first step."""
    if plan.resume is None:
        yield plan.event()
        return
    for damage in plan.resume.saved.damaged:
        yield Warned(plan.first_step, f"{damage}; resuming from the state before it")
    yield Resumed(plan.first_step, plan.notes[0])
    for note in plan.notes[1:]:
        yield Warned(plan.first_step, note)


def train_to_the_end(
    state: TrainState, plan: RunPlan, workers: Workers, writer: Writer, pace: Pace, stop: StopRequest
) -> Iterator[Event]:
    """Do all remaining steps and compute the final score."""
    yield from train_steps(state, plan, workers, writer, pace, stop)
    if not is_at_end(state):
        yield Stopped(state.step, best_step=state.best_step)
    yield from wait_until_saved(plan.run, writer, state.step)
    if state.best_nats is None or is_model_damaged(plan):  # no model was saved, or it is gone
        state.best_nats = None
        yield from evaluate_and_save(state, plan, writer)
        yield from wait_until_saved(plan.run, writer, state.step)
    finished = finish_run(state, plan, writer)
    yield from wait_until_saved(plan.run, writer, state.step)
    yield finished


def train_steps(
    state: TrainState, plan: RunPlan, workers: Workers, writer: Writer, pace: Pace, stop: StopRequest
) -> Iterator[Event]:
    """The loop."""
    config, ranks, train_text = plan.task.training, plan.environment.ranks, plan.task.train_text
    device = torch.device(plan.environment.device)
    while not (is_at_end(state) or out_of_patience(state, config)):
        # read the next window of every lane; a new pass starts from a zero state
        pace.begin_step()
        step = step_at_cursor(state, plan)
        x, targets = (torch.from_numpy(ids).to(device) for ids in read_window(train_text, step))
        if step.starts_pass:
            state.hidden = state.model.initial_state(len(step.starts))

        # forward and backward
        masks = dropout_masks(state, config, plan.lanes), weight_masks(state, config)
        result = workers.compute(x, targets, state.hidden, *masks)
        wants_stop, wants_save = stop.signal_number is not None, ranks.is_first and pace.state_is_due()
        nats, wants_stop, wants_save = add_ranks(ranks, result, wants_stop, wants_save)

        # clip the mean's gradient and update
        share = learning_rate(state.step, peak=1.0, num_steps=state.num_steps, start=state.schedule_start)
        rate = share * state.rate_factor * config.learning_rate
        apply_gradient(state, result.gradient, nats, step.num_targets, rate=rate, grad_clip=config.grad_clip)
        state.hidden, state.cursor = result.state, step.after
        state.step += 1
        state.update_ema(share)
        state.recent_nats += nats
        state.recent_chars += step.num_targets

        # the first steps measure the speed, which fixes the number of steps
        pace.end_step(step.num_targets)
        if state.num_steps is None and (left := steps_left(plan, pace)):
            fix_num_steps(state, plan, state.step + left)

        # report, evaluate, save
        if is_due(state, NUM_PROGRESS):
            yield progress_event(state, pace, rate)
        if evaluation_is_due(state.since_start(state.step), state.since_start(state.evaluated_step), state.span):
            yield from evaluate_and_save(state, plan, writer)
        if wants_save or state.step == state.best_step:
            save_state(state, plan, writer)
            pace.state_was_saved()
        if problem := writer.problem():
            yield Warned(state.step, problem)
        if wants_stop:
            save_state(state, plan, writer)
            yield from wait_until_saved(plan.run, writer, state.step)
            message = f"stopped after step {state.step}; the same command resumes from there"
            raise Interrupted(message, signal_number=stop.signal_number or signal.SIGTERM)


def step_at_cursor(state: TrainState, plan: RunPlan) -> Step:
    """What this rank's lanes read next."""
    config = plan.task.training
    return next_step(
        len(plan.task.train_text),
        state.cursor,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        seed=config.seed,
        lanes=plan.lanes,
    )


def add_ranks(ranks: Ranks, result: WindowResult, wants_stop: bool, wants_save: bool) -> tuple[float, bool, bool]:
    """Add up all ranks' nats and, in place, their gradients; return the nats and what any rank wants.

    Every rank gets the same numbers, so none alone takes a step for diverged.
    """
    if ranks.size == 1:
        return result.nats, wants_stop, wants_save
    sums = result.gradient.new_tensor([result.nats, wants_stop, wants_save])
    ranks.all_reduce(result.gradient, sums)
    nats, stopping, saving = sums.tolist()
    return nats, stopping > 0, saving > 0


def steps_left(plan: RunPlan, pace: Pace) -> int:
    """The steps that still fit the time budget by the first rank's clock; 0 if that isn't known yet."""
    seconds, corpus = plan.budget.seconds, plan.task.corpus
    if seconds is None:
        return 0
    left = 0
    if pace.is_known(seconds):
        num_counted = min(corpus.num_train, MOST_COUNTED) if len(plan.task.train_text.starts) else 0
        left = pace.steps_left(seconds, num_valid=len(corpus.valid_ids), num_counted=num_counted)
    return plan.environment.ranks.broadcast_number(left)


def starting_state(plan: RunPlan) -> TrainState:
    """The state before the plan's first step: a new one, or the saved one."""
    task, environment = plan.task, plan.environment
    model = CharRNN(task.model, seed=task.training.seed).to(torch.device(environment.device))
    state = TrainState.initial(model, task.training, environment.ranks)
    if plan.base:
        state.load_base(plan.base, task.corpus.vocab)
    if plan.resume:
        state.restore(plan.resume.saved, plan.resume.scalars)
    if not plan.extends:  # what was logged after the state will happen again
        rewind_log(plan, state)
    else:  # a longer run scores more characters during training, so the best score so far doesn't compare
        state.schedule_start, state.num_steps, state.finished = state.step, None, False
        state.valid_chars, state.best_nats, state.num_rollbacks = 0, None, 0
        state.evaluated_step, state.bad_evaluations = state.step, 0
    if is_model_damaged(plan):  # or someone moved it: a later best is better than none
        state.best_nats, state.best_step = None, 0
    if state.num_steps is None and plan.budget.seconds is None:
        assert task.training.steps is not None
        fix_num_steps(state, plan, task.training.steps)
    return state


def roll_back(state: TrainState, plan: RunPlan, writer: Writer, error: DivergenceError) -> Warned:
    """Return to the last saved state and halve the learning rate. Raises the error after too many rollbacks."""
    ranks = plan.environment.ranks
    writer.wait()
    ranks.broadcast_number(0)  # no rank looks before the first one has written
    saved = plan.run.newest_state()
    assert saved is not None  # one is written before the first step
    if ranks.broadcast_number(saved.meta["step"]) != saved.meta["step"]:
        raise CharrnnError(f"{plan.run.folder} differs from what rank 0 sees; all processes need the same checkpoints/")
    num_rollbacks, rate_factor = state.num_rollbacks + 1, 0.5 * state.rate_factor
    if num_rollbacks > MAX_ROLLBACKS:
        advice = "start over with --fresh and a lower --learning-rate, or a lower --grad-clip"
        raise DivergenceError(f"{error}, even at a fraction of the learning rate; {advice}") from None
    state.restore(saved, verify_state(saved, plan.task.model, batch_size=state.num_lanes))
    rewind_log(plan, state)
    state.num_rollbacks, state.rate_factor = num_rollbacks, rate_factor
    save_state(state, plan, writer)
    return Warned(state.step, f"{error}; resuming from step {state.step} with {rate_factor:g} times the learning rate")


def rewind_log(plan: RunPlan, state: TrainState) -> None:
    """Drop what was logged after the state; it will happen again."""
    if plan.environment.ranks.is_first:
        plan.run.rewind_log(state.num_events)


def fix_num_steps(state: TrainState, plan: RunPlan, num_steps: int) -> None:
    """Fix where the run ends, and how many held-out characters it scores during training."""
    state.num_steps = num_steps
    corpus = plan.task.corpus
    if state.valid_chars == 0:
        state.valid_chars = valid_part(len(corpus.valid_ids), plan.task.training, num_steps - state.schedule_start)
    if state.best_nats is None and state.best_step > 0:
        _, best = load_best_model(plan)
        score = score_held_out(best, corpus, plan.environment.ranks, num_scored=state.valid_chars)
        state.best_nats = score.nats_per_char


def dropout_masks(state: TrainState, config: TrainConfig, lanes: slice = ALL_LANES) -> list[Tensor] | None:
    """One mask per layer for the current window, (B, H) each, for some lanes; None without dropout."""
    if config.dropout == 0.0:
        return None
    sizes, device = state.model.config, state.model.head.weight.device
    masks = (
        dropout_mask(
            config.dropout,
            seed=config.seed,
            step=state.step,
            layer=layer,
            lanes=range(config.batch_size)[lanes],
            hidden_size=sizes.hidden_size,
        )
        for layer in range(sizes.num_layers)
    )
    return [torch.from_numpy(mask).to(device) for mask in masks]


def weight_masks(state: TrainState, config: TrainConfig) -> list[Tensor] | None:
    """One mask per layer's recurrent weight for the current window; None without weight drop."""
    if config.weight_drop == 0.0:
        return None
    masks = (
        weight_mask(config.weight_drop, seed=config.seed, step=state.step, layer=layer, shape=weight.shape)
        for layer, weight in enumerate(recurrent_weights(state.model))
    )
    return [torch.from_numpy(mask).to(state.model.head.weight.device) for mask in masks]


def apply_gradient(
    state: TrainState, gradient: Tensor, nats: float, num_targets: int, *, rate: float, grad_clip: float
) -> None:
    """Turn a sum's gradient (P,) into the mean's, clip its norm and take an AdamW step.

    Raises DivergenceError, with nothing changed, where the norm or the loss is not finite.
    """
    norm = float(gradient.norm().double() / num_targets)
    for value, name in ((nats, "loss"), (norm, "gradient")):
        if not math.isfinite(value):
            raise DivergenceError(f"training diverged at step {state.step}: the {name} is not finite")
    gradient *= min(grad_clip / (norm + 1e-12), 1.0) / num_targets
    start = 0
    for parameter in state.model.parameters():
        parameter.grad = gradient[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()


def is_due(state: TrainState, times: int) -> bool:
    """Whether something that happens `times` times in a run, the last time at its end, happens now."""
    if state.span is None:
        return True
    done = state.since_start(state.step)
    return done * times // state.span > (done - 1) * times // state.span


def is_at_end(state: TrainState) -> bool:
    """Whether all steps are done."""
    return state.num_steps is not None and state.step >= state.num_steps


def out_of_patience(state: TrainState, config: TrainConfig) -> bool:
    """Whether the last evaluations were all worse than the best: early stopping.

    Never during the first two passes: a network can't overfit what it hasn't seen yet.
    """
    return 0 < config.patience <= state.bad_evaluations and state.cursor.pass_index >= 2


def progress_event(state: TrainState, pace: Pace, rate: float) -> Progress:
    """Report the training loss since the last progress event, and start counting again."""
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
