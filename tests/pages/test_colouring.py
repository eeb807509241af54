"""The coloured text and its data: each character in its place, at its level, and escaped."""

import html
import re

import numpy as np
import pytest

from charrnn.data.vocab import Vocab
from charrnn.pages.colouring import SCALES, Colouring, colour_text, compare_experts, pack
from charrnn.pages.report import render
from charrnn.text.characters import END, UNKNOWN, bytes_as_chars, name, visible
from tests.pages.reports import HOSTILE, data_of, make_predictions, make_report, random_predictions, usual_page


def text_of(blocks: str) -> str:
    """The coloured text without its markup."""
    return html.unescape(re.sub(r"</?[pui][^>]*>", "", blocks))


# the coloured text


def test_each_character_is_one_code_point():
    """It is itself, or a visible character instead of it."""
    vocab = Vocab.from_text(HOSTILE)
    shown = text_of(colour_text(HOSTILE, random_predictions(vocab, HOSTILE).nats, kind="surprisal"))
    assert shown == "".join(map(visible, HOSTILE))
    assert len(shown) == len(HOSTILE)
    assert "</script><script>alert(1)</script>↵" in shown
    assert "␛[31mred␛[0m␍↵␉a tab↵�override���↵" in shown
    assert "\U0001f600\U0001f469�\U0001f680x 中文字 ��␀␡�]]>" in shown


def test_bytes_that_make_a_character_show_it():
    """It is at the first byte, with a dot for each other; bytes that make no character are replaced."""
    text = bytes_as_chars("né中\U0001f600\u202e!") + "\udcff\udce4\udcb8x\udced\udca0\udc80"
    shown = text_of(colour_text(text, np.zeros(len(text)), kind="surprisal"))
    assert shown == "né·中··\U0001f600···\ufffd··!" + "\ufffd" * 3 + "x" + "\ufffd" * 3
    assert len(shown) == len(text)


def test_neighbours_of_one_level_share_an_element():
    """Lines are blocks; the lowest level has no element; a limit belongs to the level above it."""
    surprisal = np.array([0.1, 0.2, 0.5, 0.99, 1.0, 9.0, 0.0])
    assert (
        colour_text("ab<de\n\n", surprisal, kind="surprisal")
        == "<p>ab<i class=a>&lt;d</i><i class=b>e</i><i class=g><u>↵</u></i></p><p><u>↵</u></p>"
    )


def test_only_replacements_are_faint():
    """The same characters are not if the text itself contains them."""
    assert colour_text("a·↵␉\t", np.zeros(5), kind="surprisal") == '<p>a·↵␉<u class="t">␉</u></p>'


def test_long_lines_are_cut_into_blocks():
    """The browser would lay out a block of 100,000 characters slowly."""
    blocks = colour_text("x" * 2500, np.zeros(2500), kind="surprisal").split("</p>")
    assert [len(block.removeprefix("<p>")) for block in blocks] == [1000, 1000, 500, 0]


# other colours


def test_a_scale_is_symmetric():
    """A value at a limit has the colour of the side away from 0."""
    scale = SCALES["experts"]
    values = np.array([-np.inf, -4, -3.9, -0.5, -0.4, 0, np.nan, 0.4, 0.5, 3.9, 4, np.inf])
    assert [scale.classes[level] for level in scale.levels(values)] == [
        *("n4", "n4", "n3", "n1", "", "", "", "", "p1", "p3", "p4", "p4")
    ]


def test_each_level_has_words():
    """For the legend and for the panel."""
    scale = SCALES["unit"]
    near = ["under 0.5", "0.5–1", "1–1.5", "1.5–2", "2 or more"]
    assert scale.legend() == list(zip(scale.classes, near[:0:-1] + near, strict=True))
    words = scale.words()
    assert words[0] == "2 or more standard deviations below its mean"
    assert words[4:6] == ["near its mean", "0.5–1 standard deviations above its mean"]
    assert [words for _, words in SCALES["surprisal"].legend()][::7] == ["under 0.5", "8 or more"]


def test_experts_are_compared_in_bits():
    """A positive number of bits is what the n-grams save; a network without n-grams has nothing to compare."""
    some = random_predictions(Vocab.from_text("ab"), "ab", is_mixture=True)
    some = some._replace(experts=np.log(2) * np.array([[3.0, 1.0], [np.inf, 2.0]]))
    (found,) = compare_experts(some)
    assert found.values[0] == pytest.approx(2)
    assert found.values[1] > 1e3
    assert compare_experts(some._replace(experts=np.zeros((2, 0)))) == []


def test_colourings_are_packed_as_levels():
    """They may be shorter than the text; their names are escaped."""
    some = random_predictions(Vocab.from_text("aab"), "aab")
    odd = Colouring("unit", "</script> & co", np.array([-9.0, 0.7]))
    code = pack(Vocab("ab"), some, [odd])
    assert "</script>" not in code
    (found,) = data_of(f'<script type="application/json" id="data">{code}</script>')["colourings"]
    assert found["name"] == "</script> & co"
    assert found["levels"].tolist() == [0, 5]


# the data for the script


def test_the_data_are_the_predictions():
    """All of them, as exactly as they are shown."""
    vocab = Vocab.from_text(HOSTILE)
    predictions = random_predictions(vocab, HOSTILE)
    data = data_of(usual_page())
    assert data["size"] == len(vocab)
    names = [called for _, called in data["chars"]]
    assert [names[i] for i in data["ids"]] == [name(char) for char in HOSTILE]
    assert data["surprisal"] == pytest.approx(100 * predictions.nats / np.log(2), abs=0.501)
    assert (data["ranks"] == predictions.ranks).all()
    for k in range(5):
        likely = vocab.decode(predictions.top[:, k])
        assert [names[i] for i in data["top"][k::5]] == [name(char) for char in likely]
        code, share = data["probabilities"][k::5].astype(int), predictions.probabilities[:, k].astype(float)
        assert np.where(code < 100, code / 1000, (code - 90) / 100) == pytest.approx(share, rel=0.051, abs=0.000501)


@pytest.mark.parametrize("size", [300, 70_000])
def test_large_vocabularies_take_wider_numbers(size):
    """Only the characters that occur are listed."""
    vocab = Vocab("".join(map(chr, [*range(0x3000, 0xD800), *range(0xE000, 0xE000 + size)]))[-size:])
    ids = np.array([0, size - 1], vocab.dtype)
    top = np.array([[size - 1, 7], [0, 7]], np.int32)
    few = make_predictions(ids, np.ones(2), np.array([size - 1, 0], np.int32), top, np.full((2, 2), 0.5, np.float32))
    data = data_of(f'<script type="application/json" id="data">{pack(vocab, few)}</script>')
    assert len(data["chars"]) == 3
    assert data["ids"].tolist() == [0, 2]
    assert data["top"].tolist() == [2, 1, 0, 1]
    assert data["ranks"].tolist() == [size - 1, 0]
    every = make_predictions(
        np.arange(300), np.ones(300), np.zeros(300, np.int32), np.zeros((300, 1), np.int32), np.ones((300, 1))
    )
    code = pack(vocab, every)
    ids = data_of(f'<script type="application/json" id="data">{code}</script>')["ids"]
    assert ids.tolist() == list(range(300))


@pytest.mark.parametrize(
    ("share", "code"),
    [(0.0, 0), (0.0004, 0), (0.0994, 99), (0.0996, 100), (0.1, 100), (0.104, 100), (1.0, 190), (np.nan, 0)],
)
def test_probabilities_have_two_digits(share, code):
    """Thousandths below 10 %, hundredths above."""
    some = make_predictions(np.zeros(1, int), np.ones(1), np.zeros(1, int), np.zeros((1, 1), int), np.array([[share]]))
    data = data_of(f'<script type="application/json" id="data">{pack(Vocab("a"), some)}</script>')
    assert data["probabilities"].tolist() == [code]


def test_infinite_surprisal_is_a_large_one():
    """An infinite value or NaN gets the deepest colour and the largest number."""
    nats = np.array([np.inf, np.nan, 1e9])
    odd = make_predictions(np.zeros(3, int), nats, np.zeros(3, int), np.zeros((3, 1), int), np.full((3, 1), np.nan))
    page = render(make_report("aaa", predictions=odd))
    assert data_of(page)["surprisal"].tolist() == [65535] * 3
    assert "<p><i class=g>aaa</i></p>" in page


def test_characters_can_be_told_apart_without_context():
    """In the list of the likeliest, invisible ones have labels."""
    chars = "\n \xa0a\u0301\u202e\ufffd" + END + UNKNOWN + "\udce2"
    data = data_of(render(make_report(chars)))
    assert {shown for shown, _ in data["chars"]} == {"↵", "␣", "a", "◌\u0301", "202E", "\ufffd", "end", "rare", "E2"}


def test_a_text_of_bytes_and_documents():
    """Each byte is one position of the text."""
    text = bytes_as_chars("né") + "\n" + END + UNKNOWN
    page = render(make_report(text))
    assert {called for _, called in data_of(page)["chars"]} == set(map(name, text))
    assert "byte 0xC3" in page
    assert "The model reads bytes." in page
    assert "The model reads bytes." not in usual_page()
    page.encode()
