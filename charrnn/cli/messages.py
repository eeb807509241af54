"""Events, scores and models as lines and table rows for people, and as JSON records.

Text from outside (file names, corpora, samples) is escaped where it becomes part of a line.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from charrnn.cli import console
from charrnn.data.characters import END, UNKNOWN, one_line, printable
from charrnn.data.characters import describe as unicode_name
from charrnn.evaluation.scores import Assessment, Evaluation, Line
from charrnn.evaluation.verdict import sentences
from charrnn.events import Evaluated, Event, Finished, Plan, Resumed, Sample, Stopped, Warned, bits, bits_per

if TYPE_CHECKING:
    from charrnn.data.vocab import Vocab
    from charrnn.evaluation.comparison import Compared
    from charrnn.kernels.head import Predictions
    from charrnn.model.file import ModelFile

COMPILING = "loading kernels, which are compiled for this processor the first time"
COMPARING = "comparing with n-grams and xz"
CARD_HEADER = ("run", "network", "parameters", "score", "held-out bits", "trained on")
MAX_NAMED = 10  # unknown characters
MAX_SHOWN = 200  # characters of a vocabulary
MAX_LINES, MAX_WIDTH = 4, 100  # of a sample during training


# training


def describe(event: Event) -> str:
    """Return an event as lines for a person; empty for events that are not shown."""
    match event:
        case Plan():
            return plan_lines(event)
        case Resumed():
            return event.note
        case Evaluated():
            score = f"{event.nats_per_char:.4f} nats, {event.bits_per_char:.3f} {bits_per(event.unit)}"
            best = ", best" if event.best else ""
            return f"step {event.step}: {score} on {event.num_chars:,} held-out {event.unit}s{best}"
        case Sample():
            return "\n".join(sample_lines(event.text))
        case Warned():
            return f"warning: {event.message}"
        case Stopped():
            return f"stopped early: no improvement since step {event.best_step}"
        case Finished():
            return result_lines(event)
        case _:
            return ""


def sample_lines(text: str) -> list[str]:
    """Return the first lines of a sample that are not blank, indented, each cut to the width of the terminal."""
    width = min(console.terminal_width(), MAX_WIDTH)
    lines = ["    " + printable(line.expandtabs(4)) for line in text.split("\n") if line.strip()]
    return [line if len(line) <= width else line[: width - 1] + "…" for line in lines[:MAX_LINES]]


def result_lines(event: Finished) -> str:
    """Return the final scores, each with what it means."""
    lines = [
        f"{_loss(event.nats_per_char, event.unit)} on all {event.num_chars:,} held-out {event.unit}s",
        f"(best weights: step {event.best_step} of {event.step}; slightly optimistic: this text chose them)",
    ]
    if event.network_nats_per_char is not None and event.ngram_nats_per_char is not None:
        alone = f"{event.network_nats_per_char:.4f} nats, n-grams alone {event.ngram_nats_per_char:.4f}"
        lines.append(f"(with n-grams mixed in; the network alone {alone})")
    if event.test_nats_per_char is not None:
        lines += [
            f"{_loss(event.test_nats_per_char, event.unit)} on {event.num_test_chars:,} test {event.unit}s",
            "(unbiased: this text chose nothing)",
        ]
    return "\n".join(lines)


def plan_lines(plan: Plan, *, with_reasons: bool = False) -> str:
    """Return a plan as a few lines, with one more for each setting that has a reason, if asked for."""
    model, training = plan.model, plan.training
    budget = _count(plan.steps, "step") if plan.steps else _count(plan.minutes or 0.0, "minute")
    texts = ", ".join(os.path.basename(path) for path in plan.texts[:3]) + (", …" if len(plan.texts) > 3 else "")
    threads = _count(plan.threads, "thread")
    if plan.processes > 1:
        threads = f"{plan.processes} processes with {threads} each"
    weight_drop = f", weight drop {training['weight_drop']:g}" if training.get("weight_drop") else ""
    part = f"the last {plan.num_valid_chars:,}" if plan.valid is None else one_line(os.path.basename(plan.valid))
    test = f", then {plan.num_test_chars:,} for the test" if plan.num_test_chars else ""
    base = f", starting from {one_line(training['init_from'])}" if training.get("init_from") else ""
    lines = [
        f"{one_line(texts)}: {plan.num_chars:,} {plan.unit}s, {plan.vocab_size:,} distinct; {part} held out{test}",
        f"{_network(model)}, embedding {model['embedding_dim']}, "
        f"{plan.num_parameters:,} parameters, about {plan.memory_bytes / 1e6:,.0f} MB",
        f"{budget}, {training['batch_size']}x{training['seq_len']} {plan.unit}s per step; "
        f"{plan.device}, {threads}, {plan.precision}",
        f"dropout {training['dropout']:g}{weight_drop}, "
        f"learning rate {training['learning_rate']:g}, weight decay {training['weight_decay']:g}",
        f"run {plan.run!r}{base}",
    ]
    reasons = [f"{name.replace('_', ' ')}: {reason}" for name, reason in plan.reasons.items()] if with_reasons else []
    return "\n".join([*lines, *map(one_line, plan.notes), *reasons])


# scores


def score_rows(model: str, text: str, score: Evaluation, unit: str) -> list[tuple[str, str]]:
    """Return a score as rows of a table. unit: what the model predicts, a character or a byte."""
    rows = [
        ("model", model),
        ("text", text),
        (f"{unit}s scored", f"{score.num_chars:,}"),
        (f"nats per {unit}", f"{score.nats_per_char:.6f}"),
        (f"bits per {unit}", f"{score.bits_per_char:.6f}"),
        ("perplexity", f"{score.perplexity:.4f}"),
    ]
    if score.unknown:
        named = ", ".join(f"{unicode_name(char)} {count:,}x" for char, count in list(score.unknown.items())[:MAX_NAMED])
        more = f", and {len(score.unknown) - MAX_NAMED} more" if len(score.unknown) > MAX_NAMED else ""
        rows.append((f"unknown {unit}s", f"{score.num_unknown:,}, not scored: {named}{more}"))
    return rows


def comparison_header(found: Assessment) -> tuple[str, ...]:
    """Return the header of a table of scores."""
    return "predictor", bits_per(found.unit), ""


def comparison_rows(found: Assessment) -> list[tuple[str, str, str]]:
    """Return the scores of the model, its parts and the baselines on the same characters, the model first."""
    rows = [("this model", f"{found.score.bits_per_char:.3f}", f"perplexity {found.score.perplexity:.2f}")]
    if found.score.experts:
        names = ("its network alone", "its n-grams alone")
        for name, nats in zip(names, found.score.experts, strict=True):
            rows.append((name, f"{bits(nats / found.score.num_chars):.3f}", ""))
    if found.adapted:
        how = "dynamic evaluation: learns from the text as it reads"
        rows.append(("adapting to the text", f"{found.adapted.bits_per_char:.3f}", how))
    return rows + [(baseline.name, f"{baseline.bits_per_char:.3f}", baseline.note) for baseline in found.baselines]


def comparison_lines(found: Assessment) -> str:
    """Return the comparison and its summary as lines of text."""
    rows = comparison_rows(found)
    width = max(len(name) for name, _, _ in rows)
    lines = [
        f"{name:<{width}}  {figure} {bits_per(found.unit)}{f' ({note})' if note else ''}" for name, figure, note in rows
    ]
    return "\n".join([*lines, *sentences(found)])


def compared_header(unit: str) -> tuple[str, ...]:
    """Return the header of a table of models. unit: what they predict, a character or a byte."""
    return "model", bits_per(unit), "behind the best", "standard error"


def compared_facts(text: str, unit: str, found: "Sequence[Compared]") -> list[tuple[str, str]]:
    """Return what a comparison of models was made on, as rows of a table."""
    rows = [("text", text), (f"{unit}s scored", f"{found[0].score.num_chars:,}")]
    if num_left_out := found[0].num_left_out:
        rows.append((f"{unit}s left out", f"{num_left_out:,}, which not all of the models know"))
    return rows


def compared_row(found: "Compared") -> tuple[str, ...]:
    """Return a model's score, and how far it is behind the best, as a row of a table; empty cells for the best."""
    error = "" if found.error is None else f"{bits(found.error):.3f}"
    behind = f"+{bits(found.difference):.3f}" if found.difference else ""
    return found.model, f"{found.score.bits_per_char:.3f}", behind, error


def line_header(lines: Sequence[Line], unit: str) -> tuple[str, ...]:
    """Return the header of a table of lines, whose numbers are those of lines or of documents."""
    return lines[0].numbered if lines else "line", bits_per(unit), "bits", "unknown", "text"


def line_row(line: Line) -> tuple[str, ...]:
    """Return a line's score as a row of a table."""
    return (
        f"{line.number:,}",
        f"{line.bits_per_char:.3f}",
        f"{line.bits:.1f}",
        f"{line.num_unknown:,}",
        line.text,
    )


def char_records(part: "Predictions", vocab: "Vocab") -> Iterator[dict[str, Any]]:
    """Yield each character's score and its likeliest alternatives as JSON objects; rare characters are left out."""
    rows = (array.tolist() for array in (part.nats, part.ranks, part.top, part.probabilities))
    for char, nats, rank, top, probabilities in zip(vocab.decode(part.ids), *rows, strict=True):
        likely = [[vocab.chars[other], probability] for other, probability in zip(top, probabilities, strict=True)]
        if char != UNKNOWN:
            yield {"char": char, "nats": nats, "rank": rank + 1, "top": likely}


# models and the cache


def cache_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts about the cache as rows of a table."""
    size, limit = facts["num_bytes"] / 1e6, facts["most_bytes"] / 1e6
    return [
        ("folder", facts["folder"]),
        ("texts", f"{facts['num_texts']:,}"),
        ("size", f"{size:,.1f} MB (limit {limit:,.0f} MB; the oldest texts are removed first)"),
        ("compiled kernels", f"{facts['kernel_bytes'] / 1e6:,.1f} MB"),
        ("to empty it", facts["empty"]),
    ]


def card(path: str, model: "ModelFile") -> dict[str, Any]:
    """Return all facts about a model as plain values."""
    return {
        "model": path,
        "run": os.path.basename(os.path.dirname(os.path.abspath(path))),
        "config": asdict(model.config),
        "num_parameters": model.config.num_parameters,
        "ngram": model.ngram
        and {
            "order": len(model.ngram["ngram.weights"]),
            "num_ngrams": len(model.ngram["ngram.char"]),
            "num_bytes": sum(array.nbytes for array in model.ngram.values()),
        },
        "vocab": model.vocab.chars,
        "unit": model.vocab.unit,
        "scores": model.scores,
        "provenance": model.provenance,
    }


def card_line(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a model as one row of the list of runs."""
    texts = card["provenance"].get("text", {}).get("paths", ["?"])
    names = ", ".join(os.path.basename(path) for path in texts[:3]) + (", …" if len(texts) > 3 else "")
    parameters = f"{card['num_parameters']:,}"
    return (
        card["run"],
        _network(card["config"]),
        parameters,
        _rate(card, card["scores"]),
        _total(card["scores"]) or "?",
        names,
    )


def card_rows(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a model's facts as rows of a table."""
    config, scores, provenance = card["config"], card["scores"], card["provenance"]
    text, split = provenance.get("text", {}), provenance.get("split", {})
    training, unit = provenance.get("training", {}), card["unit"]
    part = "parts of the held-out text"
    if total := _total(scores):
        part = f"the held-out text ({total} bits in all)"
    return [
        ("model", card["model"]),
        ("network", _network(config)),
        ("embedding", str(config["embedding_dim"])),
        ("parameters", f"{card['num_parameters']:,}"),
        *([("n-grams", _ngrams(card["ngram"]))] if card.get("ngram") else []),
        ("vocabulary", _vocabulary(card["vocab"], unit)),
        ("text", ", ".join(text.get("paths", ["?"]))),
        ("text SHA-256", str(text.get("sha256", "?"))),
        ("split", f"{split.get('num_train', 0):,} {unit}s for training, {split.get('num_valid', 0):,} held out"),
        ("score", f"{_rate(card, scores)} on {part}, which chose these weights (step {scores.get('step', '?')})"),
        *([("test score", f"{_rate(card, scores['test'])} on the test text")] if "test" in scores else []),
        ("training", ", ".join(_setting(name, value) for name, value in training.items() if value is not None)),
    ]


def _count(number: float, name: str) -> str:
    return f"{number:,.15g} {name}" + ("" if number == 1 else "s")


def _network(config: Mapping[str, Any]) -> str:
    return f"{config['cell']} {config['num_layers']}x{config['hidden_size']}"


def _ngrams(ngram: Mapping[str, Any]) -> str:
    return f"{ngram['num_ngrams']:,} of up to {ngram['order']} characters, {ngram['num_bytes'] / 1e6:.1f} MB"


def _vocabulary(chars: str, unit: str) -> str:
    """Describe a vocabulary in a line: its size, its special symbols, its first characters."""
    symbols = {END: "end of document", UNKNOWN: "rare character"}
    special = "".join(f", 1 symbol for {meaning}" for symbol, meaning in symbols.items() if symbol in chars)
    chars = "".join(char for char in chars if char not in symbols)
    return f"{len(chars):,} {unit}s{special}: {json.dumps(chars[:MAX_SHOWN], ensure_ascii=False)[1:-1]}"


def _loss(nats: float, unit: str) -> str:
    return f"{nats:.4f} nats, {bits(nats):.3f} bits per {unit}"


def _setting(name: str, value: object) -> str:
    """Return a setting as people read it."""
    shown = ("on" if value else "off") if isinstance(value, bool) else value
    return f"{name.replace('_', ' ')} {shown}"


def _total(scores: Mapping[str, Any]) -> str:
    """Return the bits of the whole held-out text, which compare models of bytes and of characters; empty if unknown."""
    if not scores.get("whole") or "num_chars" not in scores:
        return ""
    return f"{bits(scores['nats_per_char']) * scores['num_chars']:,.0f}"


def _rate(card: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """Return a score of a model in bits per character or per byte."""
    nats = scores.get("nats_per_char")
    return "?" if nats is None else f"{bits(nats):.3f} {bits_per(card['unit'])}"
