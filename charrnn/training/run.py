"""Carries a plan out: locks the run's folder, trains, and logs every event."""

from collections.abc import Iterator
from contextlib import contextmanager

from charrnn.config import SECONDS_BETWEEN_STATES
from charrnn.events import Event, Resumed, Warned
from charrnn.training.folder import Log
from charrnn.training.loop import train
from charrnn.training.plan import RunPlan
from charrnn.training.recipe import StopRequest
from charrnn.training.saving import read_finished_event
from charrnn.training.start import check_unchanged


@contextmanager
def lock(plan: RunPlan, *, fresh: bool = False) -> Iterator[None]:
    """Hold the run's folder, unchanged since the plan was made; with fresh, discard the earlier run in it.

    Raises RunLockedError where another run holds the folder, or has trained in it meanwhile.
    """
    with plan.run.locked():
        if fresh:
            plan.run.clear()
        else:
            check_unchanged(plan)
        yield


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
