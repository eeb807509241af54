"""Patterns as automata: they match what Python's re matches, in models of characters and of bytes."""

import itertools
import re

import numpy as np
import pytest

from charrnn.constraints.automata import FORBIDDEN, UNREACHABLE, count_to, intersect, measure_distances
from charrnn.constraints.patterns import MAX_STATES, compile_pattern
from charrnn.data.vocab import Vocab
from charrnn.errors import UsageError
from charrnn.text.characters import END, LABEL_END, UNKNOWN, bytes_as_chars

CHARS = "ab\né"
VOCABS = [Vocab.from_text(CHARS), Vocab.from_text(bytes_as_chars(CHARS))]
PATTERNS = [
    "a*b",
    "(a|b)*abb",
    "a{2,3}",
    "a{2,}b?",
    "(ab)?é",
    ".*",
    "(?s).*",
    "[^a]+",
    "(a|ab)(b|é)?",
    "((a|b){2}){1,2}",
    "(a?){2,3}",
    "(a*b*)*",
    "(?i)A+É",
    "(?i:A)b",
    "(?:a|b|)é",
    r"\w+\n?",
    r"\W|[\d\n]",
    "(?a)\\w+",
    "(?P<name>a)+?b",
    "(){1000}a",
    "^a|^b$|\\Aé\\Z",
    "",
    r"(?x) a  b",
]


def accepts(automaton, vocab, text):
    """Whether an automaton accepts a text."""
    return accepts_ids(automaton, vocab.encode(vocab.to_chars(text)).tolist())


def accepts_ids(automaton, ids):
    """Whether an automaton accepts a text of these ids."""
    state = automaton.read(ids)
    return state != FORBIDDEN and bool(automaton.accepting[state])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("vocab", VOCABS, ids=["characters", "bytes"])
def test_a_pattern_matches_what_python_matches(vocab, pattern):
    """All texts of up to five characters."""
    automaton = compile_pattern(pattern, vocab)
    texts = ["".join(chars) for length in range(6) for chars in itertools.product(CHARS, repeat=length)]
    assert [text for text in texts if accepts(automaton, vocab, text)] == [t for t in texts if re.fullmatch(pattern, t)]


@pytest.mark.parametrize("text", [CHARS, bytes_as_chars(CHARS)], ids=["characters", "bytes"])
def test_a_pattern_matches_no_end_of_a_label(text):
    """Models with labels know that symbol too."""
    vocab = Vocab.from_text(text + END + LABEL_END)
    for pattern in ("(?s).", "[^x]", "é"):
        automaton = compile_pattern(pattern, vocab)
        assert accepts(automaton, vocab, "é")
        assert not accepts_ids(automaton, [vocab.id_of(LABEL_END)])


def test_bytes_that_are_no_character_match_nothing():
    """Not even the dot; a character is matched by all of its bytes."""
    vocab = Vocab.from_text(bytes_as_chars("é€😀"))
    automaton = compile_pattern(".", vocab)
    for text in ("é", "€", "😀"):
        assert accepts(automaton, vocab, text)
    chars = bytes_as_chars("é€😀")
    for part in (chars[:1], chars[1:2], chars[2:4], chars[5:8], chars[2] + chars[1]):
        assert not accepts(automaton, vocab, part)


def test_special_symbols_and_a_lines_newline_match_nothing():
    """The end of a document and rare characters are in no set, nor is the newline where the text is a line."""
    vocab = Vocab("\na" + END + UNKNOWN)
    for pattern in ("(?s).", "[^a]", r"\s|\W"):
        automaton = compile_pattern(pattern, vocab)
        assert automaton.read([2]) == automaton.read([3]) == FORBIDDEN
        assert automaton.read([0]) != FORBIDDEN
        assert compile_pattern(pattern, vocab, one_line=True).read([0]) == FORBIDDEN


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("a(?=b)", "look-around"),
        ("(?<!a)b", "look-around"),
        (r"(a)\1", "back reference"),
        ("(a)?(?(1)b|c)", "condition"),
        ("(?>a)b", "atomic group"),
        ("a++", "possessive"),
        (r"\bfoo", "inside a pattern"),
        ("a^", "inside a pattern"),
        ("(a$)*", "inside a pattern"),
        ("[", "unterminated character set"),
        ("a{3,2}", "min repeat greater"),
        ("(?L)a", "not a regular expression"),
        ("x{20000}", "10,000 states"),
        ("(a|b)*a(a|b){20}", "10,000 states"),
        ("(" * 3000 + "a" + ")" * 3000, "too deeply nested"),
    ],
)
def test_what_no_automaton_has_is_refused_in_one_line(pattern, part):
    """With the pattern, cut if it is long."""
    with pytest.raises(UsageError, match=re.escape(part)) as caught:
        compile_pattern(pattern, Vocab("abx"))
    assert str(caught.value).startswith("--match '")
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_ordinary_patterns_have_few_states():
    """Two hundred words, counted repetitions, a word anywhere."""
    vocab = Vocab.from_text("abcdefghijklmnopqrstuvwxyz -\n")
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcdefgh"), 8)) for _ in range(200)]
    for pattern, most in [
        (".{0,40}", 41),
        ("[a-z]{3,8}(-[a-z]{3,8})?", 18),
        ("|".join(words), 1602),
        (".*abc.*", 8),
        (".{0,5000}", 5001),
        ("(a|b)*a(a|b){8}", 512),
    ]:
        assert len(compile_pattern(pattern, vocab).transitions) <= most < MAX_STATES


def test_an_intersection_accepts_what_both_accept():
    """Here texts of a and b that end in b and have at least three characters."""
    vocab = Vocab("ab")
    both = intersect(compile_pattern("(a|b)*b", vocab), count_to(3, 2))
    texts = ["".join(chars) for length in range(6) for chars in itertools.product("ab", repeat=length)]
    assert [t for t in texts if accepts(both, vocab, t)] == [t for t in texts if t.endswith("b") and len(t) >= 3]
    with pytest.raises(UsageError, match="--min-length"):
        count_to(10**6, 2)


def test_distances_are_the_lengths_of_the_shortest_ends():
    """UNREACHABLE where there is none."""
    automaton = compile_pattern("ab(aab)*", Vocab("abc"))
    lengths = {"": 2, "a": 1, "ab": 0, "aba": 2, "abaa": 1}
    distance = measure_distances(automaton.transitions, automaton.accepting)
    for text, length in lengths.items():
        assert distance[automaton.read(Vocab("abc").encode(text).tolist())] == length
    nowhere = compile_pattern("x", Vocab("abc"))
    assert measure_distances(nowhere.transitions, nowhere.accepting).tolist() == [UNREACHABLE]
