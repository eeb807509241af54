"""How fast a training step is: ours beside PyTorch's own recurrent modules, alternating in one process.

    python benchmarks/train_speed.py [--rounds 7] [--seconds 1.0] [--precision auto] [--cells gru,lstm,rnn]
        [--sizes 2x128,2x256,2x512,1x1024] [--lanes B] [--dropout P] [--threads N] [--json FILE]

A step is forward, backward, clipping, a fused AdamW update and the average of the weights, on random characters:
T = 64, V = 65, the state carried. Stock is an embedding, a torch.nn module and a head with
cross-entropy, in float32 and under bfloat16 autocast, without an average. --dropout drops outputs and recurrent
weights in our steps only, as training does by default. Medians over the rounds; the ratios
are medians of each round's own. The last column is our rate of floating point
operations over that of a large product of PyTorch in the same precision, before and after the row.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does; it is read when torch is imported

import torch
from torch import nn

from charrnn.config import NUM_GATES, Cell, ModelConfig, Precision, TrainConfig
from charrnn.hardware import available_cores, count_workers, select_precision, set_torch_threads
from charrnn.model.gradients import Workers
from charrnn.model.layers import LAYERS
from charrnn.model.network import CharRNN
from charrnn.numerics.processor import has_fast_bfloat16
from charrnn.training.optimizer import apply_gradient, dropout_masks, weight_masks
from charrnn.training.state import TrainState

SIZES = "2x128,2x256,2x512,1x1024"  # layers, hidden size
STEPS, VOCAB, EMBEDDING = 64, 65, 64


def flops_per_char(cell: str, layers: int, hidden: int) -> float:
    """Multiplications and additions of a step's products, for one character, forward and twice that back.

    The first layer's input is a row of a table, so its projection isn't counted.
    """
    return 3 * 2 * (NUM_GATES[cell] * hidden * hidden * (2 * layers - 1) + VOCAB * hidden)


class Stock(nn.Module):
    """The network as people write it."""

    def __init__(self, cell: str, layers: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, EMBEDDING)
        self.rnn = LAYERS[cell](EMBEDDING, hidden, num_layers=layers)
        self.head = nn.Linear(hidden, VOCAB)

    def forward(self, x: torch.Tensor, state: Any) -> Any:
        """Logits (T, B, V) and the state."""
        y, state = self.rnn(self.embedding(x), state)
        return self.head(y), state


def stock_step(cell: str, layers: int, hidden: int, lanes: int, *, autocast: bool) -> Callable[[], float]:
    """A function that makes one step and returns the loss."""
    model = Stock(cell, layers, hidden)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x, y = torch.randint(VOCAB, (2, STEPS, lanes))
    carried: list[Any] = [None]

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits, state = model(x, carried[0])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        carried[0] = tuple(part.detach() for part in state) if cell == "lstm" else state.detach()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def our_step(workers: Workers, lanes: int, dropout: float = 0.0) -> Callable[[], float]:
    """The same with our kernels, as the training loop has it."""
    config = TrainConfig(batch_size=lanes, seq_len=STEPS, dropout=dropout, weight_drop=dropout, learning_rate=1e-4)
    state = TrainState.initial(workers.model, config)
    x, y = torch.randint(VOCAB, (2, STEPS, lanes))

    def step() -> float:
        masks = dropout_masks(state, config), weight_masks(state, config)
        result = workers.compute(x, y, state.hidden, *masks)
        apply_gradient(state, result.gradient, result.nats, x.numel(), rate=1e-4, grad_clip=1.0)
        state.hidden = result.state
        state.step += 1
        state.update_ema(1.0)
        return result.nats / x.numel()

    return step


def large_product(dtype: torch.dtype, size: int) -> float:
    """Floating point operations a second."""
    a, b = torch.randn(2, size, size).to(dtype)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return statistics.median(rates)


def timed(step: Callable[[], float], count: int) -> tuple[float, float]:
    """Seconds a step over `count` of them, and the cores it kept busy."""
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    wall = time.perf_counter() - start
    return wall / count, (time.process_time() - cpu) / wall


def lock_held() -> float:
    """Seconds a window holds Python's lock at most: one of a network so small that nothing else takes time."""
    model = CharRNN(ModelConfig("gru", VOCAB, 1, 1, 2))
    with Workers(model, num_workers=1, precision="float32") as workers:
        step = our_step(workers, 1)
        timed(step, 20)
        return timed(step, 200)[0]


def peak_memory(*arguments: object) -> int:
    """Bytes that a few steps add to a process's peak memory, in a process of its own."""
    code = f"from train_speed import *; print(added_memory{arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, check=True)
    return int(done.stdout)


def added_memory(side: str, cell: Cell, layers: int, hidden: int, lanes: int, precision: Precision) -> int:
    """What a few steps add to this process's peak memory (Linux)."""
    peaks = []
    for size, batch in ((8, 8), (hidden, lanes)):  # the small one loads and compiles all there is
        if side == "ours":
            model = CharRNN(ModelConfig(cell, VOCAB, EMBEDDING, size, layers))
            with workers_for(model, batch, available_cores(), precision) as workers:
                timed(our_step(workers, batch), 3)
        else:
            timed(stock_step(cell, layers, size, batch, autocast=side == "autocast"), 3)
        status = Path("/proc/self/status").read_text()
        peaks.append(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024)
    return peaks[1] - peaks[0]


def workers_for(model: CharRNN, lanes: int, threads: int, precision: Precision) -> Workers:
    """As many as training would take."""
    return Workers(model, num_workers=count_workers(lanes, device="cpu", threads=threads), precision=precision)


def measure(cell: str, layers: int, hidden: int, lanes: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    model = CharRNN(ModelConfig(cell, VOCAB, EMBEDDING, hidden, layers), seed=1)
    with workers_for(model, lanes, options.threads, options.precision) as workers:
        steps = {
            "ours": our_step(workers, lanes, options.dropout),
            "float32": stock_step(cell, layers, hidden, lanes, autocast=False),
        }
        if has_fast_bfloat16():
            steps["autocast"] = stock_step(cell, layers, hidden, lanes, autocast=True)
        counts = {}
        for name, step in steps.items():
            timed(step, 3)
            counts[name] = max(2, round(options.seconds / timed(step, 2)[0]))
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        busy: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.rounds):
            for name, step in steps.items():
                wall, cores = timed(step, counts[name])
                seconds[name].append(wall)
                busy[name].append(cores)
    row: dict[str, Any] = {"cell": cell, "layers": layers, "hidden": hidden, "lanes": lanes}
    row["workers"] = workers.num_workers
    for name in steps:
        row[f"{name}_chars_per_second"] = lanes * STEPS / statistics.median(seconds[name])
        row[f"{name}_cores"] = statistics.median(busy[name])
    for name in list(steps)[1:]:
        row[f"over_{name}"] = statistics.median(
            slow / fast for slow, fast in zip(seconds[name], seconds["ours"], strict=True)
        )
    row["flops"] = row["ours_chars_per_second"] * flops_per_char(cell, layers, hidden)
    return row


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each side in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--cells", default="gru,lstm,rnn")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--lanes", type=int, help="by default 64, and 32 for 128 units")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--product", type=int, default=4096, help="rows and columns of the large product")
    parser.add_argument("--json", type=Path, default=Path("train_speed.json"))
    options = parser.parse_args()
    options.precision = select_precision(options.precision)
    set_torch_threads(options.threads)
    kinds = {"float32": torch.float32}
    if has_fast_bfloat16():  # where it is emulated, nobody would wait for it
        kinds["bfloat16"] = torch.bfloat16
    ceilings = {name: [large_product(dtype, options.product)] for name, dtype in kinds.items()}
    machine = f"{platform.processor() or platform.machine()}, {available_cores()} cores"
    print(f"{machine}; torch {torch.__version__}, {torch.get_num_threads()} threads; ours in {options.precision}")
    print(
        f"products of {options.product} cubed: "
        + ", ".join(f"{name} {rates[0] / 1e9:.0f} GFLOP/s" for name, rates in ceilings.items())
    )
    print(f"Python's lock is held for at most {lock_held() * 1e3:.1f} ms a step and worker\n")
    autocast = has_fast_bfloat16()
    head = ["cell, size", "ours, chars/s", "nn float32", *["autocast"] * autocast]
    head += ["over float32", *["over autocast"] * autocast, "GFLOP/s", "of product"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    rows = []
    for cell in options.cells.split(","):
        for size in options.sizes.split(","):
            layers, hidden = map(int, size.split("x"))
            lanes = options.lanes or (32 if hidden <= 128 else 64)
            row = measure(cell, layers, hidden, lanes, options)
            ceilings[options.precision].append(large_product(kinds[options.precision], options.product))  # it drifts
            row["share_of_product"] = row["flops"] / statistics.mean(ceilings[options.precision][-2:])
            rows.append(row)
            sides = [name for name in ("ours", "float32", "autocast") if f"{name}_cores" in row]
            speeds = " | ".join(f"{row[f'{name}_chars_per_second']:,.0f}" for name in sides)
            ratios = " | ".join(f"{row[f'over_{name}']:.2f}" for name in sides[1:])
            share = f"{row['flops'] / 1e9:.0f} | {row['share_of_product']:.0%}"
            print(f"| {cell} {layers}x{hidden} | {speeds} | {ratios} | {share} |", flush=True)
    busy = min(row[f"{name}_cores"] for row in rows for name in sides[1:])
    print(f"\nnn kept at least {busy:.2f} of {options.threads} cores busy in every row")
    memory = {side: peak_memory(side, "gru", 2, 512, 64, options.precision) for side in sides}
    print("\npeak memory of a step, gru 2x512: " + ", ".join(f"{k} {v / 2**20:.0f} MiB" for k, v in memory.items()))
    facts = {"machine": machine, "torch": torch.__version__, "precision": options.precision, "products": ceilings}
    options.json.write_text(json.dumps({**facts, "peak_memory": memory, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
