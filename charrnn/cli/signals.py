"""TODO."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from charrnn.training.recipe import StopRequest


@contextmanager
def catching_signals(tell: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request; a second one ends the process.

    tell: called at once when the first arrives, so that somebody can be told.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    request = StopRequest()
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGTSTP")
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    caught = [number for number in before if before[number] is not signal.SIG_IGN]

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal_number = number
        for other in caught:
            signal.signal(other, signal.SIG_DFL)
        tell()

    def pause(number: int, _frame: FrameType | None) -> None:
        begun = time.perf_counter()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # stops here, until SIGCONT
        signal.signal(number, pause)
        request.paused += time.perf_counter() - begun

    for number in caught:
        signal.signal(number, pause if number.name == "SIGTSTP" else note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
