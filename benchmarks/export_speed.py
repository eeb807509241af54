"""How fast an exported page writes, how large it is and what it loses, in Node and in Chromium.

    python benchmarks/export_speed.py [MODEL] [--chars 1000] [--rounds 5]

MODEL is a run's name or a model file; without it the newest model in ./checkpoints. The page's engine, in its worker,
and `charrnn sample` on one thread take turns; medians over the rounds. The speed in the last columns is per second of
drawing. The bits are those that `charrnn export` prints.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import time
from typing import Any

from charrnn.cli.export import find_held_out, write_text
from charrnn.config import PAGE_PRECISIONS, SampleConfig
from charrnn.events import bits
from charrnn.model.file import load_model
from charrnn.pages.export import StoredModel, engine_source, pack, render_player, store_model
from charrnn.runs.models import find_model
from charrnn.sampling.likelihood import text_nats
from charrnn.sampling.sampler import Sampler

NODE = """
const vm = require("vm");
let input = "";
process.stdin.on("data", (chunk) => { input += chunk; }).on("end", async () => {
  const { source, payload, message } = JSON.parse(input);
  vm.runInThisContext(source);
  const receive = serve((one) => {
    if (one.type === "text") receive({ type: "seen", job: one.job });
    if (one.type === "done") { console.log(one.count / one.seconds); process.exit(0); }
  });
  await receive({ type: "load", payload });
  receive(message);
});
"""
CHROMIUM = """([source, payload, message]) => new Promise((resolve) => {
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => {
    if (data.type === "ready") worker.postMessage(message);
    if (data.type === "text") worker.postMessage({ type: "seen", job: data.job });
    if (data.type === "done") { worker.terminate(); resolve(data.count / data.seconds); }
  };
  worker.postMessage({ type: "load", payload });
})"""


def message(num_chars: int) -> dict[str, Any]:
    """What asks the engine for a text."""
    filters = {"temperature": 0.8, "topK": 0, "topP": 1, "minP": 0, "noRepeat": 0}
    return {"type": "write", "job": 1, "prompt": "", "settings": {"length": num_chars, "seed": "1", **filters}}


def node_speed(stored: StoredModel, num_chars: int) -> float:
    """Characters per second of the engine in Node."""
    facts = {"source": engine_source(), "payload": pack(stored), "message": message(num_chars)}
    done = subprocess.run(["node", "-e", NODE], input=json.dumps(facts), capture_output=True, text=True, check=True)
    return float(done.stdout)


def chromium_speed(stored: StoredModel, num_chars: int) -> float:
    """Characters per second of the engine in a worker of headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page()
        found = page.evaluate(CHROMIUM, [engine_source(), pack(stored), message(num_chars)])
        browser.close()
    return float(found)


def sampler_speed(sampler: Sampler, num_chars: int) -> float:
    """Characters per second of `charrnn sample` on one thread."""
    began = time.perf_counter()
    for _ in sampler.stream(SampleConfig(length=num_chars, seed=1)):
        pass
    return num_chars / (time.perf_counter() - began)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--chars", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    path = find_model(options.model)
    file = load_model(path)
    ids, context = find_held_out(path, file) or write_text(file)
    exact = text_nats(file, ids, context=context).mean()
    print(f"{path}: {bits(exact):.4f} bits on {len(ids):,} characters\n")
    print("| format | n-grams | page, MB | network alone | bits lost | Node, chars/s | Chromium | of `sample` |")
    print("|---|---|---|---|---|---|---|---|")
    for precision in PAGE_PRECISIONS:
        stored, network = (store_model(file, precision, max_ngram_bytes=size) for size in (None, 0))
        sizes = [len(render_player(one, path.parent.name, ())) / 1e6 for one in (stored, network)]
        lost = text_nats(stored.rounded, ids, context=context).mean() - exact
        sampler = Sampler(stored.rounded, threads=1)
        sampler_speed(sampler, 100)
        rows = []
        for _ in range(options.rounds):
            ours = sampler_speed(sampler, options.chars)
            rows.append((node_speed(stored, options.chars), chromium_speed(stored, options.chars), ours))
        node, chromium, ours = (statistics.median(column) for column in zip(*rows, strict=True))
        order = f"up to {stored.exact.ngram_order}" if stored.exact.ngram_order else "none"
        cells = [precision, order, f"{sizes[0]:.2f}", f"{sizes[1]:.2f}", f"{round(bits(lost), 4) + 0.0:.4f}"]
        print(
            "| " + " | ".join([*cells, f"{node:,.0f}", f"{chromium:,.0f}", f"{chromium / ours:.3f}"]) + " |", flush=True
        )


if __name__ == "__main__":
    main()
