"""How fast text is drawn: ours beside PyTorch's own modules stepped in a loop, alternating in one process.

    python benchmarks/sample_speed.py [--seconds 1.0] [--rounds 5] [--precision float32] [--json FILE]

One stream and 64 side by side, V = 65, random weights, all the process's cores for both;
medians over the rounds. The last column is the weights read per second over what as many
threads read when they sum an array of the same size: how much of the memory's speed is used.
Where streams share a pass over the weights it says nothing and is left out.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from charrnn.checkpoint import ModelFile
from charrnn.config import ModelConfig
from charrnn.model import CharRNN
from charrnn.sampling import Sampler
from charrnn.vocab import Vocab

SIZES = [("gru", 2, 128), ("gru", 2, 256), ("gru", 2, 512), ("lstm", 2, 128), ("lstm", 2, 256), ("lstm", 2, 512)]


def ours(sampler: Sampler, count: int, batch: int) -> float:
    """Seconds for `count` characters of each of so many streams."""
    start = time.perf_counter()
    for stream in sampler.streams(length=count, seed=1, num_samples=batch):
        for _ in stream:
            pass
    return time.perf_counter() - start


@torch.inference_mode()
def stock(model: CharRNN, count: int, batch: int) -> float:
    """The same by the usual loop: embedding, torch.nn layers, head, softmax, multinomial."""
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[model.config.cell]
    rnn = kind(model.config.embedding_dim, model.config.hidden_size, num_layers=model.config.num_layers)
    x, state = torch.zeros(1, batch, dtype=torch.int64), None
    start = time.perf_counter()
    for _ in range(count):
        y, state = rnn(model.embedding(x), state)
        x = torch.multinomial(torch.softmax(model.head(y[0]) / 0.8, -1), 1).T
    return time.perf_counter() - start


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


def compare(sampler: Sampler | None, fast: list[float], slow: list[float]) -> dict[str, float]:
    """What the rounds come to; with a sampler, how much of the memory's speed it used."""
    row = {"ours": statistics.median(fast), "stock": statistics.median(slow)}
    row["ratio"] = statistics.median(a / b for a, b in zip(fast, slow, strict=True))
    if sampler:
        parts = sampler.crew.parts
        num_bytes = sum(part.table[0].nbytes + sum(array.nbytes for array in part[4:]) for part in parts)
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
    options = parser.parse_args()
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    print(f"{machine}; torch {torch.__version__}, {torch.get_num_threads()} threads; ours in {options.precision}\n")
    print(
        "| cell, size | streams | threads | ours, chars/s | stock, chars/s | ratio | weights GB/s | of the read rate |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for batch, (cell, layers, hidden) in itertools.product([1, 64], SIZES):
        config = ModelConfig(cell=cell, vocab_size=65, embedding_dim=64, hidden_size=hidden, num_layers=layers)
        model = CharRNN(config, seed=1)
        file = ModelFile(config, Vocab("".join(map(chr, range(33, 98)))), model.to_arrays(), {}, {})
        sampler = Sampler(file, precision=options.precision)
        ours(sampler, 50, batch)  # compiles what isn't
        counts = (
            max(20, int(200 * options.seconds / ours(sampler, 200, batch))),
            max(20, int(50 * options.seconds / stock(model, 50, batch))),
        )
        speeds: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            speeds[0].append(batch * counts[0] / ours(sampler, counts[0], batch))
            speeds[1].append(batch * counts[1] / stock(model, counts[1], batch))
        row = {"cell": cell, "layers": layers, "hidden": hidden, "streams": batch, "threads": len(sampler.crew.parts)}
        row |= compare(sampler, *speeds) if batch == 1 else compare(None, *speeds)
        rows.append(row)
        print(show(row))
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
