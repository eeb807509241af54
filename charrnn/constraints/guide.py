"""What a text must satisfy, as the kernels read it: options become one automaton, and an index of a text's runs.

Letters: V vocabulary, C classes of characters, Q states, N characters of a text.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

import numpy as np

from charrnn.config import SampleConfig
from charrnn.constraints.automata import (
    FORBIDDEN,
    UNREACHABLE,
    Automaton,
    add_end,
    count_to,
    intersect,
    measure_distances,
    repeat_lines,
)
from charrnn.constraints.patterns import compile_pattern, option_and_value
from charrnn.data.vocab import Ids, Vocab
from charrnn.errors import UsageError
from charrnn.kernels.filters import COMPLETE, Constraints, free_text
from charrnn.kernels.ngrams import hash_ngrams
from charrnn.text.characters import END, SYMBOLS


@dataclass(frozen=True)
class Guide:
    """The constraints of a text, and the state of their automaton after the prompt."""

    constraints: Constraints
    start: int = COMPLETE


def make_guide(config: SampleConfig, vocab: Vocab) -> Guide | None:
    """Turn --match, --allow, --forbid and --min-length into an automaton; None if none of them is given.

    Raises UsageError for constraints that no text satisfies.
    """
    if config.match is None and config.allow is None and config.forbid is None and not config.min_length:
        return None
    _check_effects(config, vocab)
    has_lines, start = config.lines > 0, _read_prompt(config, vocab)
    guide = _build(vocab, config.match, start, config.allow, config.forbid, config.min_length, has_lines)
    _check_reach(config, int(guide.constraints.distance[guide.start]))
    return guide


@lru_cache(maxsize=64)
def _build(
    vocab: Vocab,
    match: str | None,
    start: int,
    allow: str | None,
    forbid: str | None,
    min_length: int,
    has_lines: bool,
) -> Guide:
    """Build the automaton of all constraints. start: the state of the automaton of `match` after the prompt."""
    automata = []
    if match is not None:
        automata.append(replace(_whole(match, vocab, has_lines), start=start))
    if allow is not None:
        automata.append(_whole(f"[{re.escape(allow)}]*", vocab, has_lines))
    if forbid is not None:
        automata.append(_whole(f"[^{re.escape(forbid)}]*", vocab, has_lines))
    if min_length:
        automata.append(_lines_of(count_to(min_length, len(vocab)), vocab, has_lines))
    found = reduce(intersect, automata)
    complete = np.full((1, found.transitions.shape[1]), COMPLETE)
    moved = np.where(found.transitions == FORBIDDEN, FORBIDDEN, found.transitions + 1)
    whole = Automaton(found.classes, np.concatenate([complete, moved]), np.append(True, found.accepting))
    end, start = vocab.id_of(END), found.start + 1
    if end is not None:
        whole = add_end(whole, end, COMPLETE)
    transitions, distance = whole.transitions, measure_distances(whole.transitions, whole.accepting)
    if end is None and not has_lines:  # a text ends where nothing can follow
        is_useful = (transitions != FORBIDDEN) & (distance[transitions] < UNREACHABLE)
        is_final = whole.accepting & ~is_useful.any(axis=1)
        transitions = np.where(is_useful & is_final[transitions], COMPLETE, transitions)
        start = COMPLETE if is_final[start] else start
    transitions = np.ascontiguousarray(transitions, np.int32)
    free = free_text(len(vocab))
    return Guide(free._replace(classes=whole.classes, transitions=transitions, distance=distance), start)


def index_runs(length: int, text: Ids, vocab: Vocab) -> Constraints:
    """Make the constraint that no `length` characters of a text are drawn in a row, nor documents' ends crossed.

    length: at least 2.
    """
    ids = np.array(text, np.uint32)
    _, positions = np.unique(hash_ngrams(ids, length), return_index=True)
    end = vocab.id_of(END)
    if end is not None:
        num_ends = np.append(0, np.cumsum(ids == end))
        positions = positions[num_ends[positions + length] == num_ends[positions]]
    order = np.argsort(hash_ngrams(ids, length - 1)[positions], kind="stable")
    return free_text(len(vocab))._replace(text=ids, positions=positions[order], run=length)


def _read_prompt(config: SampleConfig, vocab: Vocab) -> int:
    """Return the state of the automaton of --match after the prompt, or after the last line of the prompt."""
    if config.match is None:
        return 0
    prompt = vocab.to_chars(config.prompt)
    if config.lines:
        prompt = prompt.rpartition("\n")[2]
    state = _whole(config.match, vocab, config.lines > 0).read(vocab.encode_known(prompt)[0].tolist())
    if state == FORBIDDEN:
        raise UsageError(
            f"the prompt is not the beginning of a text that matches {option_and_value('--match', config.match)}"
        )
    return state


@lru_cache(maxsize=16)
def _whole(pattern: str, vocab: Vocab, has_lines: bool) -> Automaton:
    """Return the automaton of texts that match, or of texts whose lines do."""
    return _lines_of(compile_pattern(pattern, vocab, one_line=has_lines), vocab, has_lines)


def _lines_of(automaton: Automaton, vocab: Vocab, has_lines: bool) -> Automaton:
    newline = vocab.id_of("\n")
    return repeat_lines(automaton, newline) if has_lines and newline is not None else automaton


def _check_effects(config: SampleConfig, vocab: Vocab) -> None:
    """Raise UsageError for a constraint that has no effect or leaves nothing."""
    known = set(vocab.chars) - set(SYMBOLS + ("\n" if config.lines else ""))
    left = known - set(config.forbid or "")
    if config.allow is not None:
        wanted = set(config.allow) - set(config.forbid or "")
        left = {char for char in wanted if known.issuperset(vocab.to_chars(char))}
    if not left:
        raise UsageError(f"{_options(config)} leaves nothing to draw of the characters that the model knows")
    if config.forbid is not None and not known.intersection(vocab.to_chars(config.forbid)):
        raise UsageError(f"{option_and_value('--forbid', config.forbid)} has no effect: the model knows none of it")
    if 0 <= config.length < config.min_length:
        raise UsageError(f"--min-length {config.min_length} is more than --length {config.length}")
    can_end_early = END in vocab.chars or config.lines or config.match is not None
    if config.min_length and not can_end_early:
        raise UsageError("--min-length has no effect: the text has --length characters; use --length")


def _check_reach(config: SampleConfig, distance: int) -> None:
    """Raise UsageError if no text ends, or none within the length."""
    if distance == UNREACHABLE:
        after = " after this prompt" if config.prompt else ""
        raise UsageError(f"no text of the model's characters satisfies {_options(config)}{after}")
    if 0 <= config.length < distance:
        raise UsageError(f"{_options(config)} takes at least {distance} characters, but --length is {config.length}")


def _options(config: SampleConfig) -> str:
    """Name the constraints that were given."""
    given = [("--match", config.match), ("--allow", config.allow), ("--forbid", config.forbid)]
    words = [option_and_value(option, value) for option, value in given if value is not None]
    if config.min_length:
        words.append(f"--min-length {config.min_length}")
    return " ".join(words)
