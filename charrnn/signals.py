"""Turns the first signal to a training run into a request to stop, so that the run saves its state first."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from charrnn.training.recipe import StopRequest


@contextmanager
def catching_signals(on_stop: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request; a second one ends the process.

    on_stop: called by the handler as soon as the first signal arrives.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. Time in which the process
    was suspended (SIGTSTP) is added to the request's `paused`.
    """
    request = StopRequest()
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGTSTP")
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    caught = [number for number in before if before[number] is not signal.SIG_IGN]

    def request_stop(number: int, _frame: FrameType | None) -> None:
        request.signal_number = number
        for other in caught:
            signal.signal(other, signal.SIG_DFL)
        on_stop()

    def suspend(number: int, _frame: FrameType | None) -> None:
        start = time.perf_counter()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # stops here, until SIGCONT
        signal.signal(number, suspend)
        request.paused += time.perf_counter() - start

    for number in caught:
        signal.signal(number, suspend if number.name == "SIGTSTP" else request_stop)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
