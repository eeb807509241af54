"""Events, scores and models as lines and table rows for people, and as JSON records.

Text from outside (file names, corpora, samples) is escaped where it becomes part of a line.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

from charrnn.data.characters import one_line
from charrnn.data.vocab import END, UNKNOWN, Vocab
from charrnn.data.vocab import describe as unicode_name
from charrnn.evaluation.scores import COPIED_RUN, EXPERTS, Assessment, Baseline, Copied, CopiedShares, Evaluation, Line
from charrnn.events import Evaluated, Event, Finished, Plan, Resumed, Sample, Stopped, Warned, bits
from charrnn.hardware import split_range

if TYPE_CHECKING:
    from charrnn.kernels.head import Predictions
    from charrnn.model.file import ModelFile

COMPILING = "compiling kernels for this processor (only the first time)"
COMPARING = "comparing with n-grams and xz"


def describe(event: Event) -> str:
    """An event as lines for a person; empty for those that nobody needs to read."""
    match event:
        case Plan():
            return plan_lines(event)
        case Resumed():
            return event.note
        case Evaluated():
            loss = f"{event.nats_per_char:.4f} nats, {event.bits_per_char:.3f} bits/char"
            return (
                f"step {event.step}: {loss} on {event.num_chars:,} held-out characters{', best' if event.best else ''}"
            )
        case Sample():
            return "\n".join("    " + line for line in event.text.strip("\n").split("\n"))
        case Warned():
            return f"warning: {event.message}"
        case Stopped():
            return f"stopped early: no improvement since step {event.best_step}"
        case Finished():
            lines = [
                f"{_loss(event.nats_per_char)} on all {event.num_chars:,} held-out characters",
                f"(best weights: step {event.best_step} of {event.step}; slightly optimistic, because this text chose them)",
            ]
            if event.network_nats_per_char is not None and event.ngram_nats_per_char is not None:
                alone = f"{event.network_nats_per_char:.4f} nats, n-grams alone {event.ngram_nats_per_char:.4f}"
                lines.append(f"(with n-grams mixed in; the network alone {alone})")
            if event.test_nats_per_char is not None:
                lines += [
                    f"{_loss(event.test_nats_per_char)} on {event.num_test_chars:,} test characters",
                    "(an unbiased score: this text chose nothing)",
                ]
            return "\n".join(lines)
        case _:
            return ""


def plan_lines(plan: Plan, *, with_reasons: bool = False) -> str:
    """A plan as a few lines, and one for each setting that was chosen for a reason."""
    model, training = plan.model, plan.training
    budget = f"{plan.steps:,} steps" if plan.steps else f"{plan.minutes:g} minutes"
    texts = ", ".join(os.path.basename(path) for path in plan.texts[:3]) + (", …" if len(plan.texts) > 3 else "")
    threads = f"{plan.threads} thread" if plan.threads == 1 else f"{plan.threads} threads"
    if plan.processes > 1:
        threads = f"{plan.processes} processes with {threads} each"
    weight_drop = f", weight drop {training['weight_drop']:g}" if training.get("weight_drop") else ""
    part = f"the last {plan.num_valid_chars:,}" if plan.valid is None else one_line(os.path.basename(plan.valid))
    test = f", then {plan.num_test_chars:,} for the test" if plan.num_test_chars else ""
    lines = [
        f"{one_line(texts)}: {plan.num_chars:,} characters, {plan.vocab_size:,} distinct; {part} held out{test}",
        f"{model['cell']} {model['num_layers']}x{model['hidden_size']}, embedding {model['embedding_dim']}, "
        f"{plan.num_parameters:,} parameters, about {plan.memory_bytes / 1e6:,.0f} MB, "
        f"{plan.device}, {threads}, {plan.precision}",
        f"{budget} of {training['batch_size']}x{training['seq_len']} characters a step; "
        f"dropout {training['dropout']:g}{weight_drop}, "
        f"learning rate {training['learning_rate']:g}, weight decay {training['weight_decay']:g}",
        f"run {plan.run!r}" + (f", starting from {one_line(base)}" if (base := training.get("init_from")) else ""),
    ]
    reasons = [f"{name.replace('_', ' ')}: {reason}" for name, reason in plan.reasons.items()] if with_reasons else []
    return "\n".join([*lines, *map(one_line, plan.notes), *reasons])


def score_rows(model: str, text: str, score: Evaluation) -> list[tuple[str, str]]:
    """An evaluation as rows of a table."""
    rows = [
        ("model", model),
        ("text", text),
        ("characters scored", f"{score.num_chars:,}"),
        ("nats per character", f"{score.nats_per_char:.6f}"),
        ("bits per character", f"{score.bits_per_char:.6f}"),
        ("perplexity", f"{score.perplexity:.4f}"),
    ]
    if score.unknown:
        named = ", ".join(f"{unicode_name(char)} {count:,}x" for char, count in list(score.unknown.items())[:10])
        more = f", and {len(score.unknown) - 10} more" if len(score.unknown) > 10 else ""
        rows.append(("unknown characters", f"{score.num_unknown:,}, not scored: {named}{more}"))
    return rows


COMPARISON_HEADER = ("predictor", "bits/char", "")


def comparison_rows(found: Assessment) -> list[tuple[str, str, str]]:
    """A model's score beside what others spend on the same characters, the model first."""
    rows = [("this model", f"{found.score.bits_per_char:.3f}", f"perplexity {found.score.perplexity:.2f}")]
    if found.score.experts:
        names = ("its network alone", "its n-grams alone")
        for name, nats in zip(names, found.score.experts, strict=True):
            rows.append((name, f"{bits(nats / found.score.num_chars):.3f}", ""))
    if found.adapted:
        how = "dynamic evaluation: learns from the text as it reads"
        rows.append(("adapting to the text", f"{found.adapted.bits_per_char:.3f}", how))
    return rows + [(other.name, f"{other.bits_per_char:.3f}", other.note) for other in found.baselines]


def verdict(score: Evaluation, baselines: Sequence[Baseline]) -> str:
    """Say in a sentence whether the score is good; empty where there is nothing to compare it with."""
    if not baselines:
        return ""
    best = min(baselines, key=lambda baseline: baseline.nats_per_char)
    fewer = 1 - score.nats_per_char / best.nats_per_char if best.nats_per_char else 0.0
    perplexity = f"Perplexity {score.perplexity:.1f}."
    if fewer < -0.005:
        return f"Not good yet: {-fewer:.0%} more bits than the best baseline ({best.name}). {perplexity}"
    if fewer < 0.03:
        return f"No better than the best baseline ({best.name}). {perplexity}"
    return f"Good: {fewer:.0%} fewer bits than the best baseline ({best.name}). {perplexity}"


def sentences(found: Assessment) -> list[str]:
    """Sum up an assessment in sentences."""
    summary = [verdict(found.score, found.baselines), _copied(found.copied) if found.copied else ""]
    return [sentence for sentence in summary if sentence]


def comparison_lines(found: Assessment) -> str:
    """The comparison where there is no table to draw, and what it says."""
    rows = comparison_rows(found)
    width = max(len(name) for name, _, _ in rows)
    lines = [
        f"{name:<{width}}  {figure} bits per character{f' ({note})' if note else ''}" for name, figure, note in rows
    ]
    return "\n".join([*lines, *sentences(found)])


def _copied(copied: CopiedShares) -> str:
    """How much of what the model writes it has copied, in a sentence."""
    written, network, text = copied
    alone = f" (the network alone: {network.share:.1%})" if network else ""
    return (
        f"Copied: {written.share:.1%} of what it writes lies in runs of {COPIED_RUN} or more characters found in the "
        f"training text{_longest(written)}{alone}; for comparison, {text.share:.1%} of the scored text does"
        f"{_longest(text)}."
    )


def _longest(copied: Copied) -> str:
    return f" (longest: {copied.longest})" if copied.longest else ""


def assessment_record(found: Assessment) -> dict[str, Any]:
    """A score and what was found out beside it, as `--json` has it; null is what wasn't asked for."""
    copied = found.copied and found.copied._asdict()
    experts = found.score.experts
    return {
        **_score_record(found.score),
        "num_unknown": found.score.num_unknown,
        "unknown": found.score.unknown,
        "yardsticks": [asdict(other) | {"bits_per_char": other.bits_per_char} for other in found.baselines],
        "adapted": found.adapted and _score_record(found.adapted),
        "copied": copied and {name: part and asdict(part) | {"share": part.share} for name, part in copied.items()},
        "experts": experts and dict(zip(EXPERTS, (nats / found.score.num_chars for nats in experts), strict=True)),
    }


def _score_record(score: Evaluation) -> dict[str, Any]:
    names = ("num_chars", "nats_per_char", "bits_per_char", "perplexity")
    return {name: getattr(score, name) for name in names}


def line_row(line: Line) -> tuple[str, str, str, str]:
    """What a line costs, as a row of a table."""
    return f"{line.number:,}", f"{line.bits_per_char:.3f}", f"{line.bits:.1f}", line.text


LINE_HEADER = ("line", "bits/char", "bits", "text")


def char_records(part: "Predictions", vocab: Vocab) -> Iterator[dict[str, Any]]:
    """The score of each character and its likeliest alternatives, as `--per-char` prints them; rare ones are left out."""
    rows = (array.tolist() for array in (part.nats, part.ranks, part.top, part.probabilities))
    for char, nats, rank, top, probabilities in zip(vocab.decode(part.ids), *rows, strict=True):
        likely = [[vocab.chars[other], probability] for other, probability in zip(top, probabilities, strict=True)]
        if char != UNKNOWN:
            yield {"char": char, "nats": nats, "rank": rank + 1, "top": likely}


def line_record(line: Line) -> dict[str, Any]:
    """The same as `--json` has it."""
    return {"line": line.number, "bits": line.bits, "num_chars": line.num_chars, "text": line.text}


BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """Numbers as a row of bars, at most so many: the mean of neighbours where there are more."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    means = [fmean(finite[part]) for part in split_range(len(finite), min(len(finite), width))]
    low = min(means)
    step = (max(means) - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((mean - low) / step)] for mean in means)


def cache_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the cache of texts holds, as rows of a table."""
    return [
        ("folder", facts["folder"]),
        ("texts", f"{facts['num_texts']:,}"),
        ("size", f"{facts['num_bytes'] / 1e6:,.1f} MB of at most {facts['most_bytes'] / 1e6:,.0f}; the oldest go"),
        ("to empty it", facts["empty"]),
    ]


def card(path: str, model: "ModelFile") -> dict[str, Any]:
    """All that is known about a model, as plain values."""
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
        "scores": model.scores,
        "provenance": model.provenance,
    }


CARD_HEADER = ("run", "network", "parameters", "bits/char", "trained on")


def card_line(card: Mapping[str, Any]) -> tuple[str, ...]:
    """A model as one row of the list of runs."""
    config, texts = card["config"], card["provenance"].get("text", {}).get("paths", ["?"])
    network = f"{config['cell']} {config['num_layers']}x{config['hidden_size']}"
    names = ", ".join(os.path.basename(path) for path in texts[:3])
    return card["run"], network, f"{card['num_parameters']:,}", _score(card["scores"]), names


def card_rows(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A model as rows of a table."""
    config, scores, provenance = card["config"], card["scores"], card["provenance"]
    text, split = provenance.get("text", {}), provenance.get("split", {})
    training = provenance.get("training", {})
    part = "the held-out text" if scores.get("whole") else "stretches spread over the held-out text"
    return [
        ("model", card["model"]),
        ("network", f"{config['cell']} {config['num_layers']}x{config['hidden_size']}"),
        ("embedding", str(config["embedding_dim"])),
        ("parameters", f"{card['num_parameters']:,}"),
        *([("n-grams", _ngrams(card["ngram"]))] if card.get("ngram") else []),
        (
            "vocabulary",
            _vocabulary(card["vocab"]),
        ),
        ("text", ", ".join(text.get("paths", ["?"]))),
        ("text SHA-256", str(text.get("sha256", "?"))),
        ("split", f"{split.get('num_train', 0):,} characters trained on, {split.get('num_valid', 0):,} held out"),
        ("score", f"{_score(scores)} bits/char on {part} (it chose the weights, of step {scores.get('step', '?')})"),
        *([("test score", f"{_score(scores['test'])} bits/char on the test text")] if "test" in scores else []),
        ("training", ", ".join(f"{name} {value}" for name, value in training.items())),
    ]


def _ngrams(ngram: Mapping[str, Any]) -> str:
    return f"of up to {ngram['order']} characters, {ngram['num_ngrams']:,}, {ngram['num_bytes'] / 1e6:.1f} MB; mixed in"


def _vocabulary(chars: str) -> str:
    """A vocabulary in a line: how many characters, what else is known, and the first of them."""
    signs = {END: ", the end of a document", UNKNOWN: ", one symbol for rarer ones"}
    rest = "".join(words for sign, words in signs.items() if sign in chars)
    chars = "".join(char for char in chars if char not in signs)
    kind = "bytes" if Vocab(chars).of_bytes else "characters"
    return f"{len(chars):,} {kind}{rest}: {json.dumps(chars[:200], ensure_ascii=False)[1:-1]}"


def _loss(nats: float) -> str:
    return f"{nats:.4f} nats, {bits(nats):.3f} bits per character"


def _score(scores: Mapping[str, Any]) -> str:
    nats = scores.get("nats_per_char")
    return "?" if nats is None else f"{bits(nats):.3f}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
