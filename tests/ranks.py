"""What each rank does in the tests of several; a program that is started with what torchrun would set.

    python -m tests.ranks TASK FOLDER

What a rank found out it leaves in FOLDER/<rank>.json.
"""

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from charrnn.distributed import Ranks
from charrnn.errors import CharrnnError, InputError, Interrupted
from charrnn.evaluation.scoring import evaluate
from charrnn.events import Evaluated, Finished, Progress, Warned
from charrnn.model.network import CharRNN
from charrnn.training import loop
from charrnn.training.folder import Log
from charrnn.training.loop import train
from charrnn.training.recipe import StopRequest
from tests.conftest import make_corpus, make_text, plan_again, small_plan, with_cell

UNEVEN = {"batch_size": 9, "weight_drop": 0.2}  # lanes, for two and for four ranks


def messages(ranks, folder):
    """Everything that ranks tell one another."""
    sums = torch.full((2, 3), float(ranks.rank)), torch.tensor([1.0])
    ranks.all_reduce(*sums)
    own = torch.full((1, ranks.lanes(9).stop - ranks.lanes(9).start, 2), float(ranks.rank))
    spread = torch.tensor([float(ranks.rank + 5)])
    ranks.broadcast([spread])
    return {
        "sums": [part.tolist() for part in sums],
        "all_gather": ranks.all_gather(own, 9)[0, :, 0].tolist(),
        "said": ranks.broadcast_number(100 + ranks.rank),
        "spread": spread.tolist(),
        "agreed": ranks.agree("fine", lambda: 7 + ranks.rank, lambda _: {"same": 1}),
        "failed": problem(lambda: ranks.agree("fails", lambda: failing(ranks))),
        "differing": problem(lambda: ranks.agree("differs", lambda: 1, lambda _: {"--seed": ranks.rank})),
        "order": order(ranks, folder),
    }


def failing(ranks):
    """Go wrong in the last rank alone."""
    if ranks.rank == ranks.size - 1:
        raise InputError("no such text")


def problem(do):
    """The kind of error, its exit code and its line."""
    try:
        do()
    except CharrnnError as error:
        return [type(error).__name__, error.exit_code, str(error)]


def order(ranks, folder):
    """Whether the first of a machine had done its work when this rank began."""
    with ranks.local_rank_first("work"):
        done = (folder / "work").exists()
        if ranks.local_rank == 0:
            (folder / "work").touch()
    return done


def plan_in(folder, cell, ranks):
    """A run with dropout, dropped weights, and lanes that no even number divides."""
    return replace(with_cell(small_plan(folder / cell, make_corpus(make_text(6000))), cell, **UNEVEN), ranks=ranks)


def trained(plan, *, stop_at=None, stopper=0):
    """Train, or go on, to the end or until one rank hears a signal; what was told of losses."""
    stop, log, told = StopRequest(), Log(plan.run), []
    try:
        for event in train(plan_again(plan), stop=stop):
            if plan.ranks.is_first:
                log.append(event.record())
            if isinstance(event, (Progress, Evaluated, Finished)):
                told.append([event.event, event.step, event.nats_per_char])
            if isinstance(event, Warned) and "finite" in event.message:
                told.append([event.message, event.step, 0.0])
            if event.step == stop_at and plan.ranks.rank == stopper:
                stop.signal_number = 15
    except Interrupted as error:
        told.append(["interrupted", error.signal_number, 0.0])
    return told


def training(ranks, folder):
    """A run of each cell, in one sitting."""
    return {cell: trained(plan_in(folder, cell, ranks)) for cell in ("rnn", "gru", "lstm")}


def sitting(ranks, folder):
    """Some steps of a run; then the last rank hears a signal."""
    return {"gru": trained(plan_in(folder, "gru", ranks), stop_at=9, stopper=ranks.size - 1)}


def rest(ranks, folder):
    """The rest of it."""
    return {"gru": trained(plan_in(folder, "gru", ranks))}


def diverging(ranks, folder):
    """A run in which the last rank's loss is no number, once."""
    add_up, steps = loop.add_up, []

    def add_up_badly(all_ranks, result, asked):
        steps.append(result)
        ill = len(steps) == 10 and ranks.rank == ranks.size - 1
        return add_up(all_ranks, replace(result, nats=result.nats * math.nan) if ill else result, asked)

    loop.add_up = add_up_badly
    return {"gru": trained(plan_in(folder, "gru", ranks))}


def scoring(ranks, folder):
    """The score of a text, of stretches of it, and of one too short for all ranks."""
    corpus = make_corpus(make_text(30_000))
    model = CharRNN(small_plan(folder, corpus).model, seed=1)
    texts = {"whole": (corpus.ids, None), "stretches": (corpus.ids, 5000), "short": (corpus.ids[:1500], None)}
    return {
        name: evaluate(model, ids, context=corpus.ids[:1], num_scored=num_scored, ranks=ranks).nats_per_char
        for name, (ids, num_scored) in texts.items()
    }


def lost(ranks, folder):
    """What a rank says when another is gone."""
    ranks.all_reduce(torch.ones(1))  # all are connected
    if ranks.rank == ranks.size - 1:
        sys.exit(3)
    return {"error": problem(lambda: [ranks.all_reduce(torch.ones(1000)) for _ in range(1000)])}


TASKS = {task.__name__: task for task in (messages, training, sitting, rest, diverging, scoring, lost)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[2])
    with process_group(Ranks.from_environment(), device="cpu") as all_ranks:
        found = TASKS[sys.argv[1]](all_ranks, place)
    (place / f"{all_ranks.rank}.json").write_text(json.dumps(found))
    os._exit(0)  # PyTorch's threads may abort an interpreter that is taken down, which is not the point here
