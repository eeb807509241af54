"""Programs that a rank runs in the tests of several processes, started with torchrun's environment variables.

python -m tests.ranks FOLDER TASK...      run tasks, leave their results in FOLDER/<rank>.json, then the command in
                                          FOLDER/command.json, if there is one
python -m tests.ranks train ...           run `charrnn train` with the fault named by $FAULT
"""

import contextlib
import json
import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from charrnn.cli.main import main
from charrnn.distributed import Ranks, process_group
from charrnn.errors import CharrnnError, InputError, Interrupted
from charrnn.evaluation.scoring import evaluate
from charrnn.events import Evaluated, Finished, Progress, Warned
from charrnn.model.network import CharRNN
from charrnn.runs.log import Log
from charrnn.training import loop
from charrnn.training.loop import train
from charrnn.training.recipe import StopRequest
from tests.conftest import make_corpus, make_text, plan_again, small_plan, with_cell, with_environment

UNEVEN = {"batch_size": 9, "weight_drop": 0.2}  # no even number of ranks divides the lanes
STOP_STEP, FAULT_STEP = 9, 40


def exchange(ranks, folder):
    """Use every way in which ranks exchange something."""
    sums = torch.full((2, 3), float(ranks.rank)), torch.tensor([1.0])
    ranks.all_reduce(*sums)
    lanes = ranks.lanes(9)
    own = torch.full((1, lanes.stop - lanes.start, 2), float(ranks.rank))
    tensor = torch.tensor([float(ranks.rank + 5)])
    ranks.broadcast([tensor])
    return {
        "all_reduce": [part.tolist() for part in sums],
        "all_gather": ranks.all_gather(own, 9)[0, :, 0].tolist(),
        "broadcast_number": ranks.broadcast_number(100 + ranks.rank),
        "broadcast": tensor.tolist(),
        "agreed": ranks.agree("fine", lambda: 7 + ranks.rank, lambda _: {"same": 1}),
        "failed": error_of(lambda: ranks.agree("fails", lambda: fail_in_last(ranks))),
        "differing": error_of(lambda: ranks.agree("differs", lambda: 1, lambda _: {"--seed": ranks.rank})),
        "work_was_done": see_work(ranks, folder),
    }


def fail_in_last(ranks):
    """Raise an error in the last rank."""
    if ranks.rank == ranks.size - 1:
        raise InputError("no such text")


def error_of(function):
    """Return the error's class, exit code and message."""
    try:
        function()
    except CharrnnError as error:
        return [type(error).__name__, error.exit_code, str(error)]


def see_work(ranks, folder):
    """Return whether the machine's first rank had finished its work when this rank started."""
    with ranks.local_rank_first("work"):
        was_done = (folder / "work").exists()
        if ranks.local_rank == 0:
            (folder / "work").touch()
    return was_done


def make_plan(folder, cell, ranks):
    """Plan a run with dropout, weight drop and uneven lanes."""
    plan = with_cell(small_plan(folder / cell, make_corpus(make_text(6000))), cell, **UNEVEN)
    return with_environment(plan, ranks=ranks)


def run_plan(plan, *, stop_step=None):
    """Train or resume to the end, or until the last rank gets a signal; return the losses."""
    ranks, stop, log, losses = plan.environment.ranks, StopRequest(), Log(plan.run), []
    try:
        for event in train(plan_again(plan), stop=stop):
            if ranks.is_first:
                log.append(event.record())
            if isinstance(event, Progress | Evaluated | Finished):
                losses.append([event.event, event.step, event.nats_per_char])
            if isinstance(event, Warned) and "finite" in event.message:
                losses.append([event.message, event.step, 0.0])
            if event.step == stop_step and ranks.rank == ranks.size - 1:
                stop.signal_number = 15
    except Interrupted as error:
        losses.append(["interrupted", error.signal_number, 0.0])
    return losses


def train_gru(ranks, folder):
    """Train a GRU without interruption."""
    return run_plan(make_plan(folder / "whole", "gru", ranks))


def train_others(ranks, folder):
    """Train the other cells."""
    return {cell: run_plan(make_plan(folder / "whole", cell, ranks)) for cell in ("rnn", "lstm")}


def stop_two(ranks, folder):
    """Stop two runs after some steps."""
    return [run_plan(make_plan(folder / name, "gru", ranks), stop_step=STOP_STEP) for name in ("stopped", "moved")]


def resume(ranks, folder):
    """Resume the run in `stopped`."""
    return run_plan(make_plan(folder / "stopped", "gru", ranks))


def resume_single(ranks, folder):
    """Resume a run that a single process stopped."""
    return run_plan(make_plan(folder / "single", "gru", ranks))


def stop_single(ranks, folder):
    """Stop a run that other tasks or tests resume."""
    return run_plan(make_plan(folder / "single", "gru", ranks), stop_step=STOP_STEP)


def diverge(ranks, folder):
    """Train with a loss that is not finite in the last rank, once."""
    add_ranks, steps = loop.add_ranks, []

    def add_nan(all_ranks, result, *wants):
        steps.append(result)
        is_bad = len(steps) == 10 and ranks.rank == ranks.size - 1
        return add_ranks(all_ranks, replace(result, nats=math.nan) if is_bad else result, *wants)

    loop.add_ranks = add_nan
    try:
        return run_plan(make_plan(folder / "diverging", "gru", ranks))
    finally:
        loop.add_ranks = add_ranks


def score(ranks, folder):
    """Score a text, stretches of it, and a text with fewer lanes than ranks."""
    corpus = make_corpus(make_text(30_000))
    network = CharRNN(small_plan(folder, corpus).task.model, seed=1).reader(threads=1)
    texts = {"whole": (corpus.ids, None), "stretches": (corpus.ids, 5000), "short": (corpus.ids[:1500], None)}
    return {
        name: evaluate(network, ids, context=corpus.ids[:1], num_scored=num_scored, ranks=ranks).nats_per_char
        for name, (ids, num_scored) in texts.items()
    }


def lose_last(ranks, folder):
    """End the last rank; return the error in the others."""
    ranks.all_reduce(torch.ones(1))  # all are connected
    if ranks.rank == ranks.size - 1:
        sys.exit(3)
    return error_of(lambda: [ranks.all_reduce(torch.ones(1000)) for _ in range(1000)])


def train_with_fault():
    """Run `charrnn train`; at a certain step of the first start rank 1 kills itself, or sends SIGTERM to torchrun.

    It is killed only after a later state than the first one was saved.
    """
    ranks, add_ranks, steps = Ranks.from_environment(), loop.add_ranks, []

    def add_with_fault(all_ranks, result, *wants):
        steps.append(result)
        if len(steps) == FAULT_STEP and ranks.rank == 1 and ranks.restarts == 0:
            if os.environ["FAULT"] == "kill":
                while not any(int(path.stem.removeprefix("state-")) for path in Path().rglob("state-*.safetensors")):
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            os.kill(os.getppid(), signal.SIGTERM)
        return add_ranks(all_ranks, result, *wants)

    loop.add_ranks = add_with_fault
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it may be ignored where the tests run
    main()


def run_command(folder):
    """Run `charrnn` in the folder."""
    os.chdir(folder)
    sys.argv = ["charrnn", *json.loads(Path("command.json").read_text())]
    with contextlib.suppress(SystemExit):
        main()
    sys.stdout.flush()


def run_tasks(folder, names):
    """Run tasks in one process group and write their results."""
    torch.set_num_threads(1)
    with process_group(Ranks.from_environment(), device="auto") as ranks:
        results = {name: globals()[name](ranks, folder) for name in names}
    (folder / f"{ranks.rank}.json").write_text(json.dumps(results))
    if (folder / "command.json").exists():
        run_command(folder)
    os._exit(0)  # PyTorch's threads may abort an interpreter that shuts down, which is not tested here


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train_with_fault()
    run_tasks(Path(sys.argv[1]), sys.argv[2:])
