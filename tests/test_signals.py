"""Signals to a training run: the first is a request to stop, the second ends the process, a pause is not counted."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from charrnn.signals import catching_signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX only")
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
HANDLED = (*STOPPING, "SIGTSTP")


@contextmanager
def default_handlers():
    """Start with the default handlers, whatever the tests have inherited; restore them afterwards."""
    numbers = [getattr(signal, name) for name in HANDLED]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("name", STOPPING)
def test_the_first_signal_is_a_request(name):
    """It is noted, so that the run can end after its step; the callback is called at once."""
    number, calls = getattr(signal, name), []
    with default_handlers(), catching_signals(lambda: calls.append(name)) as request:
        assert request.signal_number is None
        os.kill(os.getpid(), number)
        assert request.signal_number == number
        assert calls == [name]


def test_handlers_are_restored():
    """Whether a signal came or not, and also if the block raises."""
    with default_handlers() as numbers:
        mine = {number: lambda *_: None for number in numbers}
        for number in numbers:
            signal.signal(number, mine[number])
        with catching_signals():
            assert all(signal.getsignal(number) is not mine[number] for number in numbers)
        assert {number: signal.getsignal(number) for number in numbers} == mine
        with pytest.raises(ZeroDivisionError), catching_signals():
            raise ZeroDivisionError(signal.raise_signal(signal.SIGTERM))
        assert {number: signal.getsignal(number) for number in numbers} == mine


def test_an_ignored_signal_stays_ignored():
    """As SIGHUP is under nohup: the run outlives its terminal, before another signal and after it."""
    with default_handlers():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with catching_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal_number is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.signal_number == signal.SIGTERM
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


START = f"""
import os, signal, time
from charrnn.signals import catching_signals
for name in {HANDLED!r}:
    signal.signal(getattr(signal, name), signal.SIG_DFL)
"""


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGTERM")])
def test_a_second_signal_ends_the_process(first, second):
    """A user who asks twice doesn't want to wait; the process ends by that signal."""
    script = f"""{START}
with catching_signals() as request:
    os.kill(os.getpid(), signal.{first})
    assert request.signal_number == signal.{first}
    print("still here", flush=True)
    os.kill(os.getpid(), signal.{second})
    print("never printed")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "still here\n"
    assert done.returncode == -getattr(signal, second)


@contextmanager
def in_own_group(script):
    """Run a script in a process group whose parent is outside: the system stops no others by SIGTSTP."""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_pause_is_not_counted():
    """Ctrl-Z stops the process as always; each time it continues, the clock resumes where it was."""
    script = f"""{START}
with catching_signals() as request:
    for _ in range(2):
        paused, real, clock = request.paused, time.perf_counter(), request.clock()
        print("ready", flush=True)
        while request.paused == paused:
            time.sleep(0.001)
        print(request.paused - paused, request.clock() - clock, time.perf_counter() - real, flush=True)
    print(request.signal_number)
"""
    with in_own_group(script) as process:
        for _ in range(2):
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTSTP)
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            time.sleep(0.1)
            process.send_signal(signal.SIGCONT)
            paused, counted, real = map(float, process.stdout.readline().split())
            assert paused >= 0.1
            assert 0 <= counted <= real - paused + 1e-6
        assert process.stdout.readline() == "None\n"
        assert process.wait() == 0


def test_an_ignored_pause_stays_ignored():
    """A parent that ignores SIGTSTP wants the process never to stop."""
    script = f"""{START}
signal.signal(signal.SIGTSTP, signal.SIG_IGN)
with catching_signals() as request:
    os.kill(os.getpid(), signal.SIGTSTP)
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN
    print(request.paused, request.signal_number)
assert signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN
"""
    with in_own_group(script) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) == 0
        assert process.stdout.read() == "0.0 None\n"
