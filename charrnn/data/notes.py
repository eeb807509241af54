"""Notes: what the user should know about a text before training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import BLANK_LINES, LINES, CorpusConfig
from charrnn.data.splitting import how_separated, split
from charrnn.data.vocab import Vocab
from charrnn.text.characters import END, UNKNOWN, first_of, one_line
from charrnn.text.records import format_of

_LARGE_VOCABULARY, _USUAL_VOCABULARY = 20_000, 5_000
_LABELS_SHOWN = 8


def note_about_records(names: Sequence[str], config: CorpusConfig) -> list[str]:
    """Say that files of records are read as plain text, unless the user said what their documents are."""
    records = [name for name in names if format_of(name)]
    if not records or config.has_documents:
        return []
    files = f"{records[0]} is" if len(records) == 1 else f"{records[0]} to {records[-1]} are"
    return [f"{files} read as plain text; --column NAME reads one column of the records"]


def notes_about(
    vocab: Vocab, facts: dict[str, Any], config: CorpusConfig, *, num_valid: int, num_test: int
) -> list[str]:
    """Say what was changed in a text while it was read, what its documents are, and what its characters are.

    facts: of its entry in the cache. num_valid, num_test: characters of its held-out and of its test text.
    """
    notes, counts = [], np.array(facts["counts"])
    if facts["num_marks"]:
        marks = f"{facts['num_marks']:,} byte-order marks inside the text were"
        notes.append(f"{marks if facts['num_marks'] > 1 else '1 byte-order mark inside the text was'} dropped")
    if facts["num_added"]:
        texts = "1 text ends" if facts["num_added"] == 1 else f"{facts['num_added']:,} texts end"
        notes.append(f"{texts} without a newline; one was added before the next text")
    notes += _document_notes(vocab, facts, config)
    if END in vocab.chars and config.valid is None:
        notes += _split_notes(facts, config, num_valid=num_valid, num_test=num_test)
    return notes + _content_notes(vocab, counts, config)


def _document_notes(vocab: Vocab, facts: dict[str, Any], config: CorpusConfig) -> list[str]:
    """Say how many documents a text has, and what separates them."""
    end = vocab.id_of(END)
    if end is None:
        return []
    num_documents, labels = facts["counts"][end], facts["labels"]
    num_label_chars = sum(count * (1 + len(vocab.to_chars(label))) for label, count in labels.items())
    mean = (facts["num_chars"] - num_documents - num_label_chars) / num_documents
    length = "1 character" if round(mean) == 1 else f"{mean:,.0f} characters"
    notes = [f"{num_documents:,} documents {how_separated(config)}, {length} on average"]
    if labels:
        notes.append(_describe_labels(labels))
    if facts["num_skipped"]:
        count = "1 record is" if facts["num_skipped"] == 1 else f"{facts['num_skipped']:,} records are"
        notes.append(f"{count} skipped; the first one is {facts['first_skipped']}")
    if config.documents not in ("", LINES, BLANK_LINES) and num_documents <= facts["num_texts"]:
        notes.append(f"'{config.documents}' separates nothing: each text is one document")
    return notes


def _split_notes(facts: dict[str, Any], config: CorpusConfig, *, num_valid: int, num_test: int) -> list[str]:
    """Say where the lengths of documents change the split much."""
    num_train, asked_valid = split(facts["num_joined"], config)
    shares = {"held-out": (num_valid, asked_valid), "test": (num_test, facts["num_joined"] - num_train - asked_valid)}
    return [
        f"the {part} text has {found:,} characters instead of {asked:,}, because documents are never split"
        for part, (found, asked) in shares.items()
        if not asked <= 2 * found <= 4 * asked
    ]


def _describe_labels(labels: Mapping[str, int]) -> str:
    """Name the most frequent labels with their numbers of documents."""
    shown = first_of([f"{one_line(label)} {count:,}" for label, count in labels.items()], _LABELS_SHOWN)
    return f"{len(labels):,} label{'' if len(labels) == 1 else 's'}: {shown}"


def _content_notes(vocab: Vocab, counts: NDArray[np.int64], config: CorpusConfig) -> list[str]:
    """List what the user should know about a text before training. counts: of each character of the vocabulary."""
    char_counts = dict(zip(vocab.chars, counts.tolist(), strict=True))
    notes, num_chars = [], sum(char_counts.values())
    if num_returns := char_counts.get("\r"):
        advice = "tr -d '\\r' < TEXT > NEW removes them"
        if 2 * char_counts.get("\n", 0) < num_returns:  # they end lines, as on old Macs
            advice = "tr '\\r' '\\n' < TEXT > NEW turns them into newlines"
        notes.append(
            f"the text has {num_returns:,} carriage returns, which are learned like any other character; {advice}"
        )
    num_replaced = char_counts.get("\ufffd") if config.errors == "replace" else None
    if num_replaced:
        notes.append(f"the text now has {num_replaced:,} U+FFFD in place of bytes that are invalid in its encoding")
    if num_rare := char_counts.get(UNKNOWN):
        share = num_rare / num_chars
        notes.append(f"{num_rare:,} characters ({share:.3%}) occur fewer than {config.min_count} times: one symbol")
    if len(vocab) > _LARGE_VOCABULARY:
        note = f"{len(vocab):,} distinct characters make up most of the work"
        min_count = int(np.sort(counts)[-_USUAL_VOCABULARY]) + 1
        is_kept = counts >= min_count
        if is_kept.any():
            rare_share = counts[~is_kept].sum() / num_chars
            note += (
                f"; --min-count {min_count} would keep {is_kept.sum():,} of them "
                f"and turn {rare_share:.3%} of the text into one symbol"
            )
        notes.append(note)
    return notes
