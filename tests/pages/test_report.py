"""The report as a string: exact, escaped, inert, and the same for the same facts."""

import base64
import hashlib
import html
import json
import re
import zlib
from functools import cache

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.data.characters import END, UNKNOWN, name, visible
from charrnn.data.vocab import Vocab, bytes_as_chars
from charrnn.evaluation.scores import Copied, CopiedShares, Evaluation
from charrnn.pages import report as module
from charrnn.pages.report import (
    calibration_bins,
    calibration_error,
    colour_text,
    draw_samples,
    pack_predictions,
    render,
)
from tests.conftest import draw_text, make_model_file, make_text
from tests.pages.reports import HOSTILE, make_predictions, make_report, random_predictions


@cache
def usual_page() -> str:
    """The page with everything on it."""
    return render(make_report())


def words_of(page: str) -> str:
    """The page's words in one line, without its markup."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def data_of(page: str) -> dict:
    """The page's data, its arrays unpacked."""
    (code,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert not set(code) & set("<>&\u2028")
    data = json.loads(code)
    for key in ("ids", "surprisal", "ranks", "top", "probabilities"):
        width, packed_bytes = data[key]
        data[key] = np.frombuffer(zlib.decompress(base64.b64decode(packed_bytes)), f"<u{width}")
    return data


def text_of(blocks: str) -> str:
    """The coloured text without its markup."""
    return html.unescape(re.sub(r"</?[pui][^>]*>", "", blocks))


# the page as a whole


def test_equal_reports_are_equal_pages():
    """Nothing depends on the clock or on hashing."""
    assert render(make_report()) == usual_page()


def test_the_policy_allows_only_the_pages_own_style_and_script():
    """Each occurs once, and its hash is that of its source."""
    page = usual_page()
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    (style,), (script,) = (
        re.findall(r"<style>(.*?)</style>", page, re.S),
        re.findall(r"<script>(.*?)</script>", page, re.S),
    )
    hashes = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in (style, script)]
    assert html.unescape(policy) == (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert page.count("<script") == 2  # the other one holds data
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_untrusted_text_stays_text():
    """It adds no tag, handler, style or address."""
    page = usual_page()
    for harm in ("<script>alert", "<img", "<svg onload", "</title><script", "49}", "<b>\u202e"):
        assert harm not in page
    markup = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    assert not re.search(r"<[^>]*\s(on\w+|style|src)\s*=", markup)
    assert {address for address in re.findall(r'href="(.*?)"', markup) if not address.startswith("#")} == set()
    assert "{{ 7 * 7 }}" in page
    assert not set(page) & set("\u202e\u2066\u200b\u2028\x1b\x00\x7f\x85\r\ue000")
    page.encode()  # no lone surrogates


@pytest.mark.slow
def test_a_page_of_the_usual_size_stays_under_three_megabytes():
    """With as many characters as the held-out part of tiny Shakespeare, and predictions as varied."""
    text = make_text(111_540)
    page = render(make_report(text, assessment={"score": Evaluation(2e5, len(text), {})}))
    assert 1_000_000 < len(page.encode()) < 3_000_000


def test_bytes_per_character_of_a_page():
    """A page takes less than 27 bytes for each character of the text."""
    short, long = (len(render(make_report(make_text(size))).encode()) for size in (1000, 11_000))
    assert 9 < (long - short) / 10_000 < 27


# the head


def test_the_head_separates_the_plain_score_from_the_adapted_one():
    """It also lists the characters outside the vocabulary."""
    text = words_of(render(make_report(assessment={"score": Evaluation(np.log(2) * 200, 100, {"<": 2})})))
    assert "2.000 bits per character" in text
    assert "perplexity 4.00" in text
    assert "not scored: U+003C LESS-THAN SIGN 2×." in text
    assert "bits per character with dynamic evaluation: a copy of the model learns from the text as it reads" in text
    many = Evaluation(1.0, 1, dict.fromkeys(map(chr, range(0x4E00, 0x4E00 + 13)), 5))
    page = render(make_report(assessment={"score": many, "adapted": None}))
    assert "U+4E09 5×, 3 more." in page
    assert "dynamic evaluation" not in page


def test_the_models_row_comes_first():
    """Bars are relative to the largest score."""
    page = render(make_report(assessment={"score": Evaluation(1.5, 1, {})}))
    rows = page.split('<tr class="own">')[1].split("</table>")[0]
    assert re.findall(r'<rect class="(\w+)" width="([\d.]+)"', rows.replace('class="rail" width="100"', "")) == [
        ("own", "50.00"),
        ("other", "100.00"),
    ]
    assert "order &lt;0&gt;" in rows


def test_a_mixtures_experts_are_named():
    """Its row has their scores, and the text says that the learning curves are the network's."""
    mixed = Evaluation(np.log(2) * 200, 100, {}, experts=(np.log(2) * 300, np.log(2) * 250))
    words = words_of(render(make_report(assessment={"score": mixed})))
    assert "this model network alone 3.000, n-grams alone 2.500" in words
    assert "The curves show the network alone, without n-grams." in words
    assert "without n-grams" not in words_of(usual_page())


def test_each_empty_section_says_so():
    """A report may lack everything but the score."""
    nothing = {"baselines": (), "copied": None, "adapted": None}
    page = render(make_report(assessment=nothing, hardest=[], samples=[], log=[], verdict=""))
    for words in ("No baselines were computed", "There are no lines", "No samples were drawn", "log of this model"):
        assert words in page
    assert 'id="loss-chart-title"' not in page


# the coloured text


def test_each_character_is_one_code_point():
    """It is itself, or a visible character instead of it."""
    vocab = Vocab.from_text(HOSTILE)
    shown = text_of(colour_text(HOSTILE, random_predictions(vocab, HOSTILE).nats))
    assert shown == "".join(map(visible, HOSTILE))
    assert len(shown) == len(HOSTILE)
    assert "</script><script>alert(1)</script>↵" in shown
    assert "␛[31mred␛[0m␍↵␉a tab↵�override���↵" in shown
    assert "\U0001f600\U0001f469�\U0001f680x 中文字 ��␀␡�]]>" in shown


def test_bytes_that_make_a_character_show_it():
    """It is at the first byte, with a dot for each other; bytes that make no character are replaced."""
    text = bytes_as_chars("né中\U0001f600\u202e!") + "\udcff\udce4\udcb8x\udced\udca0\udc80"
    shown = text_of(colour_text(text, np.zeros(len(text))))
    assert shown == "né·中··\U0001f600···\ufffd··!" + "\ufffd" * 3 + "x" + "\ufffd" * 3
    assert len(shown) == len(text)


def test_neighbours_of_one_level_share_an_element():
    """Lines are blocks; the lowest level has no element; a limit belongs to the level above it."""
    surprisal = np.array([0.1, 0.2, 0.5, 0.99, 1.0, 9.0, 0.0])
    assert (
        colour_text("ab<de\n\n", surprisal)
        == "<p>ab<i class=a>&lt;d</i><i class=b>e</i><i class=g><u>↵</u></i></p><p><u>↵</u></p>"
    )


def test_only_replacements_are_faint():
    """The same characters are not if the text itself contains them."""
    assert colour_text("a·↵␉\t", np.zeros(5)) == '<p>a·↵␉<u class="t">␉</u></p>'


def test_long_lines_are_cut_into_blocks():
    """The browser would lay out a block of 100,000 characters slowly."""
    blocks = colour_text("x" * 2500, np.zeros(2500)).split("</p>")
    assert [len(block.removeprefix("<p>")) for block in blocks] == [1000, 1000, 500, 0]


def test_only_the_beginning_of_a_long_text_is_shown():
    """The page says how much."""
    page = render(make_report(assessment={"score": Evaluation(1e4, 12345, {})}))
    assert f"the first {len(HOSTILE)} of 12,345 characters" in words_of(page)


def test_a_text_of_one_character():
    """There may be nothing to compare its copied share with."""
    page = render(make_report("a", assessment={"copied": CopiedShares(Copied(1, 0, 0), None, Copied(0, 0, 0))}))
    assert "Shown here: 1 character." in words_of(page)
    assert "<p>a</p>" in page or "<p><i class=" in page
    assert "Copied" not in page


def test_a_text_of_no_characters():
    """Sentences replace the text and the calibration."""
    nothing = make_predictions(*(np.zeros(0, int) for _ in range(3)), np.zeros((0, 5), int), np.zeros((0, 5)))
    page = render(make_report("a", predictions=nothing))
    assert "There are no predictions to show." in page
    assert "There are no predictions to calibrate." in page
    assert 'id="data"' not in page


# the data for the script


def test_the_data_are_the_predictions():
    """All of them, as exactly as they are shown."""
    vocab = Vocab.from_text(HOSTILE)
    predictions = random_predictions(vocab, HOSTILE)
    data = data_of(usual_page())
    num = len(HOSTILE)
    assert data["size"] == len(vocab)
    names = [called for _, called in data["chars"]]
    assert [names[i] for i in data["ids"]] == [name(char) for char in HOSTILE]
    assert data["surprisal"] == pytest.approx(100 * predictions.nats / np.log(2), abs=0.501)
    assert (data["ranks"] == predictions.ranks).all()
    for k in range(5):
        likely = vocab.decode(predictions.top[:, k])
        assert [names[i] for i in data["top"][k * num : (k + 1) * num]] == [name(char) for char in likely]
        share = data["probabilities"][k * num : (k + 1) * num]
        assert share == pytest.approx(1000 * predictions.probabilities[:, k], abs=0.501)


@pytest.mark.parametrize("size", [300, 70_000])
def test_large_vocabularies_take_wider_numbers(size):
    """Only the characters that occur are listed."""
    vocab = Vocab("".join(map(chr, [*range(0x3000, 0xD800), *range(0xE000, 0xE000 + size)]))[-size:])
    ids = np.array([0, size - 1], vocab.dtype)
    top = np.array([[size - 1, 7], [0, 7]], np.int32)
    few = make_predictions(ids, np.ones(2), np.array([size - 1, 0], np.int32), top, np.full((2, 2), 0.5, np.float32))
    data = data_of(f'<script type="application/json" id="data">{pack_predictions(vocab, few)}</script>')
    assert len(data["chars"]) == 3
    assert data["ids"].tolist() == [0, 2]
    assert data["top"].tolist() == [2, 0, 1, 1]
    assert data["ranks"].tolist() == [size - 1, 0]
    every = make_predictions(
        np.arange(300), np.ones(300), np.zeros(300, np.int32), np.zeros((300, 1), np.int32), np.ones((300, 1))
    )
    code = pack_predictions(vocab, every)
    ids = data_of(f'<script type="application/json" id="data">{code}</script>')["ids"]
    assert ids.tolist() == list(range(300))


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


# learning curves


def test_the_log_becomes_curves():
    """The best evaluation is the one that the log calls so, and points above the plot are mentioned."""
    page = " ".join(usual_page().split())
    assert "during training was 1.623 bits per character, at step 800." in page
    assert "Points above the plot reach 4.33 bits." in page
    assert "held-out: first 1.876 at step 100, lowest 1.619 at step 900, last 1.619 at step 900" in page
    assert "learning rate: first 0.001 at step 10" in page
    assert "characters per second: first 50,010 at step 10" in page


def test_a_damaged_log_is_read_as_far_as_possible():
    """Events of other types, and those with missing or absurd values, are skipped."""
    good = {"event": "evaluated", "step": 5, "nats_per_char": 1.0, "best": True}
    wrong = [None, "5", True, float("nan"), float("inf"), -1, 10**400, [], {}]
    log = [None, 3, "event", [], {}, {"event": []}, {"event": "progress"}]
    for value in wrong:
        log += [
            {"event": kind, "step": value, "nats_per_char": 1.0, "best": True} for kind in ("progress", "evaluated")
        ]
        log += [
            {"event": kind, "step": 7, "nats_per_char": value, "learning_rate": value, "chars_per_second": value}
            for kind in ("progress", "evaluated")
        ]
    assert "The log of this model's training was not found" in render(make_report(log=log))
    assert "1.443 bits per character, at step 5." in words_of(render(make_report(log=[*log, good])))
    assert "not scored during training" in render(
        make_report(log=[{"event": "progress", "step": 0, "nats_per_char": 0}])
    )


def test_the_last_event_of_a_repeated_step_counts():
    """A run that diverged goes back some steps."""
    log = [
        {"event": "evaluated", "step": step, "nats_per_char": nats} for step, nats in [(5, 9.0), (10, 8.0), (5, 2.0)]
    ]
    assert module._read_points(log, "evaluated", "nats_per_char") == [(5.0, 2.0), (10.0, 8.0)]


# calibration, lines, samples


def test_calibration_by_hand():
    """Two positions with two candidates each: 0.75 came true, 0.25 did not, and one of two at 0.5 did."""
    halves = np.array([[0.75, 0.25], [0.5, 0.5]], np.float32)
    top = np.array([[0, 1], [0, 1]], np.int32)
    bins = calibration_bins(make_predictions(np.array([0, 1]), np.zeros(2), np.zeros(2, np.int32), top, halves))
    found = {place: (one.count, one.predicted, one.observed) for place, one in enumerate(bins) if one.count}
    assert found == {7: (1, 0.75, 1.0), 2: (1, 0.25, 0.0), 5: (2, 0.5, 0.5)}
    assert calibration_error(bins) == pytest.approx((0.25 + 0.25 + 0 + 0) / 4)
    assert len(bins) == 10


def test_certainty_is_in_the_last_bin():
    """A probability of 1 has no bin of its own."""
    sure = make_predictions(np.zeros(1, int), np.zeros(1), np.zeros(1, int), np.zeros((1, 1), int), np.ones((1, 1)))
    assert [one.count for one in calibration_bins(sure)] == [0] * 9 + [1]
    assert calibration_error([]) == 0


def test_long_lines_are_shortened_in_the_table():
    """To 200 characters."""
    assert "y" * 199 + "…" in usual_page()
    assert "y" * 201 not in usual_page()


def test_samples_keep_their_line_breaks():
    """`pre` drops its first newline, so there is one more."""
    page = render(make_report(samples=[(0.8, "\nfirst\n  second")]))
    assert '<pre dir="auto">\n\nfirst\n  second</pre>' in page
    words = words_of(page)
    assert "Copied: 10.0% of what it writes occurs in the training text" in words
    assert "(longest run 40; the network alone 5.0%). Of the scored text: 0.5% (longest run 31)." in words


def test_samples_are_drawn_at_each_temperature(monkeypatch):
    """They are the same each time."""
    monkeypatch.setattr(module, "SAMPLE_LENGTH", 30)
    file = make_model_file(ModelConfig("gru", vocab_size=9, embedding_dim=4, hidden_size=8, num_layers=1))
    expected = [(t, draw_text(file, length=30, temperature=t, seed=0)) for t in module.TEMPERATURES]
    assert draw_samples(file, threads=1) == draw_samples(file, threads=2) == expected


def test_samples_end_with_a_line_and_documents_are_whole(monkeypatch):
    """A line that the length cuts off is left out; of documents there are several, a line each."""
    config = ModelConfig("gru", vocab_size=3, embedding_dim=4, hidden_size=8, num_layers=1)
    for _, text in draw_samples(make_model_file(config, chars="\nab"), threads=1):
        assert text.endswith("\n")
        assert 500 < len(text) <= module.SAMPLE_LENGTH
    config = ModelConfig("gru", vocab_size=3, embedding_dim=4, hidden_size=8, num_layers=1, reset_id=2)
    for _, text in draw_samples(make_model_file(config, chars="ab" + END), threads=1):
        assert len(text.split("\n")) == module.NUM_DOCUMENTS


def test_a_line_links_to_its_place_in_the_text():
    """If the page shows that place; unknown characters have a column."""
    page = usual_page()
    start = HOSTILE.index("<img")
    assert page.count(f"<p id=c{start}>") == page.count(f'<a href="#c{start}">2</a>') == 1
    row = page.split(f'<a href="#c{start}">')[1].split("</tr>")[0]
    assert re.findall(r'<td class="number">(.*?)</td>', row) == ["4.97", "144", "1"]
    assert page.count("<p id=") == 1
    assert '<th scope="row" class="number">3</th>' in page


def test_a_page_about_a_model_of_bytes_has_bits_per_byte():
    """In its head, its tables and its curves."""
    words = words_of(render(make_report(assessment={"unit": "byte"})))
    for part in ("bits per byte", "bytes scored", "bits/byte", "loss (bits per byte)", "bytes per second"):
        assert part in words
    assert "per character" not in words
