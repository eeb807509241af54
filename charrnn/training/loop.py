"""Training: truncated backpropagation through time over lanes, as a generator of events.

`train` is the one loop. It yields events and writes the run's files; its callers show and log the events.
The averaged weights (state.py) are scored and saved. At any moment they are about as good
as if the learning rate had decayed by then, so a run may also end early.

Letters: T steps in a window, B lanes of this rank.
"""

import math
import signal
from collections.abc import Iterator

import torch

from charrnn.config import SECONDS_BETWEEN_STATES, TrainConfig
from charrnn.data.batches import Step, next_step, read_window
from charrnn.distributed import Ranks
from charrnn.errors import CharrnnError, DivergenceError, Interrupted
from charrnn.events import Event, Finished, Progress, Resumed, Stopped, Warned
from charrnn.model.gradients import WindowResult, Workers
from charrnn.model.network import CharRNN
from charrnn.runs.folder import SESSION_EVENTS
from charrnn.runs.writer import Writer
from charrnn.training.optimizer import apply_gradient, dropout_masks, reset_lanes, weight_masks
from charrnn.training.plan import RunPlan
from charrnn.training.recipe import Pace, StopRequest, counted_part, evaluation_is_due, valid_part
from charrnn.training.saving import (
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
FINAL_SHARE = 0.02  # of the peak learning rate
NUM_PROGRESS = 500  # progress events in a run


def rate_share(step: int, *, num_steps: int | None, start: int = 0) -> float:
    """Return the share of the peak learning rate in update `step` (from 0): a linear warm-up, then a cosine to 2 %.

    num_steps: None until the end is known, which is long before the decay would show.
    start: the schedule's first step, later than 0 in an extended run.
    """
    span = num_steps - start if num_steps else None
    warm_up = min(WARM_UP_STEPS, max(1, span // 4)) if span else WARM_UP_STEPS
    share = min(1.0, (step - start + 1) / warm_up)
    if not span:
        return share
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / span)))
    return share * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def train(
    plan: RunPlan, *, stop: StopRequest | None = None, save_every: float = SECONDS_BETWEEN_STATES
) -> Iterator[Event]:
    """Train until the plan's budget is used up, yielding events. save_every: seconds between two states.

    All ranks of a run call this together; only the events of the first rank matter.
    The files always hold the last good state and the best model.
    Raises Interrupted after saving, once `stop` is set; DivergenceError if the run still diverges
    after all rollbacks; CharrnnError if nothing can be saved.
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
        yield from wait_until_saved(plan.run, writer, state.step)  # find out now if the disk is full
        pace = Pace(stop.clock, save_every=save_every)
        while True:
            try:
                for event in train_and_finish(state, plan, workers, writer, pace, stop):
                    yield count_event(event, state)
                return
            except DivergenceError as error:
                yield roll_back(state, plan, writer, error)


def count_event(event: Event, state: TrainState) -> Event:
    """Return the event, counted in the state if an uninterrupted run would have it too."""
    state.num_events += event.event not in (*SESSION_EVENTS, Finished.event)
    return event


def opening_events(plan: RunPlan) -> Iterator[Event]:
    """Yield what is reported before the first step."""
    if plan.resume is None:
        yield plan.event()
        return
    for damage in plan.resume.saved.damaged:
        yield Warned(plan.first_step, f"{damage}; resuming from the state before it")
    yield Resumed(plan.first_step, plan.notes[0])
    for note in plan.notes[1:]:
        yield Warned(plan.first_step, note)


def train_and_finish(
    state: TrainState, plan: RunPlan, workers: Workers, writer: Writer, pace: Pace, stop: StopRequest
) -> Iterator[Event]:
    """Do the remaining steps, compute the final score and save all."""
    yield from train_steps(state, plan, workers, writer, pace, stop)
    if not is_at_end(state):
        yield Stopped(state.step, best_step=state.best_step)
    yield from wait_until_saved(plan.run, writer, state.step)
    if state.best_nats is None or is_model_damaged(plan):  # no model was saved, or it was deleted
        state.best_nats = None
        yield from evaluate_and_save(state, plan, writer)
        yield from wait_until_saved(plan.run, writer, state.step)
    yield from finish_run(state, plan, writer)


def train_steps(
    state: TrainState, plan: RunPlan, workers: Workers, writer: Writer, pace: Pace, stop: StopRequest
) -> Iterator[Event]:
    """Do the remaining steps: the loop."""
    config, ranks, train_text = plan.task.training, plan.environment.ranks, plan.task.train_text
    device = torch.device(plan.environment.device)
    while not (is_at_end(state) or should_stop_early(state, config)):
        # read the next window of every lane; a new pass starts from a zero state, and so do a few lanes in each step
        pace.begin_step()
        step = step_at_cursor(state, plan)
        x, targets = (torch.from_numpy(ids).to(device) for ids in read_window(train_text, step))  # (T, B)
        if step.starts_pass:
            state.hidden = state.model.initial_state(len(step.starts))
        reset_lanes(state, config, plan.lanes)

        # forward and backward
        masks = dropout_masks(state, config, plan.lanes), weight_masks(state, config)
        result = workers.compute(x, targets, state.hidden, *masks)
        wants_stop, wants_save = stop.signal_number is not None, ranks.is_first and pace.state_is_due()
        nats, wants_stop, wants_save = add_ranks(ranks, result, wants_stop, wants_save)

        # clip the mean's gradient and update
        share = rate_share(state.step, num_steps=state.num_steps, start=state.schedule_start)
        rate = share * state.rate_factor * config.learning_rate
        norm = apply_gradient(state, result.gradient, nats, step.num_targets, rate=rate, grad_clip=config.grad_clip)
        state.hidden, state.cursor = result.state, step.next_cursor
        state.step += 1
        state.count_step(nats, step.num_targets, norm, is_clipped=norm > config.grad_clip)

        # the first steps measure the speed, which gives the number of steps
        pace.end_step(step.num_targets)
        if state.num_steps is None and (left := steps_left(plan, pace)):
            fix_num_steps(state, plan, state.step + left)

        # average the weights, report, evaluate, save
        state.update_ema(share)
        if progress_is_due(state):
            yield progress_event(state, pace, rate)
        done, evaluated = state.since_start(state.step), state.since_start(state.evaluated_step)
        if evaluation_is_due(done, evaluated, state.span) and not state.is_ema_scored:
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
    """Return the next step of this rank's lanes."""
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
    """Sum all ranks' nats and, in place, their gradients; return the nats and whether any rank wants to stop, to save.

    Every rank gets the same numbers, so all agree whether a step diverged.
    """
    if ranks.size == 1:
        return result.nats, wants_stop, wants_save
    sums = result.gradient.new_tensor([result.nats, wants_stop, wants_save])
    ranks.all_reduce(result.gradient, sums)
    nats, stopping, saving = sums.tolist()
    return nats, stopping > 0, saving > 0


def steps_left(plan: RunPlan, pace: Pace) -> int:
    """Return the steps that fit the rest of the time budget by the first rank's clock; 0 until the speed is known."""
    seconds, corpus = plan.budget.seconds, plan.task.corpus
    if seconds is None:
        return 0
    left = 0
    if pace.is_known(seconds):
        num_scored = len(corpus.valid_ids) + len(corpus.test_ids)
        most = pace.steps_left(seconds, num_scored=num_scored, num_counted=0)
        num_counted = counted_part(corpus.num_train, plan.task.training, most) if plan.task.mixes_ngrams else 0
        left = pace.steps_left(seconds, num_scored=num_scored, num_counted=num_counted)
    return plan.environment.ranks.broadcast_number(left)


def starting_state(plan: RunPlan) -> TrainState:
    """Create the state before the plan's first step, or load it from the saved state."""
    task, environment = plan.task, plan.environment
    model = CharRNN(task.model, seed=task.training.seed).to(torch.device(environment.device))
    state = TrainState.initial(model, task.training, environment.ranks)
    if plan.base:
        state.load_base(plan.base, task.corpus.vocab)
    if plan.resume:
        state.restore(plan.resume.saved, plan.resume.scalars)
    if not plan.extends:
        rewind_log(plan, state)
    else:  # the best score so far is not comparable if the evaluations score more characters from now on
        state.schedule_start, state.num_steps, state.finished = state.step, None, False
        state.best_nats, state.num_rollbacks = None, 0
        state.evaluated_step, state.bad_evaluations = state.step, 0
    if is_model_damaged(plan):  # or deleted: save the next model, even if it is not the best of the run
        state.best_nats, state.best_step = None, 0
    if state.num_steps is None and plan.budget.seconds is None:
        assert task.training.steps is not None
        fix_num_steps(state, plan, task.training.steps)
    return state


def roll_back(state: TrainState, plan: RunPlan, writer: Writer, error: DivergenceError) -> Warned:
    """Return to the last saved state and halve the learning rate.

    Raises DivergenceError after too many rollbacks.
    """
    ranks = plan.environment.ranks
    writer.wait()
    ranks.broadcast_number(0)  # a barrier: the others must not read before the first rank has written
    saved = plan.run.newest_state()
    assert saved is not None  # there is one from before the first step
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
    """Drop the events logged after the state, because they will happen again."""
    if plan.environment.ranks.is_first:
        plan.run.rewind_log(state.num_events)


def fix_num_steps(state: TrainState, plan: RunPlan, num_steps: int) -> None:
    """Set the run's last step, and with it how many held-out characters it scores during training.

    An extension scores at least as many as the run did before: on fewer, a worse model can look better.
    """
    state.num_steps = num_steps
    corpus = plan.task.corpus
    part = valid_part(len(corpus.valid_ids), plan.task.training, num_steps - state.schedule_start)
    state.valid_chars = max(state.valid_chars, part)
    if state.best_nats is None and state.best_step > 0:
        _, best = load_best_model(plan)
        score = score_held_out(best, corpus, plan.environment.ranks, num_scored=state.valid_chars)
        state.best_nats = score.nats_per_char


def progress_is_due(state: TrainState) -> bool:
    """Return whether to report progress: NUM_PROGRESS times, evenly spread, the last time at the end."""
    if state.span is None:
        return True
    done = state.since_start(state.step)
    return done * NUM_PROGRESS // state.span > (done - 1) * NUM_PROGRESS // state.span


def is_at_end(state: TrainState) -> bool:
    """Return whether all steps are done."""
    return state.num_steps is not None and state.step >= state.num_steps


def should_stop_early(state: TrainState, config: TrainConfig) -> bool:
    """Return whether the last `patience` evaluations brought no improvement: early stopping.

    Never during the first two passes, because a network can't overfit what it has not read twice. Never in an
    extension, which begins with worse scores than the best because its learning rate rises again.
    """
    if state.schedule_start > 0 or state.cursor.pass_index < 2:
        return False
    return 0 < config.patience <= state.bad_evaluations


def progress_event(state: TrainState, pace: Pace, rate: float) -> Progress:
    """Report the training loss and the gradients since the last progress event, and reset their sums."""
    event = Progress(
        step=state.step,
        num_steps=state.num_steps,
        nats_per_char=state.recent_nats / state.recent_chars,
        learning_rate=rate,
        chars_per_second=pace.chars_per_second(),
        seconds_left=None if state.num_steps is None else pace.seconds_left(state.num_steps - state.step),
        grad_norm=state.recent_norms / state.recent_steps,
        clipped=state.recent_clipped / state.recent_steps,
    )
    state.recent_nats, state.recent_chars = 0.0, 0
    state.recent_norms, state.recent_steps, state.recent_clipped = 0.0, 0, 0
    return event
