r"""How good a list is that a model of documents writes: valid, unique, new, and bits per character; and its labels.

    python benchmarks/lists.py TEXT [--test FILE] [--minutes M | --run NAME] [--check COMMAND] [--known FILE]
        [--column COLUMN --label COLUMN] [--published valid=0.9748,unique@1k=1.0]

Trains on a list, one document a line, or takes a run that is there; draws samples at temperature 1, and prints

- valid: the share of samples for which COMMAND prints a line that is not empty;
- unique@1k, unique@10k: the share of different ones among the first 1,000 and 10,000 valid ones;
- new: the share of those that the training list does not have, among the different valid ones;
- bits: bits per character of the list --test.

With --column and --label, the list is a file of records (CSV, TSV, JSON Lines). Of the list --test, or else of the part
held out in training, it also prints

- accuracy: the share of labels that the model guesses right, and majority: of always naming the most frequent one;
- bits given label: bits per character given the labels; bits are those without labels.

COMMAND is run by the shell. It reads one candidate a line and prints, for each, its canonical form, or an empty line
if it is not valid; the training list is compared in canonical form too. It is read once: with --known its canonical
forms are kept in that file. Without --check every sample is valid and its own canonical form.

For molecules (MOSES; Polykovskiy et al. 2020, whose figures these are), `--check 'python canonical.py'` with

    import sys
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")
    for line in sys.stdin:
        molecule = Chem.MolFromSmiles(line.strip())
        print(Chem.MolToSmiles(molecule) if molecule else "", flush=True)
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import charrnn
from charrnn.config import CorpusConfig
from charrnn.runs.models import run_name
from charrnn.text.characters import END
from charrnn.text.records import RecordReader


def canonical(lines: list[str], command: str | None) -> list[str]:
    """The canonical form of each line, empty for one that is not valid."""
    if command is None:
        return lines
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, shell=True, input=text, stdout=subprocess.PIPE, text=True, check=True)
    forms = [form.strip() for form in done.stdout.removesuffix("\n").split("\n")]
    if len(forms) != len(lines):
        raise SystemExit(f"--check printed {len(forms):,} lines for {len(lines):,} candidates")
    return forms


def read_list(text: Path, column: str) -> list[str]:
    """The texts of a list: its lines, or a column of its records."""
    words = text.read_text(encoding="utf-8")
    if not column:
        return words.removesuffix("\n").split("\n")
    reader = RecordReader(CorpusConfig(column=column))
    return "".join(reader.documents([words], str(text))).removesuffix(END).split(END)


def known_forms(text: Path, column: str, command: str | None, kept: Path | None) -> set[str]:
    """The canonical forms of the training list, from the file that keeps them if it is there."""
    if kept is not None and kept.exists():
        return set(kept.read_text(encoding="utf-8").split("\n"))
    forms = canonical(read_list(text, column), command)
    if kept is not None:
        kept.write_text("".join(f"{form}\n" for form in forms), encoding="utf-8")
    return set(forms)


def measure(samples: list[str], known: set[str], command: str | None) -> dict[str, float]:
    """The figures of a list of samples."""
    valid = [form for form in canonical(samples, command) if form]
    distinct = set(valid)
    found = {"valid": len(valid) / len(samples)}
    for name, count in (("unique@1k", 1_000), ("unique@10k", 10_000)):
        first = valid[:count]
        found[name] = len(set(first)) / max(1, len(first))
    return found | {"new": len(distinct - known) / max(1, len(distinct))}


def charrnn_json(*arguments: str) -> dict[str, Any]:
    """The object that a charrnn command prints."""
    command = [sys.executable, "-m", "charrnn", *arguments, "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def measure_labels(run: str, test: Path | None, records: dict[str, str]) -> dict[str, float]:
    """The figures of the labels of a list, or of the part held out in training. records: its columns."""
    columns = [word for name, column in records.items() for word in (f"--{name}", column)]
    text = [str(test), *columns] if test is not None else []
    found = charrnn_json("eval", *text, "-m", run, "--by-label")
    keys = {
        "bits": "bits_per_char_without_label",
        "bits given label": "bits_per_char",
        "accuracy": "accuracy",
        "majority": "majority",
    }
    return {name: found[key] for name, key in keys.items()}


def published(words: str) -> dict[str, float]:
    """Figures as they are given on the command line: name=value, separated by commas."""
    return {name: float(value) for name, value in (word.split("=") for word in words.split(","))}


def table(found: dict[str, float], others: dict[str, float]) -> str:
    """A row for each figure, ours beside the published one."""
    lines = ["| figure | charrnn | published |", "|---|---|---|"]
    for name in [*found, *(other for other in others if other not in found)]:
        cells = [f"{figures[name]:.4f}" if name in figures else "" for figures in (found, others)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    """Train or load, draw, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("--test", type=Path, metavar="FILE", help="a list to score")
    parser.add_argument("--minutes", type=float, help="training time; by default as charrnn train chooses it")
    parser.add_argument("--run", metavar="NAME", help="a run or model file that is there, instead of training")
    parser.add_argument("--check", metavar="COMMAND")
    parser.add_argument("--known", type=Path, metavar="FILE", help="keeps the training list's canonical forms")
    parser.add_argument("--column", default="", help="the texts' column of a list of records; goes with --label")
    parser.add_argument("--label", default="", metavar="COLUMN", help="the labels' column")
    parser.add_argument("--published", type=published, default={}, metavar="NAME=VALUE,…")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if bool(options.column) != bool(options.label):
        parser.error("--column and --label go together")
    records = {"column": options.column, "label": options.label} if options.label else {}
    run = options.run or run_name(str(options.text))
    if options.run is None:
        model = charrnn.train(options.text, minutes=options.minutes, run=run, **(records or {"documents": "lines"}))
    else:
        model = charrnn.load(run)
    samples = model.sample(num_samples=options.samples, temperature=1.0, seed=options.seed)
    found = measure(samples, known_forms(options.text, options.column, options.check, options.known), options.check)
    if records:
        found |= measure_labels(run, options.test, records)
    elif options.test is not None:
        found["bits"] = model.score(options.test.read_text(encoding="utf-8")).bits_per_char
    print(table(found, options.published))
    if options.json is not None:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
