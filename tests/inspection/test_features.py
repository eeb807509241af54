"""The features of a text, character by character."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.vocab import Vocab
from charrnn.inspection.features import NEAR, features, is_in_word, kinds_of
from charrnn.text.characters import END, bytes_as_chars


def feature(name, text):
    """One feature of a text, as a list."""
    vocab = Vocab.from_text(text)
    return features(vocab.encode(text), vocab)[name].tolist()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("the column in the line", "ab\ncd\n\ne", "12012001"),
        ("the characters since the last space", "ab c\nde", "1201012"),
        ("the letters since the word began", "ab, Cd", "120012"),
        ("the line's indentation", "  a b\n c", "12222011"),
        ("being inside quotes", '"a" b', "11000"),
        ("being inside quotes", '"a\n\nb', "11100"),
        ("being inside quotes", "“a” „b", "110011"),
        ("the depth of brackets", "a(b[c])]d(e", "01122100011"),
        ("capitals", "aBc", "010"),
        ("digits", "a1²", "011"),
        ("punctuation", "a,-b", "0110"),
        ("spaces", "a b\nc", "01010"),
        ("a vowel coming next", "bad oo", "100110"),
        ("a space coming next", "ab c", "0100"),
    ],
)
def test_features_are_those_a_reader_counts(name, text, expected):
    """One digit per character; what has happened so far includes the character itself."""
    assert feature(name, text) == [int(digit) for digit in expected]


def test_an_end_is_near_some_characters_before_it():
    """Of a line and of a sentence; the end itself is not near."""
    assert feature("the line's end coming near", "abcdefg\n") == [0, 0] + [1] * NEAR + [0]
    assert feature("the sentence's end coming near", "abcdefg.") == [0, 0] + [1] * NEAR + [0]


def test_a_document_ends_everything():
    """Its line, its word, its quotes and its brackets."""
    text = f'("a{END}b'
    assert feature("the column in the line", text) == [1, 2, 3, 0, 1]
    assert feature("being inside quotes", text) == [0, 1, 1, 0, 0]
    assert feature("the depth of brackets", text) == [1, 1, 1, 0, 0]
    assert feature("the depth of brackets", f"))){END}((") == [0, 0, 0, 0, 1, 2]
    assert feature("the depth of brackets", f"))){END}((") == [0, 0, 0, 0, 1, 2]


def test_bytes_are_parts_of_letters():
    """Those that are not ASCII; all others are what their characters are."""
    text = bytes_as_chars("é 1")
    vocab = Vocab.from_text(text)
    assert is_in_word(kinds_of(vocab)[vocab.encode(text)]).tolist() == [True, True, False, False]


@given(st.text(alphabet='a B\n"(“)”1.\t', max_size=60))
def test_features_are_causal_but_for_what_comes_next(text):
    """More text does not change what has happened so far, and features are finite."""
    vocab = Vocab.from_text(text + "ab")
    whole = features(vocab.encode(text + "ab"), vocab)
    part = features(vocab.encode(text), vocab)
    for name, values in part.items():
        assert np.isfinite(whole[name]).all()
        if "coming" not in name:
            np.testing.assert_array_equal(values, whole[name][: len(text)])
