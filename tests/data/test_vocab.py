"""Vocabulary: converting text to ids and back, for any text that Python can hold."""

import hashlib
import unicodedata
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from charrnn.data.vocab import Vocab, count_points
from charrnn.errors import InputError, UnknownCharacterError
from charrnn.text.characters import END, LABEL_END, UNKNOWN, describe

ANY_CHARS = st.one_of(  # astral planes, combining marks and lone surrogates more often than by chance
    st.characters(codec=None),
    st.sampled_from("\0\r\n\t\x7f\x85\u2028\ufeff\uffff\U0010ffff"),
    st.characters(min_codepoint=0x300, max_codepoint=0x36F),
    st.characters(min_codepoint=0x10000, max_codepoint=0x10FFFF),
    st.integers(0xD800, 0xDFFF).map(chr),
)
ANY_TEXT = st.text(ANY_CHARS.filter(lambda char: char != UNKNOWN))


def naive_ids(chars, text):
    """Encode with a dictionary, one character at a time."""
    places = {char: index for index, char in enumerate(chars)}
    return [places[char] for char in text]


def vocab_of_size(size):
    """Return the vocabulary of the first `size` code points."""
    return Vocab("".join(map(chr, range(size))))


@settings(max_examples=60)
@given(ANY_TEXT)
@example("")
@example("\r\n\r\n\n\0")
@example("e\u0301\u00e9")
@example("\ud800\udc00\U00010000")
def test_decode_inverts_encode(text):
    """Encoding and decoding returns every text unchanged."""
    vocab = Vocab.from_text(text)
    ids = vocab.encode(text)
    assert ids.shape == (len(text),)
    assert vocab.decode(ids) == text
    assert vocab.decode(ids.tolist()) == text


@settings(max_examples=50)
@given(ANY_TEXT, ANY_TEXT)
def test_encode_matches_a_dictionary(extra, text):
    """The encoder matches a dictionary, even if the vocabulary has more characters than the text."""
    vocab = Vocab.from_text(extra + text)
    assert vocab.encode(text).tolist() == naive_ids(sorted(set(extra + text)), text)


@settings(max_examples=30)
@given(ANY_TEXT)
def test_ids_follow_code_point_order(text):
    """An id is the rank of a character among the distinct ones, whatever their order in the text."""
    vocab = Vocab.from_text(text)
    assert [ord(char) for char in vocab.chars] == sorted({ord(char) for char in text})
    assert len(vocab) == len(set(text))
    assert Vocab.from_text(text[::-1]) == vocab


@pytest.mark.parametrize("chars", ["ba", "aa", "\U00010000\uffff"])
def test_vocabulary_rejects_unsorted_or_repeated_characters(chars):
    """Equal sets of characters are therefore equal vocabularies."""
    with pytest.raises(Exception, match="sorted and distinct"):
        Vocab(chars)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (1, np.uint8),
        (255, np.uint8),
        (256, np.uint8),
        (257, np.uint16),
        (65535, np.uint16),
        (65536, np.uint16),
        (65537, np.uint32),
    ],
)
def test_dtype_is_the_smallest_that_holds_all_ids(size, dtype):
    """The dtype changes where the largest id no longer fits, and that id still decodes correctly."""
    vocab = vocab_of_size(size)
    ends = chr(0) + chr(size - 1)
    ids = vocab.encode(ends)
    assert vocab.dtype is dtype
    assert ids.dtype == dtype
    assert ids.tolist() == [0, size - 1]
    assert vocab.decode(ids) == ends


@pytest.mark.parametrize("size", [256, 65536])
def test_unknown_character_never_overflows_into_an_id(size):
    """The character after the largest one is refused, although its rank would overflow the dtype."""
    vocab = Vocab("".join(char for char in map(chr, range(size + 3)) if char not in (END, UNKNOWN))[:size])
    beyond = chr(size + 3)
    with pytest.raises(UnknownCharacterError):
        vocab.encode(beyond)
    ids, unknown = vocab.encode_known(beyond + "\0")
    assert (ids.tolist(), unknown) == ([0], {beyond: 1})


@settings(max_examples=40)
@given(ANY_TEXT, ANY_TEXT)
@example("\ud800\udc00", "\U00010000")
@example("a", "aa")
@example("ab", "a")
def test_fingerprints_are_equal_if_and_only_if_vocabularies_are(one, other):
    """Two fingerprints are equal if and only if the sets of characters are."""
    assert (Vocab.from_text(one).fingerprint == Vocab.from_text(other).fingerprint) == (set(one) == set(other))


def test_fingerprint_is_the_sha256_of_the_characters():
    """It is the same in every process, unlike Python's own hashes."""
    assert Vocab.from_text("naïve\n").fingerprint == hashlib.sha256("\naenvï".encode()).hexdigest()


@settings(max_examples=50)
@given(ANY_TEXT, ANY_TEXT)
def test_error_names_the_first_unknown_character_and_its_position(known, text):
    """Positions are counted from one."""
    vocab = Vocab.from_text(known)
    unknown = [index for index, char in enumerate(text) if char not in known]
    if not unknown:
        assert vocab.encode(text).tolist() == naive_ids(vocab.chars, text)
        return
    with pytest.raises(UnknownCharacterError) as caught:
        vocab.encode(text)
    first = unknown[0]
    assert f"know {describe(text[first])}, character {first + 1} of" in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "named", "place"),
    [
        ("x", "U+0078 'x'", 1),
        ("ab\u00e9", "U+00E9 'é'", 3),
        ("a\n", "U+000A '\\n'", 2),
        ("aa\U0001f600b", "U+1F600", 3),
        ("b\udcff", "byte 0xFF", 2),
    ],
)
def test_error_shows_the_unknown_character_readably(prompt, named, place):
    """Control characters and lone surrogates are escaped, for example U+000A '\\n'."""
    with pytest.raises(UnknownCharacterError) as caught:
        Vocab.from_text("ab").encode(prompt)
    message = str(caught.value)
    assert f"{named}" in message
    assert f"character {place} " in message
    assert message.isprintable()
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("known", "prompt", "form"),
    [
        ("caf\u00e9", "cafe\u0301", "NFC"),
        ("cafe\u0301", "caf\u00e9", "NFD"),
        ("fish", "\ufb01sh", "NFKC"),
    ],
)
def test_error_names_the_normal_form_that_helps(known, prompt, form):
    """The advice is correct: the normalised text can be encoded."""
    vocab = Vocab.from_text(known)
    with pytest.raises(UnknownCharacterError, match=rf"\b{form}\b"):
        vocab.encode(prompt)
    assert vocab.decode(vocab.encode(unicodedata.normalize(form, prompt))) == unicodedata.normalize(form, prompt)


@pytest.mark.parametrize("prompt", ["caf\u00e8", "cafe\u0301x", "\udc80", "\u1e9b\u0323"])
def test_error_names_no_normal_form_if_none_helps(prompt):
    """There is no advice that would only lead to the next error."""
    with pytest.raises(UnknownCharacterError) as caught:
        Vocab.from_text("caf\u00e9").encode(prompt)
    assert "normal form" not in str(caught.value)


def test_empty_vocabulary_encodes_only_the_empty_text():
    """Any other text is refused or counted as unknown."""
    assert Vocab("").encode("").tolist() == []
    with pytest.raises(UnknownCharacterError):
        Vocab("").encode("a")
    assert Vocab("").encode_known("aa")[1] == {"a": 2}


@settings(max_examples=50)
@given(ANY_TEXT, ANY_TEXT)
def test_encode_known_encodes_known_characters_and_counts_the_others(known, text):
    """Known characters are encoded in order; the others are counted by character."""
    vocab = Vocab.from_text(known)
    ids, unknown = vocab.encode_known(text)
    kept = "".join(char for char in text if char in known)
    assert ids.dtype == vocab.dtype
    assert ids.tolist() == naive_ids(vocab.chars, kept)
    assert unknown == Counter(char for char in text if char not in known)
    assert len(ids) + sum(unknown.values()) == len(text)


@settings(max_examples=50)
@given(known=ANY_TEXT, text=ANY_TEXT, has_unknown=st.booleans(), piece=st.integers(1, 5))
def test_a_text_is_the_known_characters_around_the_unknown_ones(known, text, has_unknown, piece):
    """Each unknown one has the place of the next known one, or of the symbol that replaces it."""
    text = text.replace(UNKNOWN, "")
    vocab = Vocab.from_text(known.replace(UNKNOWN, "") + has_unknown * UNKNOWN)
    with mock.patch("charrnn.data.vocab._PIECE", piece):
        ids, unknown = vocab.encode_around(text)
    chars = list(vocab.decode(ids))
    for place, point in reversed(unknown.tolist()):
        chars[place : place + has_unknown] = [chr(point)]
    assert "".join(chars) == vocab.decode_around(ids, unknown) == text


def test_unknown_characters_are_sorted_by_frequency():
    """A report that shows only a few of them shows the most frequent ones."""
    _, unknown = Vocab.from_text("a").encode_known("xyzzyazaaz")
    assert list(unknown.items()) == [("z", 4), ("y", 2), ("x", 1)]


@settings(max_examples=40)
@given(text=ANY_TEXT, piece=st.integers(1, 5))
def test_result_does_not_depend_on_the_size_of_pieces(text, piece):
    """A long text is encoded piece by piece."""
    vocab = Vocab.from_text(text)
    half = Vocab(vocab.chars[::2])
    whole = vocab.encode(text).tolist(), *half.encode_known(text)
    with mock.patch("charrnn.data.vocab._PIECE", piece):
        assert Vocab.from_text(text) == vocab
        assert vocab.encode(text).tolist() == whole[0]
        ids, missing = half.encode_known(text)
    assert ids.tolist() == whole[1].tolist()
    assert missing == whole[2]


def test_position_of_unknown_character_counts_earlier_pieces():
    """The position is counted from the beginning of the text."""
    with (
        mock.patch("charrnn.data.vocab._PIECE", 3),
        pytest.raises(UnknownCharacterError, match="character 8 of the text"),
    ):
        Vocab("a").encode("aaaaaaab")


@example(["a" + LABEL_END], 2)
@settings(max_examples=40)
@given(st.lists(ANY_TEXT, max_size=5), st.integers(1, 4))
def test_rare_characters_become_unknown(pieces, min_count):
    """Characters with a smaller count have no id of their own; the marks of documents always have one."""
    text = "".join(pieces)
    frequent = {char for char, count in Counter(text).items() if count >= min_count or char in (END, LABEL_END)}
    vocab = Vocab.from_counts(count_points(pieces), min_count=min_count)
    rare = set(text) - frequent
    assert set(vocab.chars) == frequent | ({UNKNOWN} if rare else set())
    expected = [vocab.chars.index(char if char in frequent else UNKNOWN) for char in text]
    assert vocab.encode(text).tolist() == expected
    ids, unknown = vocab.encode_known(text)
    assert ids.tolist() == expected
    assert unknown == {char: text.count(char) for char in rare}


@settings(max_examples=40)
@given(st.lists(ANY_TEXT, max_size=5), st.text(ANY_CHARS), st.integers(1, 4))
@example(["aab"], "bc", 2)
@example(["aab"], UNKNOWN, 1)
@example(["aab"], END, 2)
def test_known_characters_are_always_included(pieces, known, min_count):
    """They are included even if they are rare or missing in the text; the other characters don't change."""
    text = "".join(pieces)
    plain = Vocab.from_counts(count_points(pieces), min_count=min_count)
    vocab = Vocab.from_counts(count_points(pieces), min_count=min_count, known=known)
    rare = set(text) - set(plain.chars) - set(known)
    assert set(vocab.chars) - {UNKNOWN} == (set(plain.chars) | set(known)) - {UNKNOWN}
    assert (UNKNOWN in vocab.chars) == (bool(rare) or UNKNOWN in known)
    decoded = vocab.decode(vocab.encode(text))
    assert decoded == "".join(char if char in vocab.chars else UNKNOWN for char in text)


def test_vocabulary_rejects_more_characters_than_code_points():
    """A longer string is refused before it is converted to code points."""
    everything = "".join(map(chr, range(0x110000)))
    assert len(Vocab(everything)) == 0x110000
    with pytest.raises(ValueError, match="sorted and distinct"):
        Vocab(everything + "\U0010ffff")


@settings(max_examples=50)
@given(st.binary(), st.integers(1, 7))
def test_byte_vocabulary_converts_text_to_bytes_and_back(data, size):
    """Text becomes the bytes of its UTF-8; generated bytes are decoded piece by piece; invalid ones can be replaced."""
    chars = data.decode("ascii", "surrogateescape")
    vocab = Vocab.from_text(chars + "\udc80")
    assert vocab.has_bytes
    decode = vocab.make_decoder()
    pieces = [chars[start : start + size] for start in range(0, len(chars), size)]
    text = "".join([decode(piece, False) for piece in pieces] + [decode("", True)])
    assert text == data.decode("utf-8", "surrogateescape")
    assert vocab.to_chars("aé") == "a\udcc3\udca9"
    assert vocab.to_chars("\udce9") == "\udce9"


def test_vocabulary_without_bytes_leaves_text_unchanged():
    """In both directions."""
    vocab = Vocab.from_text("aé\udc00")
    assert not vocab.has_bytes
    assert vocab.to_chars("aé") == "aé"
    assert vocab.make_decoder()("aé", False) == "aé"


def test_id_of_returns_the_id_or_none():
    """It returns None for a character without an id."""
    assert [Vocab.from_text("bd").id_of(char) for char in "abcde"] == [None, 0, None, 1, None]
