"""The report's section about labels, as a string and in a real browser."""

import re
from dataclasses import replace

import numpy as np

from charrnn.pages.labels import MAX_ROWS, show_labels
from charrnn.pages.report import render
from tests.pages.conftest import CONTRAST, EACH_LOOK
from tests.pages.reports import make_labels, make_report, usual_page, words_of

COUNTS = [[6, 2, 0], [0, 3, 0], [1, 0, 0]]
SCORES = make_labels(("Irish", "Greek", "Thai"), COUNTS)
HOSTILE = ("</td><script>alert(5)</script>", "\u202e\x1b[31m\udcff", "<img src=x onerror=alert(6)>" + "w" * 36)


def section_of(page: str) -> str:
    """The section about labels, as HTML."""
    return page.split('<section id="labels">')[1].split("</section>")[0]


def words(scores) -> str:
    """The section's words."""
    return words_of(section_of(render(make_report(labels=scores))))


def test_only_a_model_with_labels_has_the_section():
    """With a link at the top."""
    assert 'id="labels"' not in usual_page()
    assert '"#labels"' not in usual_page()
    assert render(make_report(labels=SCORES)).count('<a href="#labels">Labels</a>') == 1


def test_the_figures_are_those_of_the_scores():
    """Accuracy beside the majority class; bits with the label and without; a row per label."""
    found = words(SCORES)
    assert "The model guesses 75.0&nbsp;% of the labels right. Always naming the most frequent one would be" in found
    assert "right for 66.7&nbsp;%." in found
    given, without = SCORES.bits_given_label(), SCORES.bits_without_label()
    assert f"a character costs {given:.3f} bits; without it, {without:.3f}." in found
    assert "The most frequent mistake: Irish taken for Greek , in 2 documents." in found
    irish, greek = (f"{SCORES.bits_given_label(k):.3f} {SCORES.bits_without_label(k):.3f}" for k in (0, 1))
    assert f"Irish 8 {irish} 75.0&nbsp;% Greek 2" in found
    assert f"Greek 3 {greek} 100.0&nbsp;%" in found
    assert "Scored: all 12 documents, with each of the 3 labels." in found


def test_the_confusion_table_is_shaded_by_share():
    """Blue on the diagonal, orange elsewhere; the numbers are there for everyone."""
    table = section_of(render(make_report(labels=SCORES))).split("confusion")[1]
    rows = [re.findall(r'<td class="number (\w*)">(\d+)</td>', row) for row in table.split("<tr>")[2:]]
    assert rows == [
        [("n3", "6"), ("p1", "2"), ("", "0")],
        [("", "0"), ("n4", "3"), ("", "0")],
        [("p4", "1"), ("", "0"), ("", "0")],
    ]


def test_many_labels_have_no_confusion_table_and_few_rows():
    """Twelve labels still have one."""
    for count in (12, 13, MAX_ROWS + 1):
        scores = make_labels(tuple(map(str, range(count))), np.eye(count, dtype=int))
        shown = show_labels(scores)
        assert len(shown.confusion) == len(shown.columns) == (12 if count == 12 else 0)
        assert len(shown.rows) == min(count, MAX_ROWS)
        assert ("And 1 more labels" in words(scores)) == (count > MAX_ROWS)


def test_documents_that_are_left_out_are_counted():
    """Those not scored, and those whose label the model doesn't know; without any label there is no table."""
    assert "Scored: 12 of 1,012 documents, spread evenly over the text" in words(replace(SCORES, num_left_out=1000))
    assert "1 of them has no label that the model knows" in words(replace(SCORES, own=np.array([*SCORES.own[:-1], -1])))
    found = words(replace(SCORES, own=np.full(12, -1)))
    assert "None of them has a label that the model knows." in found
    assert "guesses" not in found
    assert "<table" not in section_of(render(make_report(labels=replace(SCORES, own=np.full(12, -1)))))


def test_hostile_labels_stay_text():
    """They are escaped, and what can't be shown is replaced."""
    page = render(make_report(labels=make_labels(HOSTILE, COUNTS)))
    for harm in ("<script>alert", "<img", "\u202e", "\x1b"):
        assert harm not in page
    page.encode()


@EACH_LOOK
def test_the_section_fits_and_can_be_read(visit, tmp_path, scheme, size):
    """With twelve hostile labels the page doesn't scroll sideways; text has enough contrast on every shade."""
    labels = tuple(f"{HOSTILE[place % 3]} {place}" for place in range(12))
    counts = np.random.default_rng(0).integers(0, 9, (12, 12)) + 30 * np.eye(12, dtype=int)
    path = tmp_path / "report.html"
    path.write_bytes(render(make_report(labels=make_labels(labels, counts))).encode())
    page = visit(path, size=size, scheme=scheme)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
    assert "</td><script>alert(5)</script> 0" in page.inner_text("#labels .confusion")
    parts = "#labels :is(p, i, th, td, caption)"
    assert min(page.eval_on_selector_all(parts, f"all => all.map({CONTRAST})")) >= 4.5
