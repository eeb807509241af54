"""A model's facts, and those of the cache, as plain values and as rows of a table."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from charrnn.events import bits, bits_per
from charrnn.text.characters import END, LABEL_END, UNKNOWN, first_of, one_line

if TYPE_CHECKING:
    from charrnn.model.file import ModelFile

CARD_HEADER = ("run", "network", "parameters", "score", "held-out bits", "trained on")
MAX_SHOWN, MAX_NAMED = 200, 10  # characters of a vocabulary; labels


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
        "known_documents": None if model.known_documents is None else len(model.known_documents),
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
        network(card["config"]),
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
        ("network", network(config)),
        ("embedding", str(config["embedding_dim"])),
        ("parameters", f"{card['num_parameters']:,}"),
        *([("n-grams", _ngrams(card["ngram"]))] if card["ngram"] else []),
        *([("known documents", _known(card["known_documents"]))] if card["known_documents"] else []),
        ("vocabulary", _vocabulary(card["vocab"], unit)),
        *([("labels", _labels(text["labels"]))] if text.get("labels") else []),
        ("text", ", ".join(text.get("paths", ["?"]))),
        ("text SHA-256", str(text.get("sha256", "?"))),
        ("split", f"{split.get('num_train', 0):,} {unit}s for training, {split.get('num_valid', 0):,} held out"),
        ("score", f"{_rate(card, scores)} on {part}, which chose these weights (step {scores.get('step', '?')})"),
        *([("test score", f"{_rate(card, scores['test'])} on the test text")] if "test" in scores else []),
        ("training", ", ".join(_setting(name, value) for name, value in training.items() if value is not None)),
    ]


def network(config: Mapping[str, Any]) -> str:
    """Describe a network in two words, from its config."""
    return f"{config['cell']} {config['num_layers']}x{config['hidden_size']}"


def _ngrams(ngram: Mapping[str, Any]) -> str:
    return f"{ngram['num_ngrams']:,} of up to {ngram['order']} characters, {ngram['num_bytes'] / 1e6:.1f} MB"


def _labels(counts: Mapping[str, int]) -> str:
    """Return the number of labels and the most frequent ones."""
    names = sorted(counts, key=lambda name: -counts[name])
    return f"{len(names):,}: {first_of(list(map(one_line, names)), MAX_NAMED)}"


def _known(count: int) -> str:
    return f"{count:,}, as hashes for sample --new, {4 * count / 1e6:.1f} MB"


def _vocabulary(chars: str, unit: str) -> str:
    """Describe a vocabulary in a line: its size, its special symbols, its first characters."""
    symbols = {END: "the end of a document", LABEL_END: "the end of a label", UNKNOWN: "rare characters"}
    special = "".join(f", 1 symbol for {meaning}" for symbol, meaning in symbols.items() if symbol in chars)
    chars = "".join(char for char in chars if char not in symbols)
    return f"{len(chars):,} {unit}s{special}: {json.dumps(chars[:MAX_SHOWN], ensure_ascii=False)[1:-1]}"


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
