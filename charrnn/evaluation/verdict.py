"""What an assessment comes to, in sentences."""

from charrnn.config import COPIED_RUN
from charrnn.evaluation.scores import Assessment, Baseline, Copied

MIN_CHARS = 1_000  # scored characters; a score of less is no verdict
_NOTHING = 0.01  # bits per character; two scores below that don't differ
_SAME, _SMALL = 0.005, 0.03  # relative differences below which scores are equal, and an advantage is small


def sentences(found: Assessment) -> list[str]:
    """Sum up an assessment in sentences."""
    summary = [verdict(found), copying(found)]
    return [sentence for sentence in summary if sentence]


def verdict(found: Assessment) -> str:
    """Say whether a score is good, or why nobody can tell; empty without baselines."""
    if not found.baselines:
        return ""
    best = min(found.baselines, key=lambda baseline: baseline.nats_per_char)
    if found.score.num_chars < MIN_CHARS:
        return f"No verdict: too few {found.unit}s ({found.score.num_chars:,}); at least {MIN_CHARS:,} are needed."
    if found.copied and (known := _known_part(found.copied.text)):
        return f"No verdict: {known} in the training text. Score a text that the model has not seen."
    return _compare(found, best)


def _known_part(text: Copied) -> str:
    """Say how much of a text the training text has, if it is most of it."""
    if text.known_share > 0.5:
        return f"{text.known_share:.0%} of these documents are"
    return f"{text.long_share:.0%} of this text is" if text.long_share > 0.5 else ""


def _compare(found: Assessment, best: Baseline) -> str:
    own, other = found.score.bits_per_char, best.bits_per_char
    if own < _NOTHING and other < _NOTHING:
        return f"As good as the best baseline ({best.name}): both need less than {_NOTHING} bits per {found.unit}."
    if other < _NOTHING:
        return f"Not good yet: {own - other:.2f} bits per {found.unit} more than the best baseline ({best.name})."
    fewer = 1 - own / other
    if fewer < -_SAME:
        return f"Not good yet: {-fewer:.0%} more bits than the best baseline ({best.name})."
    if fewer < _SAME:
        return f"No better than the best baseline ({best.name})."
    if fewer < _SMALL:
        return f"Hardly better than the best baseline ({best.name}): {fewer:.0%} fewer bits."
    return f"Good: {fewer:.0%} fewer bits than the best baseline ({best.name})."


def copying(assessment: Assessment) -> str:
    """Say how much of the model's samples occurs in its training text, beside how much of the scored text does.

    A line each for whole documents and for long runs; empty if it was not measured.
    """
    if not assessment.copied:
        return ""
    written, network, text = assessment.copied
    found = []
    if written.num_documents:
        alone = f" (the network alone {network.known_share:.1%})" if network else ""
        found.append(
            f"Copied: {written.known_share:.1%} of {written.num_documents:,} sampled documents are in the training "
            f"text{alone}. Of the scored documents: {text.known_share:.1%}."
        )
    if written.num_copied or not written.num_documents:
        details = [f"longest run {written.longest}"] if written.longest else []
        details += [f"the network alone {network.share:.1%}"] if network else []
        shown = f" ({'; '.join(details)})" if details else ""
        longest = f" (longest run {text.longest})" if text.longest else ""
        found.append(
            f"Copied: {written.share:.1%} of what it writes occurs in the training text, in runs of {COPIED_RUN} or "
            f"more {assessment.unit}s{shown}. Of the scored text: {text.share:.1%}{longest}."
        )
    return "\n".join(found)
