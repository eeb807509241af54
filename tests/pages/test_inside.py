"""The report's sections about what is inside a model."""

import re

import numpy as np
import pytest

from charrnn.inspection.findings import ClassBits, Inside, Reach, ReadableUnit
from charrnn.pages.inside import _short_spans, colour_by_units, show_inside
from charrnn.pages.report import render
from tests.pages.reports import HOSTILE, make_inside, make_report, usual_page, words_of

TEXT = "a first line\nand a second\n\nthe third, which is long\n"
PARTS = {
    "memory": "How far back it looks",
    "gradient": "How far a gradient reaches",
    "units": "What single units know",
    "bits": "Where the bits go",
    "alike": "Characters that it treats alike",
}


def unit(activations, **given) -> ReadableUnit:
    """A unit with these activations."""
    return ReadableUnit(**({"index": 3, "feature": "spaces", "correlation": 0.5} | given), activations=activations)


def excerpt_of(activations) -> str:
    """The excerpt that a unit is shown by, as HTML."""
    inside = Inside(units=[unit(np.array(activations, np.float32))])
    return show_inside(inside, TEXT, "character")["units"][0][1]


def test_every_part_has_a_section_and_a_link():
    """In the order of the findings; without findings there is none."""
    page = render(make_report(inside=make_inside(HOSTILE)))
    for part, title in PARTS.items():
        assert page.count(f'<section id="{part}">\n  <h2>{title}</h2>') == 1
        assert page.count(f'<a href="#{part}">') == 1
    for part, title in PARTS.items():
        assert title not in usual_page()
        assert f'"#{part}"' not in usual_page()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_was_not_measured_is_left_out(part):
    """The others are there."""
    page = render(make_report(inside=make_inside(HOSTILE, **{part: None})))
    assert [title in page for title in PARTS.values()] == [other != part for other in PARTS]


def test_the_findings_are_escaped():
    """Names of features and characters are text."""
    page = render(make_report(inside=make_inside(HOSTILE)))
    assert "feature 0 <b>" not in page
    assert page.count("feature 0 &lt;b&gt;") == 2  # in its section and in the menu


def test_the_memory_is_a_curve_for_each_model():
    """With a band; a network without n-grams has one."""
    inside = make_inside(HOSTILE)
    words = words_of(render(make_report(inside=inside)))
    assert "The network uses about 100 characters; the last 20 give 90% of the gain." in words
    assert "network alone: first 2 at length 1, lowest -0.01 at length 700, last -0.01 at length 700." in words
    assert "with n-grams: first 1 at length 1" in words
    assert "over 500 places" in words
    chart = show_inside(inside, HOSTILE, "character")["memory"]["chart"]
    assert chart.count('<path class="band ') == 2
    alone = Inside(memory=type(inside.memory)(**(vars(inside.memory) | {"mixture": None})))
    assert show_inside(alone, HOSTILE, "byte")["memory"]["chart"].count('<path class="band ') == 1
    assert "</svg>network alone</span>" not in render(make_report(inside=alone))


@pytest.mark.parametrize("norms", [(1.0, 0.0, 0.0), (0.0,), (1.0, 1.0), (1e-40, 1e30, np.inf), (np.nan, 1.0)])
def test_a_gradient_of_any_size_can_be_drawn(norms):
    """It may vanish completely, explode, or stay the same."""
    chart = show_inside(Inside(gradient=Reach(norms, norms, norms, 1, 0.5)), "", "character")["gradient"]["chart"]
    assert "nan" not in chart.split("<desc")[1].split("</desc>")[1]
    assert "inf" not in chart.split("<desc")[1].split("</desc>")[1]


def test_an_excerpt_is_a_few_whole_lines():
    """At most four, and at most 120 characters; a blank line in between counts as a character."""
    text = "aa\n\nbb\ncc\ndd\nee\n" + "x" * 117 + "\n" + "y" * 118 + "\n" + "z" * 130 + "\n"
    found = [text[start:end] for start, end in _short_spans(text)]
    assert found[:2] == ["aa\n\nbb\ncc\ndd\n", "bb\ncc\ndd\nee\n"]
    assert found[5:] == ["x" * 117 + "\n", "y" * 118 + "\n"]
    assert _short_spans("z" * 500).tolist() == [[0, 120]]
    assert _short_spans("").tolist() == [[0, 0]]


def test_a_unit_is_shown_by_the_lines_in_which_it_varies_most():
    """Below its mean is cool, above is warm; the lowest levels have no colour."""
    text = "not this\n" * 99 + "and a\n" + "nor that\n" * 99
    values = np.zeros(len(text), np.float32)
    start = text.index("and a")
    values[start : start + 3] = [-1, 1, -1]
    found = show_inside(Inside(units=[unit(values)]), text, "character")["units"][0][1]
    assert "<i class=n4>a</i><i class=p4>n</i><i class=n4>d</i> a" in found
    assert found.count("<p>") == 4


def test_a_unit_that_never_changes_has_no_colour():
    """It has no standard deviation; a text without a line that is short enough is cut."""
    assert "<i" not in excerpt_of([0.5] * len(TEXT))
    inside = Inside(units=[unit(np.linspace(-1, 1, 500, dtype=np.float32))])
    found = show_inside(inside, "x" * 500, "character")["units"][0][1]
    assert len(re.sub("<.*?>", "", found)) == 120
    assert colour_by_units(Inside()) == []


def test_units_colour_the_text_in_standard_deviations():
    """Whatever the size of their activations."""
    (found,) = colour_by_units(Inside(units=[unit(np.array([0.1, 0.2, 0.1, 0.2], np.float32))]))
    assert found.values == pytest.approx([-1, 1, -1, 1])
    assert found.name == "unit 3, spaces"


def test_the_units_are_in_the_menu():
    """After the comparison with n-grams, and the buttons of the section refer to the same numbers."""
    page = render(make_report(inside=make_inside(HOSTILE)))
    options = re.findall(r'<option value="(\d+)">(.*?)</option>', page)
    assert [int(value) for value, _ in options] == list(range(9))
    assert [words for _, words in options[:2]] == ["surprisal", "unit 0, feature 0 &lt;b&gt;"]
    assert re.findall(r'data-colouring="(\d+)"', page) == [str(number) for number in range(1, 9)]


def test_classes_are_sorted_by_their_bits():
    """With their shares of all bits; a class that costs nothing is possible."""
    classes = [ClassBits("few", 10, 25.0, 30.0, 40.0), ClassBits("many", 5, 75.0, 80.0, 90.0)]
    rows = show_inside(Inside(bits=classes), "", "character")["bits"]["rows"]
    assert [(row.found.name, row.share, row.bits_per_char) for row in rows] == [("many", 0.75, 15), ("few", 0.25, 2.5)]
    assert rows[1].note == "network 3.00, n-grams 4.00"
    (free,) = show_inside(Inside(bits=[ClassBits("free", 3, 0.0)]), "", "character")["bits"]["rows"]
    assert (free.share, free.bits_per_char, free.note) == (0, 0, "")


def test_similar_characters_have_labels_and_names():
    """Those that can't be seen have a label in their place."""
    page = render(make_report(inside=make_inside("\n\x00 a")))
    assert '<b title="newline">↵</b>' in page
    assert '<b title="null">␀</b> <small>0.90</small>' in page


def test_an_inside_of_bytes_is_in_bytes():
    """In its words and axes."""
    words = words_of(render(make_report(inside=make_inside(HOSTILE), assessment={"unit": "byte"})))
    for part in ("excess bits per byte", "bytes known", "Each byte belongs to one class", "the most frequent bytes"):
        assert part in words
    assert "character" not in words.split("How far back it looks")[1].split("Characters that it treats")[0]
