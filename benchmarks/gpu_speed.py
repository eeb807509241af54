"""How fast a GPU trains: ours beside the loop as people write it, alternating in one process.

    python benchmarks/gpu_speed.py [--device cuda] [--precision auto] [--rounds 5] [--seconds 1.0]
        [--cells rnn,gru,lstm] [--sizes 1x512,2x512,1x1024,3x1024] [--lanes 64,128,256,512,1024] [--json FILE]
    python benchmarks/gpu_speed.py --text FILE [--targets 1.6 1.5 1.45] [--minutes 3]

A step is forward, backward, clipping and a fused AdamW update, on random characters: T = 64,
V = 65, the state carried. The other loop is an embedding, one torch.nn module of all layers
and a head under autocast in the same precision, and it reads the loss after each step; ours is
charrnn.training's. Medians over the rounds; the ratio is the median of each round's own. The last
columns are our rate of floating point operations, that over a large product's in that
precision, and whether our windows were replayed as a CUDA graph, which was faster then. With a
text: how long `charrnn train` takes until the held-out loss is below each target.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from train_speed import EMBEDDING, STEPS, VOCAB, Stock, flops_per_char

from charrnn.cells import select_device, select_precision
from charrnn.config import ModelConfig, Precision, TrainConfig
from charrnn.distributed import ALONE
from charrnn.errors import CharrnnError
from charrnn.lanes import Workers
from charrnn.model import CharRNN
from charrnn.recording import CALLS_BEFORE
from charrnn.state import TrainState
from charrnn.training import HEARD_EVERY, add_up, apply_gradient

PRODUCT = 8192  # rows and columns of the large one


def stock_step(
    cell: str, layers: int, hidden: int, lanes: int, precision: Precision, device: torch.device
) -> Callable[[], None]:
    """A function that makes one step of the loop that people write."""
    model = Stock(cell, layers, hidden).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    x, y = torch.randint(VOCAB, (2, STEPS, lanes), device=device)
    carried: list[Any] = [None]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32"):
            logits, state = model(x, carried[0])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        carried[0] = tuple(part.detach() for part in state) if cell == "lstm" else state.detach()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        loss.item()

    return step


def our_step(workers: Workers, lanes: int, device: torch.device) -> Callable[[], None]:
    """The same as the training loop has it, which hears of the loss now and then."""
    config = TrainConfig(batch_size=lanes, seq_len=STEPS, dropout=0.0, learning_rate=1e-4)
    state, words = TrainState.around(workers.model, config), list[torch.Tensor]()
    x, y = torch.randint(VOCAB, (2, STEPS, lanes), device=device)

    def step() -> None:
        result = workers.window_gradient(x, y, state.hidden, None)
        result, word = add_up(ALONE, result, (False, False))
        words.append(word)
        apply_gradient(state, result, x.numel(), rate=1e-4, grad_clip=1.0)
        state.hidden = result.state
        if len(words) == HEARD_EVERY:
            torch.stack(words).tolist()
            words.clear()

    return step


def finish(device: torch.device) -> None:
    """Wait for what the device still works on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Callable[[], Any], device: torch.device, *, at_least: float) -> float:
    """Seconds a step, over enough of them."""
    step()
    finish(device)
    count, start = 0, time.perf_counter()
    while True:
        for _ in range(10):
            step()
        finish(device)
        count += 10
        if (wall := time.perf_counter() - start) >= at_least:
            return wall / count


def large_product(device: torch.device, precision: Precision, size: int) -> float:
    """Floating point operations a second."""
    a, b = torch.randn(2, size, size, device=device).to(getattr(torch, precision))
    return 2 * size**3 / seconds_of(lambda: a @ b, device, at_least=0.5)


def row(cell: Any, layers: int, hidden: int, lanes: int, options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Both sides, alternating."""
    device, precision = options.device, options.precision
    model = CharRNN(ModelConfig(cell, VOCAB, EMBEDDING, hidden, layers)).to(device)
    stock = stock_step(cell, layers, hidden, lanes, precision, device)
    with Workers(model, num_workers=1, precision=precision) as workers:
        ours = our_step(workers, lanes, device)
        for _ in range(CALLS_BEFORE):  # in which it finds out what is faster
            ours()
        pairs = [
            tuple(seconds_of(step, device, at_least=options.seconds) for step in (ours, stock))
            for _ in range(options.rounds)
        ]
        replayed = workers.replays.is_replayed(torch.Size([STEPS, lanes]))
    chars, took = STEPS * lanes, statistics.median(pair[0] for pair in pairs)
    flops = flops_per_char(cell, layers, hidden) * chars / took
    return {
        "network": f"{cell} {layers}x{hidden}",
        "lanes": lanes,
        "ours": chars / took,
        "stock": chars / statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
        "flops": flops,
        "of_product": flops / rate,
        "replayed": replayed,
    }


def speeds(options: argparse.Namespace) -> None:
    """The table, a line at a time."""
    rate = large_product(options.device, options.precision, options.product)
    name = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {options.precision}; a product of {options.product} cubed: ", end="")
    print(f"{rate / 1e12:.3g} TFLOP/s\n")
    print("| network | lanes | ours, chars/s | stock | ratio | TFLOP/s | of product | replayed |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for size in options.sizes.split(","):
        layers, hidden = map(int, size.split("x"))
        for cell in options.cells.split(","):
            for lanes in map(int, options.lanes.split(",")):
                found = row(cell, layers, hidden, lanes, options, rate)
                rows.append(found)
                cells = [found["network"], f"{lanes}", f"{found['ours']:,.0f}", f"{found['stock']:,.0f}"]
                cells += [
                    f"{found['ratio']:.2f}",
                    f"{found['flops'] / 1e12:.3g}",
                    f"{found['of_product']:.0%}",
                    "yes" if found["replayed"] else "no",
                ]
                print("| " + " | ".join(cells) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"device": name, "product": rate, "rows": rows}, indent=1))


def time_to_targets(options: argparse.Namespace) -> None:
    """Train on a text, and say when the held-out loss, measured on the way, first was below each target."""
    command = [sys.executable, "-m", "charrnn", "train", str(options.text.resolve()), "--minutes", f"{options.minutes}"]
    command += ["--device", str(options.device), "--json", "--quiet"]
    left, start = sorted(options.targets, reverse=True), None
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout
        for line in process.stdout:
            event = json.loads(line)
            start = time.perf_counter() if start is None else start  # the plan is told when all is ready
            while left and event["event"] in ("evaluated", "finished") and event["nats_per_char"] < left[0]:
                took = time.perf_counter() - start
                print(
                    f"{left.pop(0)} nats: {took:.0f} s, step {event['step']} ({event['nats_per_char']:.4f})", flush=True
                )
    if process.returncode:
        raise SystemExit(process.returncode)
    for target in left:
        print(f"{target} nats: not within {options.minutes:g} minutes")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side in a round")
    parser.add_argument("--cells", default="rnn,gru,lstm")
    parser.add_argument("--sizes", default="1x512,2x512,1x1024,3x1024")
    parser.add_argument("--lanes", default="64,128,256,512,1024")
    parser.add_argument("--product", type=int, default=PRODUCT, help="rows and columns of the large product")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--targets", type=float, nargs="+", default=[1.6, 1.5, 1.45])
    parser.add_argument("--minutes", type=float, default=3.0)
    options = parser.parse_args()
    try:
        options.device = select_device(options.device)
        options.precision = select_precision(options.precision, options.device)
    except CharrnnError as error:
        print(f"gpu_speed.py: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    time_to_targets(options) if options.text else speeds(options)


if __name__ == "__main__":
    main()
