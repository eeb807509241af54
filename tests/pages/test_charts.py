"""Charts: round ticks, places on the plot, and descriptions in words."""

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.pages import charts
from charrnn.pages.charts import Axis, Series

STEPS, LOSS = Axis("optimiser step", 0, 100), Axis("loss", 1, 3, " bits")


@pytest.mark.parametrize(
    ("low", "high", "limit", "expected"),
    [
        (0, 100, 6, [0, 20, 40, 60, 80, 100]),
        (0, 1500, 6, [0, 500, 1000, 1500]),
        (1.8, 3.4, 6, [2, 2.5, 3]),
        (-1, 1, 5, [-1, -0.5, 0, 0.5, 1]),
        (0, 0.006, 6, [0, 0.002, 0.004, 0.006]),
        (0, 0.006, 7, [0, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006]),
        (0.3, 0.30001, 3, [0.3, 0.300005, 0.30001]),
        (7, 7, 6, []),
        (math.nan, 1, 6, []),
        (0, math.inf, 6, []),
    ],
)
def test_ticks_are_one_two_or_five_times_a_power_of_ten_apart(low, high, limit, expected):
    """Worked out by hand."""
    assert charts.ticks(low, high, limit=limit) == expected


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9), st.integers(2, 10))
def test_ticks_stay_on_the_axis_and_within_the_limit(low, length, limit):
    """None lies beyond the ends."""
    found = charts.ticks(low, low + length, limit=limit)
    assert len(found) <= limit
    assert all(low - 1e-6 * length <= tick <= low + length + 1e-6 * length for tick in found)


def test_labels_of_an_axis_have_equally_many_decimals():
    """As few as are exact."""
    assert charts.labels([0, 0.002, 0.004]) == ["0.000", "0.002", "0.004"]
    assert charts.labels([2, 2.5]) == ["2.0", "2.5"]
    assert charts.labels([0, 20000]) == ["0", "20,000"]
    assert charts.labels([0, 1e6, 2e6]) == ["0M", "1M", "2M"]
    assert charts.labels([1e-9, 2e-9]) == ["1.0e-09", "2.0e-09"]
    assert charts.labels([]) == []


def test_a_range_is_never_empty():
    """Also for one value, equal values or none."""
    assert charts.padded_range([2, 4]) == pytest.approx((1.9, 4.1))
    assert charts.padded_range([2, 4], from_zero=True) == pytest.approx((0, 4.2))
    for values in ([], [3.0], [0.0, 0.0], [math.nan, math.inf]):
        low, high = charts.padded_range(values)
        assert low < high


def test_smoothing_is_the_mean_of_the_neighbours():
    """There are fewer at the ends."""
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, 6.0)]
    assert charts.smooth(points, 1) == [(0.0, 1.5), (1.0, 3.0), (2.0, 4.0)]
    assert charts.smooth(points, 0) == points
    assert charts.smooth([], 3) == []


def test_downsampling_averages_groups():
    """In both coordinates."""
    assert charts.downsample([(0, 1), (2, 3), (4, 5)], 2) == [(1, 2), (4, 5)]
    assert charts.downsample([(0, 1), (2, 3)], 5) == [(0, 1), (2, 3)]
    assert charts.downsample([], 5) == []


def draw(points, **more):
    """A chart of one series, parsed, which also tests that it is well-formed."""
    return ElementTree.fromstring(
        charts.lines("c", "A <title>", [Series("train & co", points, "train", **more)], STEPS, LOSS)
    )


def test_a_point_is_placed_by_its_axes():
    """The middle of both axes is the middle of the plot."""
    (dot,) = draw([(50, 2)], dots=True).iter("circle")
    assert float(dot.get("cx")) == pytest.approx(54 + (720 - 54 - 16) / 2)
    assert float(dot.get("cy")) == pytest.approx(32 + (340 - 32 - 52) / 2)


def test_a_line_skips_points_that_are_not_finite():
    """The others are joined."""
    (path,) = draw([(0, 1), (25, math.nan), (50, math.inf), (100, 3)]).iter("path")
    assert path.get("d") == "M0.0 256.0L650.0 0.0"


@pytest.mark.parametrize("points", [[], [(50, 2)], [(50, 2), (50, 2)], [(math.nan, math.nan)]])
def test_charts_of_few_points(points):
    """One point is a dot; none is an empty plot."""
    picture = draw(points)
    assert len(list(picture.iter("circle"))) == (len(points) == 1 and points[0] == (50, 2))


def test_a_line_chart_is_described_in_words():
    """With the first, lowest and last value; names are escaped."""
    picture = draw([(10, 3), (20, 1.25), (30, 2)])
    assert picture.get("role") == "img"
    assert picture.get("aria-labelledby") == "c-title c-words"
    assert picture.find("title").text == "A <title>"
    assert picture.find("desc").text == "train & co: first 3 at step 10, lowest 1.25 at step 20, last 2 at step 30."


def test_axes_are_named_with_their_units():
    """Ticks have labels."""
    words = [text.text for text in draw([(10, 3)]).iter("text")]
    assert {"optimiser step", "loss (bits)", "1.5", "100"} <= set(words)


def test_the_best_point_is_marked_and_its_label_stays_in_the_picture():
    """Near the right edge the label is to its left."""
    for step, anchor in [(10, "start"), (100, "end")]:
        chart = charts.lines("c", "t", [], STEPS, LOSS, best=(step, 2))
        assert "best 2.000" in chart
        assert f'text-anchor="{anchor}">best' in chart


def test_a_reliability_diagram_has_a_diagonal_and_a_dot_for_each_bin():
    """Empty bins and NaN have none; the description has the figures."""
    chart = charts.reliability("c", "t", [(0.05, 0.1, 400), (0.5, 0.4, 100), (0.9, 0.9, 0), (math.nan, 0.5, 3)])
    picture = ElementTree.fromstring(chart)
    dots = list(picture.iter("circle"))
    assert len([line for line in picture.iter("line") if line.get("class") == "ideal"]) == 1
    assert [float(dot.get("r")) for dot in dots] == [14, 8.5]  # areas grow with counts, from a smallest size
    assert picture.find("desc").text == "predicted 5 %, observed 10 % of 400; predicted 50 %, observed 40 % of 100."
    assert ElementTree.fromstring(charts.reliability("c", "t", [])).find("desc").text == "no values."


@pytest.mark.parametrize(
    ("value", "largest", "width"), [(1, 4, "25.00"), (5, 4, "100.00"), (math.inf, 4, "100.00"), (0, 0, "100.00")]
)
def test_a_bar_is_relative_to_the_largest_value(value, largest, width):
    """It is never longer; its description is its title."""
    picture = ElementTree.fromstring(charts.bar(value, largest, "1 of <4>"))
    assert [shape.get("width") for shape in picture.iter("rect")] == ["100", width]
    assert picture.find("title").text == "1 of <4>"


def test_a_logarithmic_axis_has_powers_of_ten():
    """Distances are ratios; a value without a logarithm is far below; there are at most six ticks."""
    axis = Axis("norm", 1e-4, 100, is_log=True)
    assert [axis.fraction(value) for value in (1e-4, 0.1, 100)] == pytest.approx([0, 0.5, 1])
    assert -1 < axis.fraction(0.0) < -0.3
    assert axis.ticks() == [(1e-4, "10⁻⁴"), (0.01, "0.01"), (1, "1"), (100, "100")]
    assert [label for _, label in Axis("n", 1, 1024, is_log=True).ticks()] == ["1", "10", "100", "1,000"]
    assert [label for _, label in Axis("n", 1e-30, 1, is_log=True).ticks()] == [
        *("10⁻³⁰", "10⁻²⁴", "10⁻¹⁸", "10⁻¹²", "10⁻⁶", "1")
    ]
    assert [label for _, label in Axis("n", 1e6, 1e12, is_log=True).ticks()] == ["10⁶", "10⁸", "10¹⁰", "10¹²"]


def test_a_band_is_a_closed_shape_under_its_line():
    """From the upper edge back along the lower one; points that are not finite are left out."""
    band, line = draw([(0, 2), (100, 2)], band=[(0, 1, 3), (50, math.nan, 3), (100, 1, 3)]).iter("path")
    assert band.get("class") == "band train"
    assert band.get("d") == "M0.0 0.0L325.0 0.0L650.0 0.0L650.0 256.0L0.0 256.0Z"
    assert line.get("class") == "train"


def test_a_description_names_the_place_on_the_axis():
    """A step, unless the axis has another word."""
    chart = charts.lines("c", "t", [Series("s", [(3, 2)], "train")], Axis("n", 1, 9, place="length"), LOSS)
    assert "first 2 at length 3" in chart
