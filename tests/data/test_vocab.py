"""The vocabulary: ids and back, for any text that Python can hold."""

import hashlib
import unicodedata
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charrnn.data.vocab import END, UNKNOWN, Vocab, count_points, describe
from charrnn.errors import InputError, UnknownCharacterError

ANY_CHARS = st.one_of(  # astral planes, combining marks and lone surrogates more often than chance would
    st.characters(codec=None),
    st.sampled_from("\0\r\n\t\x7f\x85\u2028\ufeff\uffff\U0010ffff"),
    st.characters(min_codepoint=0x300, max_codepoint=0x36F),
    st.characters(min_codepoint=0x10000, max_codepoint=0x10FFFF),
    st.integers(0xD800, 0xDFFF).map(chr),
)
ANY_TEXT = st.text(ANY_CHARS.filter(lambda char: char != UNKNOWN))


def naive_ids(chars, text):
    """The ids by a dictionary, one character at a time."""
    places = {char: index for index, char in enumerate(chars)}
    return [places[char] for char in text]


def vocab_of_size(size):
    """The vocabulary of the first `size` code points."""
    return Vocab("".join(map(chr, range(size))))


@given(ANY_TEXT)
@example("")
@example("\r\n\r\n\n\0")
@example("e\u0301\u00e9")
@example("\ud800\udc00\U00010000")
def test_decode_undoes_encode(text):
    """Every text comes back from its ids, code point by code point."""
    vocab = Vocab.of(text)
    ids = vocab.encode(text)
    assert ids.shape == (len(text),)
    assert vocab.decode(ids) == text
    assert vocab.decode(ids.tolist()) == text


@given(ANY_TEXT, ANY_TEXT)
def test_encode_is_a_look_up(extra, text):
    """The fast encoder equals a dictionary's, also where the vocabulary holds more than the text."""
    vocab = Vocab.of(extra + text)
    assert vocab.encode(text).tolist() == naive_ids(sorted(set(extra + text)), text)


@given(ANY_TEXT)
def test_characters_stand_in_code_point_order(text):
    """An id is a character's rank among the distinct ones, whatever the text's order."""
    vocab = Vocab.of(text)
    assert [ord(char) for char in vocab.chars] == sorted({ord(char) for char in text})
    assert len(vocab) == len(set(text))
    assert Vocab.of(text[::-1]) == vocab


@pytest.mark.parametrize("chars", ["ba", "aa", "\U00010000\uffff"])
def test_only_sorted_and_distinct_characters_make_a_vocabulary(chars):
    """A string out of order can't become one, so equal sets are equal vocabularies."""
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
def test_ids_are_as_narrow_as_they_can_be(size, dtype):
    """The dtype changes where the largest id no longer fits; that id still comes back right."""
    vocab = vocab_of_size(size)
    ends = chr(0) + chr(size - 1)
    ids = vocab.encode(ends)
    assert vocab.dtype is dtype
    assert ids.dtype == dtype
    assert ids.tolist() == [0, size - 1]
    assert vocab.decode(ids) == ends


@pytest.mark.parametrize("size", [256, 65536])
def test_an_unknown_character_never_wraps_to_an_id(size):
    """One past the largest character is refused, though its rank would overflow the dtype."""
    vocab = Vocab("".join(char for char in map(chr, range(size + 3)) if char not in (END, UNKNOWN))[:size])
    beyond = chr(size + 3)
    with pytest.raises(UnknownCharacterError):
        vocab.encode(beyond)
    ids, unknown = vocab.encode_known(beyond + "\0")
    assert (ids.tolist(), unknown) == ([0], {beyond: 1})


@given(ANY_TEXT, ANY_TEXT)
@example("\ud800\udc00", "\U00010000")
@example("a", "aa")
@example("ab", "a")
def test_fingerprints_are_equal_exactly_when_vocabularies_are(one, other):
    """Two fingerprints agree if and only if the characters do."""
    assert (Vocab.of(one).fingerprint == Vocab.of(other).fingerprint) == (set(one) == set(other))


def test_a_fingerprint_is_sha256_of_the_characters():
    """It doesn't vary between processes, as Python's own hashes do."""
    assert Vocab.of("naïve\n").fingerprint == hashlib.sha256("\naenvï".encode()).hexdigest()


@given(ANY_TEXT, ANY_TEXT)
def test_the_first_unknown_character_is_named_with_its_place(known, text):
    """The error says which code point, and where, counting from one."""
    vocab = Vocab.of(known)
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
        ("b\udcff", "U+DCFF '\\udcff'", 2),
    ],
)
def test_an_unknown_character_is_written_so_that_it_can_be_read(prompt, named, place):
    """As in U+00E9 'é': control characters and lone surrogates are escaped."""
    with pytest.raises(UnknownCharacterError) as caught:
        Vocab.of("ab").encode(prompt)
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
def test_the_normal_form_that_would_help_is_named(known, prompt, form):
    """A prompt that only needs normalising says so, and the advice is true."""
    vocab = Vocab.of(known)
    with pytest.raises(UnknownCharacterError, match=rf"\b{form}\b"):
        vocab.encode(prompt)
    assert vocab.decode(vocab.encode(unicodedata.normalize(form, prompt))) == unicodedata.normalize(form, prompt)


@pytest.mark.parametrize("prompt", ["caf\u00e8", "cafe\u0301x", "\udc80", "\u1e9b\u0323"])
def test_no_normal_form_is_named_where_none_helps(prompt):
    """There is no advice that would only lead to the next error."""
    with pytest.raises(UnknownCharacterError) as caught:
        Vocab.of("caf\u00e9").encode(prompt)
    assert "normal form" not in str(caught.value)


def test_an_empty_vocabulary_knows_nothing():
    """It encodes the empty text and refuses any other."""
    assert Vocab("").encode("").tolist() == []
    with pytest.raises(UnknownCharacterError):
        Vocab("").encode("a")
    assert Vocab("").encode_known("aa")[1] == {"a": 2}


@given(ANY_TEXT, ANY_TEXT)
def test_encode_known_keeps_the_known_and_counts_the_rest(known, text):
    """What is in the vocabulary is encoded in order; everything else is counted by character."""
    vocab = Vocab.of(known)
    ids, unknown = vocab.encode_known(text)
    kept = "".join(char for char in text if char in known)
    assert ids.dtype == vocab.dtype
    assert ids.tolist() == naive_ids(vocab.chars, kept)
    assert unknown == Counter(char for char in text if char not in known)
    assert len(ids) + sum(unknown.values()) == len(text)


def test_the_most_frequent_unknown_character_comes_first():
    """A report that shows a few of them shows those that matter."""
    _, unknown = Vocab.of("a").encode_known("xyzzyazaaz")
    assert list(unknown.items()) == [("z", 4), ("y", 2), ("x", 1)]


@given(text=ANY_TEXT, piece=st.integers(1, 5))
def test_pieces_of_any_size_give_the_same(text, piece):
    """A long text is encoded piece by piece; where the pieces are cut shows nowhere."""
    vocab = Vocab.of(text)
    half = Vocab(vocab.chars[::2])
    whole = vocab.encode(text).tolist(), *half.encode_known(text)
    with mock.patch("charrnn.data.vocab._PIECE", piece):
        assert Vocab.of(text) == vocab
        assert vocab.encode(text).tolist() == whole[0]
        ids, missing = half.encode_known(text)
    assert ids.tolist() == whole[1].tolist()
    assert missing == whole[2]


def test_an_unknown_character_in_a_later_piece_is_counted_from_the_texts_beginning():
    """Its number is its place in the text."""
    with (
        mock.patch("charrnn.data.vocab._PIECE", 3),
        pytest.raises(UnknownCharacterError, match="character 8 of the text"),
    ):
        Vocab("a").encode("aaaaaaab")


@given(st.lists(ANY_TEXT), st.integers(1, 4))
def test_rare_characters_share_a_symbol(pieces, min_count):
    """Those counted less often have no id of their own; the end of a document always has one."""
    text = "".join(pieces)
    often = {char for char, count in Counter(text).items() if count >= min_count or char == END}
    vocab = Vocab.of_counts(count_points(pieces), min_count=min_count)
    rare = set(text) - often
    assert set(vocab.chars) == often | ({UNKNOWN} if rare else set())
    expected = [vocab.chars.index(char if char in often else UNKNOWN) for char in text]
    assert vocab.encode(text).tolist() == expected
    ids, unknown = vocab.encode_known(text)
    assert ids.tolist() == expected
    assert unknown == {char: text.count(char) for char in rare}


@given(st.lists(ANY_TEXT), st.text(ANY_CHARS), st.integers(1, 4))
@example(["aab"], "bc", 2)
@example(["aab"], UNKNOWN, 1)
@example(["aab"], END, 2)
def test_known_characters_are_there_anyway(pieces, known, min_count):
    """However rare they are in the text, or missing; the others are as without them."""
    text = "".join(pieces)
    alone = Vocab.of_counts(count_points(pieces), min_count=min_count)
    vocab = Vocab.of_counts(count_points(pieces), min_count=min_count, known=known)
    rare = set(text) - set(alone.chars) - set(known)
    assert set(vocab.chars) - {UNKNOWN} == (set(alone.chars) | set(known)) - {UNKNOWN}
    assert (UNKNOWN in vocab.chars) == (bool(rare) or UNKNOWN in known)
    decoded = vocab.decode(vocab.encode(text))
    assert decoded == "".join(char if char in vocab.chars else UNKNOWN for char in text)


def test_there_are_no_more_characters_than_code_points():
    """A longer string is none, and isn't sorted to find that out."""
    everything = "".join(map(chr, range(0x110000)))
    assert len(Vocab(everything)) == 0x110000
    with pytest.raises(ValueError, match="sorted and distinct"):
        Vocab(everything + "\U0010ffff")


@given(st.binary(), st.integers(1, 7))
def test_bytes_are_spelt_and_read_back(data, size):
    """A vocabulary of bytes spells a person's text as UTF-8, and reads what is drawn, piece by piece."""
    spelt = data.decode("ascii", "surrogateescape")
    vocab = Vocab.of(spelt + "\udc80")
    assert vocab.of_bytes
    read = vocab.reader()
    pieces = [spelt[start : start + size] for start in range(0, len(spelt), size)]
    assert "".join([read(piece, False) for piece in pieces] + [read("", True)]) == data.decode("utf-8", "replace")
    assert vocab.spell("aé") == "a\udcc3\udca9"
    assert vocab.spell("\udce9") == "\udce9"


def test_characters_are_spelt_as_they_are():
    """A vocabulary without bytes leaves text alone in both directions."""
    vocab = Vocab.of("aé\udc00")
    assert not vocab.of_bytes
    assert vocab.spell("aé") == "aé"
    assert vocab.reader()("aé", False) == "aé"


def test_an_id_is_looked_up():
    """By its character; None for one without."""
    assert [Vocab.of("bd").id_of(char) for char in "abcde"] == [None, 0, None, 1, None]
