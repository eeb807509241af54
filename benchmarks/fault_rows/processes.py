"""Rows about processes: runs that are killed, interrupted, started twice, or read while they write."""

import contextlib
import functools
import json
import os
import re
import select
import signal
import time
from typing import Any

from fault_rows.disk import KILLS, Fault, Operation, watched
from fault_rows.outcome import expect
from fault_rows.runs import FILES, FORK, PATIENCE, RUN, SAVE_EVERY, Child, Try, run_command, start_afresh, wait_until

_AT_ONCE = 1.0  # seconds, on a busy machine
_HEARD = "stopping after this step"
_ENDLESS = 10**6  # steps
READS = 25  # in a try
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def in_own_process(run: Try) -> None:
    """Give the command in a fresh interpreter, as people do: this shows what forks hide, if anything."""
    run_command(run.command(), run.folder, before=start_afresh)
    run.check_equal(run.whole)


def killed(run: Try) -> None:
    """SIGKILL up to four times, at any moment of a process's life or at an operation on its files."""
    rng, wanted = run.rng, run.rng.randint(1, 4)
    life = float((run.whole.folder / "seconds").read_text())
    while run.counts["kills"] < wanted:
        at_disk = rng.random() < 0.4
        die = watched(FILES, Fault(rng.choice(KILLS), rng.randint(0, 300))).__enter__
        with run.train(save_every=rng.choice(SAVE_EVERY), before=die if at_disk else None) as child:
            code = child.wait(PATIENCE if at_disk else rng.uniform(0.0, life))
        if code == (-signal.SIGKILL if at_disk else None):
            run.counts["kills"] += 1
            run.counts["of them while a file was written"] += any(run.run.glob(".*.tmp"))
            run.check_whole()
            continue
        child.must_end(0)
        if run.counts["kills"]:
            break
        run.clear()  # it ended before it was to be killed
        life *= 0.7
    run.check_resumed()


def interrupted(run: Try, *, number: int) -> None:
    """Send a signal somewhere between a run's first event and its last."""
    with run.train(save_every=run.rng.choice(SAVE_EVERY)) as child:
        run.wait_for_line(child, run.rng.randrange(1, run.whole.num_lines()))
        time.sleep(run.rng.uniform(0.0, 0.01))
        begun = time.monotonic()
        child.send(number)
        heard = child.wait_for(lambda: _HEARD in child.errors())
        seconds = time.monotonic() - begun
        child.wait()
    if run.is_over():
        run.counts["had finished"] += 1
        run.check_equal(run.whole)
        return
    child.must_end(-number)
    expect(heard and seconds <= _AT_ONCE, f"the line on stderr came after {seconds:.1f} s, or never")
    said = re.search(r"stopped after step (\d+); the same command resumes from there$", child.last_line())
    newest = run.states()[0].name
    right = said and newest == f"state-{said[1]}.safetensors"
    expect(right, f"the last line was: {child.last_line()}, the newest state {newest}")
    run.check_ended()
    run.check_resumed()


def blocked(run: Try) -> None:
    """Send a signal in the middle of a print, as with a pager that nobody scrolls."""
    number, (end, pipe) = run.rng.choice(SIGNALS), os.pipe()
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b" " * select.PIPE_BUF)
    os.set_blocking(pipe, True)
    with run.train(before=functools.partial(os.dup2, pipe, 2)) as child:
        os.close(pipe)
        run.wait_for_line(child, 1)  # the plan, which is printed next
        time.sleep(run.rng.uniform(0.05, 0.2))
        child.send(number)
        time.sleep(run.rng.uniform(0.0, 0.1))
        with open(end, "rb") as reader:
            said = reader.read().decode(errors="replace").strip()
        child.must_end(-number)
    expect(_HEARD in said, f"{number} was answered with: {said[-200:]}")
    run.check_ended()
    run.check_resumed()


def twice(run: Try) -> None:
    """Send a second signal, while the disk is so slow that what the first asked for takes seconds."""
    rng, slow = run.rng, run.folder / "slow"
    first, second, waits = rng.choice(SIGNALS), rng.choice(SIGNALS), rng.random() < 0.8

    def slowly(operation: Operation) -> Any:
        if operation.kind == "fsync" and slow.exists():
            time.sleep(1.0)
        return operation.act()

    with run.train(save_every=rng.choice(SAVE_EVERY), before=watched(FILES, slowly).__enter__) as child:
        run.wait_for_line(child, rng.randrange(1, run.whole.num_lines() - 20))
        if waits:
            slow.touch()
        child.send(first)
        if waits:
            child.wait_for(lambda: _HEARD in child.errors())
            time.sleep(rng.uniform(0.0, 0.05))
        begun = time.monotonic()
        child.send(second)
        child.must_end(-second, -second if waits else -first)
        seconds = time.monotonic() - begun
    slow.unlink(missing_ok=True)
    run.counts["of them before the first was heard"] += not waits
    expect(seconds <= _AT_ONCE, f"went on for {seconds:.1f} s")
    run.check_resumed()


def together(run: Try) -> None:
    """Start many at once; and once more after the one that trained was killed."""
    count, command = run.rng.randint(2, 8), run.command(steps=_ENDLESS)
    for number in (signal.SIGKILL, signal.SIGTERM):
        run.counts["processes"] += count
        with contextlib.ExitStack() as stack:
            gate = FORK.Barrier(count)
            children = [
                stack.enter_context(Child(command, run.folder, tag=f"{number}-{index}", before=gate.wait))
                for index in range(count)
            ]
            wait_until(lambda children=children: sum(child.exitcode is None for child in children) <= 1)
            trains, *more = [child for child in children if child.exitcode is None]
            expect(not more, f"{1 + len(more)} of {count} train")
            children.remove(trains)
            for child in children:
                child.must_end(5)
                expect(f"{FILES} is in use by process {trains.pid}; " in child.errors(), child.last_line())
            expect(run.wait_for_line(trains, 3), f"it ended: {trains.last_line()}")
            trains.send(number)
            trains.must_end(-number)
            run.check_whole()
    expect(len(run.events("plan")) == 1, f"{len(run.events('plan'))} runs began")


def beside(run: Try) -> None:
    """Read the model again and again while each step of a training run writes a better one."""

    def evaluate_always() -> None:
        from charrnn.training import loop, state

        state.EMA_EVERY = 1
        loop.evaluation_is_due = lambda *_: True

    slowly = ("--patience", 0, "--learning-rate", 0.0001)  # so that it gets better for long
    command = run.command(*slowly, steps=_ENDLESS, save_every=0.0)
    with Child(command, run.folder, tag="train", before=evaluate_always) as child:
        child.wait_for(run.model.exists)
        for number in range(READS):
            if number % 2:
                sample(run)
            else:
                evaluate(run)
            expect(child.exitcode is None, f"training ended: {child.last_line()}")
        child.send(signal.SIGTERM)
        child.must_end(-signal.SIGTERM)
    run.counts["models were written"] += len(run.events("saved"))


def sample(run: Try) -> None:
    """Draw a text; it has the length that was asked for."""
    length, seed, threads = run.rng.randint(20, 200), run.rng.randrange(10**6), run.rng.randint(1, 2)
    command = f"sample -m {RUN} -n {length} --no-echo --null --seed {seed} --threads {threads}"
    text = run_command(command.split(), run.folder).out.read_text(encoding="utf-8")
    expect(len(text) == length + 1 and text[-1] == "\0", f"sample printed {len(text)} of {length} characters")


def evaluate(run: Try) -> None:
    """Score the text that was held out."""
    child = run_command(f"eval -m {RUN} --json --device cpu".split(), run.folder)
    facts = json.loads(child.out.read_text(encoding="utf-8"))
    expect(facts["num_chars"] == 1200 and 0.0 < facts["nats_per_char"] < 10.0, f"eval printed {facts}")
