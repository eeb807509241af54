"""What several processes cost and bring: steps and messages, measured; more of them, calculated.

    python benchmarks/scaling.py [--cell gru] [--size 1x512] [--lanes 32] [--processes 1 2 4] [--rounds 5] [--json FILE]

Each process has one thread and its share of the lanes, as under torchrun on this machine. The
first table is measured; its column "expected" is the model that the second one, for machines
that aren't here, is calculated with. The model knows what one process alone takes for a
window of 1, 1/2, 1/4 … of the lanes and for the update of the weights, and a line through the
times of messages of two lengths between two processes; nothing of what it is compared with.
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does; it is read when torch is imported

import torch

from charrnn.config import ModelConfig, TrainConfig
from charrnn.distributed import Ranks, process_group
from charrnn.hardware import available_cores, select_precision, set_torch_threads
from charrnn.model.gradients import Workers
from charrnn.model.network import CharRNN
from charrnn.training.loop import add_ranks
from charrnn.training.optimizer import apply_gradient
from charrnn.training.state import TrainState

STEPS, VOCAB, EMBEDDING = 64, 65, 64
SHORT = 16  # numbers, a message of which is all delay
NETWORKS = {  # seconds of delay and bytes a second, of each of a machine's ends: round figures of data sheets
    "1 Gbit/s Ethernet": (50e-6, 0.11e9),
    "10 Gbit/s Ethernet": (30e-6, 1.1e9),
    "100 Gbit/s": (5e-6, 11e9),
}


def median_time(ranks: Ranks, do: Callable[[], Any], *, seconds: float = 0.6) -> float:
    """Seconds that it takes, the median of many times; as many in all ranks."""
    do()
    start = time.perf_counter()
    do()
    count = max(5, int(seconds / max(1e-6, time.perf_counter() - start)))
    count = ranks.broadcast_number(count)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        do()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(options: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """In each of some processes: seconds of a whole step, of its parts, and of messages."""
    layers, hidden = map(int, options.size.split("x"))
    set_torch_threads(1)
    precision = select_precision("auto")
    model = CharRNN(ModelConfig(options.cell, VOCAB, EMBEDDING, hidden, layers))
    found: dict[str, Any] = {"parameters": model.config.num_parameters, "precision": precision, "window": {}}
    config = TrainConfig(batch_size=options.lanes, seq_len=STEPS, dropout=0.0, learning_rate=1e-4)
    with Workers(model, num_workers=1, precision=precision) as workers:

        def window(lanes: int) -> Callable[[], Any]:
            x, y = torch.randint(VOCAB, (2, STEPS, lanes))
            state = model.initial_state(lanes)
            return lambda: workers.compute(x, y, state)

        own = ranks.lanes(options.lanes)
        state = TrainState.initial(model, config, ranks)
        mine = window(own.stop - own.start)
        gradient, short = torch.zeros(model.config.num_parameters), torch.zeros(SHORT)

        def step() -> None:
            result = mine()
            nats, _, _ = add_ranks(ranks, result, False, False)
            apply_gradient(state, result.gradient, nats, STEPS * options.lanes, rate=1e-5, grad_clip=1.0)

        result = mine()
        if ranks.size == 1:
            for parts in (1, 2, 4, 8):
                if options.lanes // parts:
                    found["window"][options.lanes // parts] = median_time(ranks, window(options.lanes // parts))
        found["update"] = median_time(
            ranks,
            lambda: apply_gradient(
                state, result.gradient, result.nats, STEPS * options.lanes, rate=1e-5, grad_clip=1.0
            ),
        )
        found["short"], found["long"] = (median_time(ranks, lambda t=t: ranks.all_reduce(t)) for t in (short, gradient))
        found["own"] = median_time(ranks, mine)
        found["step"] = median_time(ranks, step, seconds=1.5)
    return found


def spread_over(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure in so many processes; what the first found."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    common["LOCAL_WORLD_SIZE"] = str(size)
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "found.json")
        command = [sys.executable, __file__, *sys.argv[1:], "--one-of-them", target]
        processes = [
            subprocess.Popen(command, env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(size)
        ]
        ends = [process.wait() for process in processes]
        if any(ends):
            raise SystemExit("a process failed")
        found: dict[str, Any] = json.loads(Path(target).read_text())
        return found


class Model:
    """Seconds of a step, by what one process alone and two messages took."""

    def __init__(self, alone: dict[str, Any], two: dict[str, Any], lanes: int, cores: int) -> None:
        self.alone, self.lanes, self.cores = alone, lanes, cores
        self.bytes = 4 * alone["parameters"]
        # a message goes round a ring: 2 (W - 1) parts of 1/W of it
        self.delay = two["short"] / 2
        self.speed = self.bytes / max(1e-9, two["long"] - two["short"])

    def window(self, lanes: float) -> float:
        """By a line through what was measured, which is flat where few lanes cost no less."""
        points = sorted((int(count), seconds) for count, seconds in self.alone["window"].items())
        if lanes <= points[0][0]:
            return points[0][1]
        for (low, first), (high, second) in itertools.pairwise(points):
            if lanes <= high:
                return first + (second - first) * (lanes - low) / (high - low)
        return points[-1][1] * lanes / points[-1][0]

    def message(self, size: int, delay: float, speed: float) -> float:
        """The sum of all gradients, in all processes."""
        return 2 * (size - 1) * (delay + self.bytes / size / speed)

    def step(self, size: int, lanes: float, *, delay: float, speed: float, cores: float) -> float:
        """Of so many processes with so many lanes each. cores: they share; inf: each has its own."""
        return (self.window(lanes) + self.alone["update"]) * max(1.0, size / cores) + self.message(size, delay, speed)

    def here(self, size: int) -> float:
        """The same on this machine, where a message passes through the memory that all share."""
        crowd = max(1.0, size / self.cores)
        lanes = -(-self.lanes // size)
        return self.step(size, lanes, delay=self.delay * crowd, speed=self.speed / crowd, cores=self.cores)

    def own(self, size: int) -> float:
        """A window of one process's lanes here."""
        return self.window(-(-self.lanes // size)) * max(1.0, size / self.cores)


def measured_table(found: dict[int, dict[str, Any]], model: Model) -> list[str]:
    """One line a number of processes."""
    lines = [
        "| processes | characters a second | step, ms | expected | window, ms | expected | messages, ms | expected |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size, facts in found.items():
        crowd = max(1.0, size / model.cores)
        message = model.message(size, model.delay * crowd, model.speed / crowd)
        rate = STEPS * model.lanes / facts["step"]
        cells = [f"{size}", f"{rate:,.0f}"]
        pairs = (facts["step"], model.here(size)), (facts["own"], model.own(size)), (facts["long"], message)
        cells += [f"{1e3 * seconds:.1f}" for pair in pairs for seconds in pair]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def calculated_table(model: Model) -> list[str]:
    """Efficiency over many machines, of the same lanes shared out and of as many for each."""
    sizes = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    lines = ["| | " + " | ".join(f"{size}" for size in sizes) + " |", "|---|" + "---|" * len(sizes)]
    one = model.step(1, model.lanes, delay=0, speed=1, cores=float("inf"))
    for name, (delay, speed) in NETWORKS.items():
        for shared in (True, False):
            cells = []
            for size in sizes:
                if shared and size > model.lanes:
                    cells.append("–")
                    continue
                lanes = model.lanes / size if shared else model.lanes
                step = model.step(size, lanes, delay=delay, speed=speed, cores=float("inf"))
                gain = (one / step) / size if shared else one / step
                cells.append(f"{gain:.0%}")
            what = f"{model.lanes} lanes shared" if shared else f"{model.lanes} lanes each"
            lines.append(f"| {name}, {what} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Measure, compare with the model, calculate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=["rnn", "gru", "lstm"], default="gru")
    parser.add_argument("--size", default="1x512", help="layers x units")
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5, help="of which the median of each figure is taken")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one-of-them", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_of_them:
        with process_group(Ranks.from_environment(), device="cpu") as ranks:
            facts = measure(options, ranks)
        if ranks.is_first:
            options.one_of_them.write_text(json.dumps(facts))
        os._exit(0)  # once in some dozens of times PyTorch's threads abort an interpreter that is taken down
    sizes = sorted({1, 2, *options.processes})
    rounds = [{size: spread_over(size, options) for size in sizes} for _ in range(options.rounds)]
    found = {size: middle([each[size] for each in rounds]) for size in sizes}
    model = Model(found[1], found[2], options.lanes, available_cores())
    print(f"{options.cell} {options.size}, {found[1]['parameters']:,} parameters, {found[1]['precision']}, ", end="")
    print(f"{options.lanes} lanes of {STEPS}; {model.cores} cores; median of {options.rounds} rounds\n")
    print("\n".join(measured_table(found, model)), end="\n\n")
    print("a window of one process alone, ms: ", end="")
    print(f"update {1e3 * found[1]['update']:.1f}, ", end="")
    print(", ".join(f"{lanes} lanes {1e3 * took:.1f}" for lanes, took in found[1]["window"].items()))
    print(f"between two: {1e6 * model.delay:.0f} µs a message, {model.speed / 1e9:.2f} GB/s\n")
    print("How much of so many machines' time is used, each with one such process:\n")
    print("\n".join(calculated_table(model)))
    if options.json:
        options.json.write_text(json.dumps({"lanes": options.lanes, "rounds": rounds}, indent=1))


def middle(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds."""
    found = dict(facts[0])
    for name, value in facts[0].items():
        if isinstance(value, float):
            found[name] = statistics.median(each[name] for each in facts)
        elif isinstance(value, dict):
            found[name] = middle([each[name] for each in facts])
    return found


if __name__ == "__main__":
    main()
