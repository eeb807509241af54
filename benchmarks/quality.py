"""How well `charrnn train TEXT --minutes M` predicts, without any other flag.

    python benchmarks/quality.py [TEXT…] [--minutes 1 3 10] [--seeds 3] [--folder quality] [--train OPTIONS…]

For each text, budget and seed one run of the command itself; what it prints is the table:
the held-out figure of the kept weights, mean and largest distance from it over the seeds;
characters seen (passes over the text), parameters, wall time, peak memory. `default` among
the minutes is the command without that flag. Without a TEXT: the texts in corpora/ and the
Python standard library's own sources.

All runs lie in the folder. Ended ones are not made again and an interrupted one goes on, so
it can be stopped at any time; the table of what is there is printed after each run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from charrnn.events import bits

CORPORA = Path(__file__).parent.parent / "corpora"


def standard_texts(folder: Path) -> list[Path]:
    """The texts of this project, and one made of the standard library's modules."""
    sources = folder / "stdlib.txt"
    if not sources.exists():
        modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        sources.write_text("".join(module.read_text(encoding="utf-8") for module in modules), encoding="utf-8")
    return [*sorted(CORPORA.glob("*.txt")), sources]


def budget(word: str) -> float | None:
    """Minutes, or None for the default budget."""
    return None if word == "default" else float(word)


def train(text: Path, minutes: float | None, seed: int, folder: Path, options: list[str]) -> dict[str, Any]:
    """Train, or go on, and return the run's facts.

    Raises CalledProcessError where the command fails; it has said why.
    """
    run = f"{text.stem}-{shown(minutes)}-{seed}"
    words = ["train", str(text.resolve()), "--seed", str(seed), "--run", run, "--json"]
    words += [] if minutes is None else ["--minutes", f"{minutes:g}"]
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "charrnn", *words, "--quiet", *options], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        events = [json.loads(line) for line in process.stdout]
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    log = [json.loads(line) for line in (folder / "checkpoints" / run / "log.jsonl").read_text().splitlines()]
    plan = next(event for event in log if event["event"] == "plan")
    training, end = plan["training"], events[-1]
    return {
        "text": text.name,
        "minutes": minutes,
        "seed": seed,
        "nats": end["nats_per_char"],
        "steps": end["step"],
        "best_step": end["best_step"],
        "chars_seen": end["step"] * training["batch_size"] * training["seq_len"],
        "train_chars": plan["num_train_chars"],
        "parameters": plan["num_parameters"],
        "network": f"{plan['model']['cell']} {plan['model']['num_layers']}x{plan['model']['hidden_size']}",
        "dropout": training["dropout"],
        "seconds": time.perf_counter() - start,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def shown(minutes: float | None) -> str:
    """A budget as a person writes it."""
    return "default" if minutes is None else f"{minutes:g}"


def table(results: list[dict[str, Any]]) -> str:
    """One line a text and budget, in the order in which they were first made."""
    lines = [
        "| text | minutes | network, dropout | parameters | chars | passes | nats | bits | seeds | time | memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((result["text"], result["minutes"]) for result in results):
        rows = [result for result in results if (result["text"], result["minutes"]) == key]
        nats = [row["nats"] for row in rows]
        mean, seen = statistics.mean(nats), statistics.mean(row["chars_seen"] for row in rows)
        spread = max(abs(value - mean) for value in nats)
        cells = [key[0], shown(key[1]), f"{rows[0]['network']}, {rows[0]['dropout']:g}", f"{rows[0]['parameters']:,}"]
        cells += [f"{seen / 1e6:.1f} M", f"{seen / rows[0]['train_chars']:.1f}", f"{mean:.4f} ± {spread:.4f}"]
        cells += [f"{bits(mean):.3f}", str(len(rows)), f"{statistics.mean(row['seconds'] for row in rows):.0f} s"]
        cells += [f"{max(row['peak_bytes'] for row in rows) / 1e6:,.0f} MB"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Make the runs that are missing and print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*", type=Path, metavar="TEXT")
    parser.add_argument("--minutes", nargs="+", type=budget, default=[1.0, 3.0, 10.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("quality"), help="for runs and results; made if need be")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="further options of charrnn train")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results_path = options.folder / "results.jsonl"
    results = [json.loads(line) for line in results_path.read_text().splitlines()] if results_path.exists() else []
    done = {(result["text"], result["minutes"], result["seed"]) for result in results}
    texts = options.texts or standard_texts(options.folder)
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores\n", flush=True)
    if results:
        print(table(results), end="\n\n", flush=True)
    for seed in range(1, options.seeds + 1):  # so that an early stop leaves a seed of everything
        for minutes in options.minutes:
            for text in texts:
                if (text.name, minutes, seed) in done:
                    continue
                results.append(train(text, minutes, seed, options.folder, options.train))
                with results_path.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
                print(table(results), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
