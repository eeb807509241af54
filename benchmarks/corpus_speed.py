"""How fast a text becomes ids, how soon training starts on one that is known, and what memory that takes.

    python benchmarks/corpus_speed.py [--sizes 10 100 1000] [--steps 20] [--folder DIR]

The texts, of so many megabytes (10^6 bytes), are the Python standard library's own sources, over
and over: as they are where they are ASCII, and with every letter moved to a script of three bytes
a character. For each, a process reads it for the first time (both passes, into an empty cache),
one finds it again, and `charrnn train --steps` runs, from the cache. Printed: MB/s of the first
reading; seconds until an unchanged text is there again, imports not counted; the largest
anonymous memory of the reading process and of the run, sampled every few milliseconds, which
leaves out pages of mapped files, as the kernel can drop them. Linux only.
"""

import argparse
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

READ = """
import sys, time
from charrnn.data.cache import Cache
from charrnn.config import CorpusConfig, SourceConfig
from charrnn.data.corpus import load_corpus
start = time.perf_counter()
with Cache.for_user().writable() as cache:
    corpus = load_corpus([sys.argv[1]], CorpusConfig(), SourceConfig(), cache)
print(time.perf_counter() - start, len(corpus.ids), len(corpus.vocab))
"""


def make_text(path: Path, num_bytes: int, *, wide: bool) -> None:
    """Write the standard library's sources over and over, up to a size; wide: in three bytes a character."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = "".join(text for source in sources if (text := source.read_text(encoding="utf-8")).isascii())
    if wide:
        text = text.translate({code: 0x4E00 + code for code in range(ord("!"), 127)})
    data, left = text.encode(), num_bytes
    with path.open("wb") as file:
        while left > 0:
            piece = data if left >= len(data) else data[:left].decode(errors="ignore").encode()
            file.write(piece)
            left -= len(data)


def run(command: list[str], folder: Path) -> tuple[str, int]:
    """Run a program with a cache in this folder: what it prints, and the most anonymous memory it had, in bytes."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    peak = 0
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                break
            peak = max([peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
            time.sleep(0.004)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return output, peak


def main() -> None:
    """Print a line for each script and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=float, default=[10.0, 100.0, 1000.0], help="megabytes")
    parser.add_argument("--steps", type=int, default=20, help="of training")
    parser.add_argument("--folder", type=Path, help="for texts and cache; by default a temporary one")
    options = parser.parse_args()
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores\n")
    print("| text | MB | characters | first reading, MB/s | found again, s | reading, MB | training, MB |")
    print("|---|---|---|---|---|---|---|")
    for wide in (False, True):
        for size in options.sizes:
            with tempfile.TemporaryDirectory(dir=options.folder) as name:
                folder, path = Path(name), Path(name) / "text.txt"
                make_text(path, int(size * 1e6), wide=wide)
                time.sleep(2.5)  # a file that has just been written is always read again
                first, reading = run([sys.executable, "-c", READ, str(path)], folder)
                again, _ = run([sys.executable, "-c", READ, str(path)], folder)
                train = [sys.executable, "-m", "charrnn", "train", "text.txt", "--steps", str(options.steps), "--quiet"]
                _, training = run(train, folder)
                seconds, num_chars, _ = first.split()
                cells = ["three bytes" if wide else "ASCII", f"{size:g}", f"{int(num_chars):,}"]
                cells += [f"{path.stat().st_size / 1e6 / float(seconds):.0f}", f"{float(again.split()[0]):.2f}"]
                cells += [f"{reading / 1e6:.0f}", f"{training / 1e6:.0f}"]
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
