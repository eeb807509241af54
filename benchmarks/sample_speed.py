"""How fast text is drawn: ours beside PyTorch's own modules stepped in a loop, alternating in one process.

    python benchmarks/sample_speed.py [--seconds 1.0] [--rounds 5] [--json FILE]

One stream (batch 1), V = 65, random weights; medians over the rounds. The last column is the
weights read per second over what this machine reads when it sums an array of the same size:
how much of the memory's speed is used.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numba
import numpy as np
import torch

from charrnn.checkpoint import ModelFile
from charrnn.config import ModelConfig
from charrnn.model import CharRNN
from charrnn.sampling import Sampler
from charrnn.vocab import Vocab

SIZES = [("gru", 2, 128), ("gru", 2, 256), ("gru", 2, 512), ("lstm", 2, 128), ("lstm", 2, 256), ("lstm", 2, 512)]


def ours(sampler: Sampler, count: int) -> float:
    """Seconds for `count` characters."""
    start = time.perf_counter()
    for _ in sampler.stream(length=count, seed=1):
        pass
    return time.perf_counter() - start


@torch.inference_mode()
def stock(model: CharRNN, count: int) -> float:
    """The same by the usual loop: embedding, torch.nn layers, head, softmax, multinomial."""
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[model.config.cell]
    rnn = kind(model.config.embedding_dim, model.config.hidden_size, num_layers=model.config.num_layers)
    x, state = torch.zeros(1, 1, dtype=torch.int64), None
    start = time.perf_counter()
    for _ in range(count):
        y, state = rnn(model.embedding(x), state)
        x = torch.multinomial(torch.softmax(model.head(y[0]) / 0.8, -1), 1)
    return time.perf_counter() - start


@numba.njit(nogil=True, fastmath=True)
def read_once(array: np.ndarray) -> float:
    """Sum an array, which reads all of it."""
    total = np.float32(0.0)
    for i in range(len(array)):
        total += array[i]
    return total


def read_rate(num_bytes: int) -> float:
    """Bytes a second that one thread reads from an array of this size, again and again."""
    array = np.ones(num_bytes // 4, np.float32)
    read_once(array)
    rates = []
    for _ in range(15):
        start = time.perf_counter()
        for _ in range(10):
            read_once(array)
        rates.append(10 * num_bytes / (time.perf_counter() - start))
    return statistics.median(rates)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each side in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    print(f"{machine}; torch {torch.__version__}, {torch.get_num_threads()} threads for it, one for ours\n")
    print("| cell, size | ours, chars/s | stock, chars/s | ratio | weights GB/s | of the read rate |")
    print("|---|---|---|---|---|---|")
    rows = []
    for cell, layers, hidden in SIZES:
        config = ModelConfig(cell=cell, vocab_size=65, embedding_dim=64, hidden_size=hidden, num_layers=layers)
        model = CharRNN(config, seed=1)
        sampler = Sampler(ModelFile(config, Vocab("".join(map(chr, range(33, 98)))), model.to_arrays(), {}, {}))
        ours(sampler, 50)  # compiles what isn't
        counts = (
            max(50, int(200 * options.seconds / ours(sampler, 200))),
            max(50, int(50 * options.seconds / stock(model, 50))),
        )
        speeds: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            speeds[0].append(counts[0] / ours(sampler, counts[0]))
            speeds[1].append(counts[1] / stock(model, counts[1]))
        fast, slow = (statistics.median(values) for values in speeds)
        ratio = statistics.median(a / b for a, b in zip(*speeds, strict=True))
        weights = sampler.weights
        num_bytes = sum(a.nbytes for a in weights[2:]) + weights.table[0].nbytes
        share = fast * num_bytes / read_rate(num_bytes)
        rows.append(
            {"cell": cell, "layers": layers, "hidden": hidden, "ours": fast, "stock": slow, "ratio": ratio}
            | {"bytes_per_second": fast * num_bytes, "share_of_read_rate": share}
        )
        rate = fast * num_bytes / 1e9
        print(f"| {cell} {layers}x{hidden} | {fast:,.0f} | {slow:,.0f} | {ratio:.1f} | {rate:.1f} | {share:.0%} |")
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
