"""How fast text is drawn: ours beside PyTorch's own modules stepped in a loop, taking turns.

    python benchmarks/sample_speed.py [--seconds 1.0] [--rounds 5] [--precision float32] [--json FILE]

One stream and 64 side by side, V = 65, random weights, all the process's cores for both;
medians over the rounds. PyTorch's side is a process of its own for each size, which loads
its weights from a file as a person's script would: in one process, what ours leaves behind
in malloc changes the speed of its LSTM by a factor of four.

The last column is the weights read per second over what as many threads read when they sum
an array of the same size: how much of the memory's speed is used. Where streams share a
pass over the weights it says nothing and is left out.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from charrnn.config import ModelConfig, SampleConfig
from charrnn.data.vocab import Vocab
from charrnn.model.file import ModelFile
from charrnn.model.network import CharRNN
from charrnn.sampling.sampler import Sampler

SIZES = [("gru", 2, 128), ("gru", 2, 256), ("gru", 2, 512), ("lstm", 2, 128), ("lstm", 2, 256), ("lstm", 2, 512)]


def ours(sampler: Sampler, count: int, batch: int) -> float:
    """Seconds for `count` characters of each of so many streams."""
    start = time.perf_counter()
    for stream in sampler.streams(SampleConfig(length=count, seed=1, num_samples=batch)):
        for _ in stream:
            pass
    return time.perf_counter() - start


@torch.inference_mode()
def serve_stock(cell: str, layers: int, hidden: int, batch: int, path: str) -> None:
    """For each number on stdin, draw so many characters of each stream by the usual loop and print the seconds."""
    embedding = torch.nn.Embedding(65, 64)
    rnn = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](64, hidden, num_layers=layers)
    head = torch.nn.Linear(hidden, 65)
    network = torch.nn.ModuleList([embedding, rnn, head])
    if not Path(path).exists():
        torch.save(network.state_dict(), path)
    network.load_state_dict(torch.load(path))
    for line in sys.stdin:
        x, state = torch.zeros(1, batch, dtype=torch.int64), None
        start = time.perf_counter()
        for _ in range(int(line)):
            y, state = rnn(embedding(x), state)
            x = torch.multinomial(torch.softmax(head(y[0]) / 0.8, -1), 1).T
        print(time.perf_counter() - start, flush=True)


@contextmanager
def stock(cell: str, layers: int, hidden: int, batch: int) -> Any:
    """A function of the number of characters, answered by a process that does nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--stock", cell, str(layers), str(hidden), str(batch), f"{folder}/weights.pt"]
        child = subprocess.Popen(
            [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdin
        assert child.stdout

        def seconds(count: int) -> float:
            print(count, file=child.stdin, flush=True)
            return float(child.stdout.readline())

        try:
            seconds(1)  # it has started, and leaves the cores to us
            yield seconds
        finally:
            child.stdin.close()
            child.wait()
            child.stdout.close()


@numba.njit(nogil=True, fastmath=True)
def read(array: np.ndarray, times: int) -> float:
    """Read all of an array (4, n) so many times, at four places at once, so that it waits for memory alone."""
    total = np.float32(0.0)
    for _ in range(times):
        for i in range(array.shape[1]):
            total += (array[0, i] + array[1, i]) + (array[2, i] + array[3, i])
    return total


def read_rate(num_bytes: int, threads: int) -> float:
    """Bytes a second that so many threads read from an array of this size, each its part again and again."""
    arrays = [np.ones((4, num_bytes // 16 // threads), np.float32) for _ in range(threads)]
    times = int(4e9) // num_bytes
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(7):
            start = time.perf_counter()
            list(pool.map(lambda array: read(array, times), arrays))
            rates.append(times * num_bytes / (time.perf_counter() - start))
    return statistics.median(rates)


def count_for(draw: Callable[[int], float], seconds: float) -> int:
    """How many characters take so long, from draws long enough that starting them doesn't count."""
    count = 20
    while (took := draw(count)) < seconds / 4:
        count = 1 + int(count * min(10, seconds / took))
    return int(count * seconds / took)


def measure(sampler: Sampler, batch: int, seconds: float, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    config = sampler.config
    ours(sampler, 50, batch)  # compiles what isn't
    with stock(config.cell, config.num_layers, config.hidden_size, batch) as theirs:
        counts = count_for(lambda count: ours(sampler, count, batch), seconds), count_for(theirs, seconds)
        fast, slow = [], []
        for _ in range(rounds):
            fast.append(batch * counts[0] / ours(sampler, counts[0], batch))
            slow.append(batch * counts[1] / theirs(counts[1]))
    row = {"cell": config.cell, "layers": config.num_layers, "hidden": config.hidden_size, "streams": batch}
    row |= {"threads": len(sampler.engine.shards), "ours": statistics.median(fast), "stock": statistics.median(slow)}
    row["ratio"] = statistics.median(a / b for a, b in zip(fast, slow, strict=True))
    if batch == 1:
        parts = sampler.engine.shards
        read_whole = ("input", "recurrent", "bias", "inner_bias", "head", "head_bias")
        num_bytes = sum(p.table[0].nbytes + sum(getattr(p, name).nbytes for name in read_whole) for p in parts)
        row["bytes_per_second"] = row["ours"] * num_bytes
        row["share_of_read_rate"] = row["bytes_per_second"] / read_rate(num_bytes, len(parts))
    return row


def show(row: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [f"{row['cell']} {row['layers']}x{row['hidden']}", row["streams"], row["threads"]]
    cells += [f"{row['ours']:,.0f}", f"{row['stock']:,.0f}", f"{row['ratio']:.1f}"]
    if "bytes_per_second" in row:
        cells += [f"{row['bytes_per_second'] / 1e9:.1f}", f"{row['share_of_read_rate']:.0%}"]
    else:
        cells += ["", ""]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each side in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of our weights")
    parser.add_argument("--stock", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stock:
        cell, *numbers, path = options.stock
        serve_stock(cell, *map(int, numbers), path)
        return
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    print(f"{machine}; torch {torch.__version__}, {torch.get_num_threads()} threads; ours in {options.precision}\n")
    print(
        "| cell, size | streams | threads | ours, chars/s | stock, chars/s | ratio | weights GB/s | of the read rate |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for batch, (cell, layers, hidden) in itertools.product([1, 64], SIZES):
        config = ModelConfig(cell=cell, vocab_size=65, embedding_dim=64, hidden_size=hidden, num_layers=layers)
        arrays = CharRNN(config, seed=1).to_arrays()
        sampler = Sampler(
            ModelFile(config, Vocab("".join(map(chr, range(33, 98)))), arrays, {}, {}), precision=options.precision
        )
        rows.append(measure(sampler, batch, options.seconds, options.rounds))
        print(show(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
