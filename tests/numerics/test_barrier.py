"""The barrier that threads wait at."""

import threading

import numpy as np
import pytest

from charrnn.numerics.barrier import abort, new_barrier, wait
from charrnn.numerics.compilation import compiled


@compiled
def work(barrier, seen, rank, wrong):
    """Write a row of numbers with a wait after each, and count the other threads' numbers that are missing."""
    for turn in range(seen.shape[1]):
        seen[rank, turn] = turn + 1
        wait(barrier, len(seen))
        for other in range(len(seen)):
            wrong[rank] += seen[other, turn] != turn + 1


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_no_thread_passes_a_barrier_before_all_are_there(num_threads):
    """After each wait every thread sees what each wrote before, even with more threads than cores."""
    barrier, seen = new_barrier(), np.zeros((num_threads, 1000), np.int64)
    wrong = np.zeros(num_threads, np.int64)
    threads = [threading.Thread(target=work, args=(barrier, seen, rank, wrong)) for rank in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert (seen == 1 + np.arange(1000)).all()
    assert not wrong.any()


def test_an_aborted_barrier_releases_all_threads():
    """A thread that waits for a missing one is released, and later threads don't wait."""
    barrier = new_barrier()
    waiting = threading.Thread(target=wait, args=(barrier, 2))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    abort(barrier)
    waiting.join(60)
    assert not waiting.is_alive()
    wait(barrier, 3)
