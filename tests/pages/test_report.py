"""The report as a string: exact, escaped, inert, and the same for the same facts."""

import base64
import hashlib
import html
import re

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scores import Copied, CopiedShares, Evaluation
from charrnn.pages import report as module
from charrnn.pages.report import draw_samples, render
from charrnn.text.characters import END, UNKNOWN
from tests.conftest import draw_text, make_model_file, make_text
from tests.pages.reports import (
    HOSTILE,
    make_inside,
    make_predictions,
    make_report,
    random_predictions,
    usual_page,
    words_of,
)

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
    """With all colourings of 100,000 characters, whose predictions are as varied as those of a real model."""
    text = make_text(100_000)
    predictions = random_predictions(Vocab.from_text(text), text, is_mixture=True)
    score = Evaluation(2e5, len(text), {})
    page = render(make_report(text, assessment={"score": score}, predictions=predictions, inside=make_inside(text)))
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
    assert "not scored, and the text below lacks them: U+003C LESS-THAN SIGN 2×." in text
    assert "bits per character with dynamic evaluation: a copy of the model learns from the text as it reads" in text
    many = Evaluation(1.0, 1, dict.fromkeys(map(chr, range(0x4E00, 0x4E00 + 13)), 5))
    page = render(make_report(assessment={"score": many, "adapted": None}))
    assert "U+4E09 5× and 3 more." in page
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


# lines and samples


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


def test_the_page_says_whether_its_text_lacks_unknown_characters():
    """They are shown if the model has a symbol for them."""
    lacks = "so they are not scored, and the text below lacks them: "
    assert lacks in words_of(usual_page())
    words = words_of(render(make_report(vocab=Vocab.from_text(HOSTILE + UNKNOWN))))
    assert lacks not in words
    assert "so they are not scored: " in words


def test_a_page_about_a_model_of_bytes_has_bits_per_byte():
    """In its head, its tables and its curves."""
    words = words_of(render(make_report(assessment={"unit": "byte"})))
    for part in ("bits per byte", "bytes scored", "bits/byte", "loss (bits per byte)", "bytes per second"):
        assert part in words
    assert "per character" not in words
