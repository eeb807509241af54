"""Charts as SVG: pure functions from numbers to markup.

Shapes have class names only; the page's style sheet gives the colours. Each chart has a description
in words for screen readers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]
Interval = tuple[float, float, float]  # x, low, high
Range = tuple[float, float]
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 16, 32, 52  # margins around the plot, where axes are named
_MAX_TICKS = 6  # of an axis


@dataclass(frozen=True)
class Series:
    """Points joined by a line, in order. style: a class name; dots: whether to mark each point; band: to shade."""

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False
    band: Sequence[Interval] = ()


@dataclass(frozen=True)
class Axis:
    """One of the two axes: its name, its range and its unit.

    is_log: distances are ratios, and the range is positive; place: what the description calls a value on it.
    """

    name: str
    low: float
    high: float
    unit: str = ""
    is_log: bool = False
    place: str = "step"

    def fraction(self, value: float) -> float:
        """Return where a value lies on the axis, from 0 at its start to 1 at its end."""
        if self.is_log:
            return math.log(max(value, self.low * 1e-3) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return round values on the axis and their labels."""
        if self.is_log:
            return [(10.0**exponent, _power_of_ten(exponent)) for exponent in _exponents(self.low, self.high)]
        at = ticks(self.low, self.high)
        return list(zip(at, labels(at), strict=True))


def _exponents(low: float, high: float) -> range:
    """Return at most _MAX_TICKS evenly spaced exponents of the powers of ten from low to high."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    apart = max(1, -(-(last - first + 1) // _MAX_TICKS))
    return range(first + -first % apart, last + 1, apart)


def _power_of_ten(exponent: int) -> str:
    if -3 <= exponent <= 5:
        return f"{10.0**exponent:,.{max(0, -exponent)}f}"
    return f"10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def ticks(low: float, high: float, *, limit: int = _MAX_TICKS) -> list[float]:
    """Choose at most `limit` round values from low to high, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 1500)
    [0.0, 500.0, 1000.0, 1500.0]
    >>> ticks(1.83, 3.1, limit=4)
    [2.0, 2.5, 3.0]
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return []
    power = math.floor(math.log10((high - low) / limit))
    for factor, exponent in [(1, power), (2, power), (5, power), (1, power + 1), (2, power + 1)]:
        first = math.ceil(_in_units(low, factor, exponent) - 1e-9)
        last = math.floor(_in_units(high, factor, exponent) + 1e-9)
        if last - first < limit:
            break
    return [float(f"{k * factor}e{exponent}") for k in range(first, last + 1)]


def _in_units(value: float, factor: int, exponent: int) -> float:
    """Divide a value by factor * 10^exponent."""
    return value / factor / 10.0**exponent


def labels(values: Sequence[float]) -> list[str]:
    """Format the values of ticks with equally many decimals, as few as are exact; millions as M."""
    if not values:
        return []
    scale, suffix = (1e6, "M") if max(map(abs, values)) >= 1e6 else (1.0, "")
    scaled = [value / scale for value in values]
    decimals = next((d for d in range(7) if all(math.isclose(round(v, d), v, rel_tol=1e-6) for v in scaled)), None)
    return [(f"{v:.1e}" if decimals is None else f"{v:,.{decimals}f}") + suffix for v in scaled]


def finite(points: Iterable[Point]) -> list[Point]:
    """Return the points whose coordinates are both finite."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def padded_range(values: Iterable[float], *, from_zero: bool = False) -> Range:
    """Return a range with a margin around the finite values; never empty. from_zero: include 0, without a margin."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if from_zero:
        low = min(low, 0.0)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if from_zero and low == 0 else low - margin), high + margin


def downsample(points: Sequence[Point], limit: int) -> list[Point]:
    """Reduce points to at most `limit`, each the mean of a group of neighbours."""
    size = max(1, -(-len(points) // limit))
    return [_mean(points[start : start + size]) for start in range(0, len(points), size)]


def smooth(points: Sequence[Point], radius: int) -> list[Point]:
    """Average each point's value with those of up to `radius` points before and after it."""
    return [(x, _mean(points[max(0, i - radius) : i + radius + 1])[1]) for i, (x, _) in enumerate(points)]


def _mean(points: Sequence[Point]) -> Point:
    return math.fsum(x for x, _ in points) / len(points), math.fsum(y for _, y in points) / len(points)


def describe(series: Series, place: str = "step") -> str:
    """Describe a series in words: its first, lowest and last value. place: what x is.

    >>> describe(Series("held-out", [(50, 3.8), (100, 2.9), (150, 3)], "valid"))
    'held-out: first 3.8 at step 50, lowest 2.9 at step 100, last 3 at step 150'
    """
    points = finite(series.points)
    if not points:
        return f"{series.name}: no values"
    chosen = {"first": points[0], "lowest": min(points, key=lambda point: point[1]), "last": points[-1]}
    return f"{series.name}: " + ", ".join(
        f"{word} {_format_number(y)} at {place} {x:,.0f}" for word, (x, y) in chosen.items()
    )


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def lines(
    name: str,
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    size: tuple[int, int] = (720, 340),
    best: Point | None = None,
) -> Markup:
    """Draw lines over a common x axis, clipped to the plot. name: unique on the page; best: a point to mark."""
    plot = _Plot(*size, x, y)
    paths, dots = [], []
    for one in series:
        style = escape(one.style)
        if one.band:
            edge = [(px, high) for px, _, high in one.band] + [(px, low) for px, low, _ in reversed(one.band)]
            corners = "L".join(f"{plot.x(px) - _LEFT:.1f} {plot.y(py) - _TOP:.1f}" for px, py in finite(edge))
            paths.append(f'<path class="band {style}" d="M{corners}Z"/>')
        places = [(plot.x(px), plot.y(py)) for px, py in finite(one.points)]
        if len(places) > 1:
            corners = "L".join(f"{px - _LEFT:.1f} {py - _TOP:.1f}" for px, py in places)
            paths.append(f'<path class="{style}" d="M{corners}"/>')
        if one.dots or len(places) == 1:
            shown = [(px, py) for px, py in places if py >= _TOP - 0.5]
            dots += [f'<circle class="{style}" cx="{px:.1f}" cy="{py:.1f}" r="2.6"/>' for px, py in shown]
    body = [
        plot.axes(),
        # a nested picture clips its contents
        f'<svg x="{_LEFT}" y="{_TOP}" width="{plot.inner_width}" height="{plot.inner_height}">{"".join(paths)}</svg>',
        *dots,
    ]
    if best is not None and finite([best]):
        px, py = plot.x(best[0]), plot.y(best[1])
        shift, anchor = (4, "end") if x.fraction(best[0]) > 0.75 else (-4, "start")  # the label stays in the picture
        place = f'x="{px + shift:.1f}" y="{py - 14:.1f}" text-anchor="{anchor}"'
        body.append(f'<circle class="best" cx="{px:.1f}" cy="{py:.1f}" r="6"/>')
        body.append(f'<text class="best" {place}>best {best[1]:.3f}</text>')
    return plot.picture(name, title, ". ".join(describe(one, x.place) for one in series), "".join(body))


def reliability(name: str, title: str, points: Sequence[tuple[float, float, int]]) -> Markup:
    """Draw a reliability diagram. points: (mean predicted probability, observed frequency, count) of each bin."""
    plot = _Plot(400, 400, Axis("predicted", 0, 100, " %"), Axis("observed", 0, 100, " %"))
    known = [(100 * p, 100 * observed, count) for p, observed, count in points if count and finite([(p, observed)])]
    most = max((count for *_, count in known), default=1)
    diagonal = f'x1="{plot.x(0):.1f}" y1="{plot.y(0):.1f}" x2="{plot.x(100):.1f}" y2="{plot.y(100):.1f}"'
    dots = []
    for p, observed, count in known:
        radius = 3 + 11 * math.sqrt(count / most)
        dots.append(f'<circle class="bin" cx="{plot.x(p):.1f}" cy="{plot.y(observed):.1f}" r="{radius:.1f}"/>')
    words = "; ".join(f"predicted {p:.0f} %, observed {observed:.0f} % of {count:,}" for p, observed, count in known)
    body = f'{plot.axes()}<line class="ideal" {diagonal}/>{"".join(dots)}'
    return plot.picture(name, title, words or "no values", body)


def bar(value: float, largest: float, words: str, *, style: str = "other") -> Markup:
    """Draw a value as a bar relative to the largest value. words: its description."""
    share = value / largest if math.isfinite(value) and largest > 0 else 1.0
    return Markup(
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img"><title>{escape(words)}</title>'
        f'<rect class="rail" width="100" height="10"/>'
        f'<rect class="{escape(style)}" width="{100 * min(max(share, 0.0), 1.0):.2f}" height="10"/></svg>'
    )


@dataclass(frozen=True)
class _Plot:
    """The area between two axes in a picture of a given size."""

    width: int
    height: int
    horizontal: Axis
    vertical: Axis

    @property
    def inner_width(self) -> int:
        return self.width - _LEFT - _RIGHT

    @property
    def inner_height(self) -> int:
        return self.height - _TOP - _BOTTOM

    def x(self, value: float) -> float:
        return _LEFT + self.inner_width * self.horizontal.fraction(value)

    def y(self, value: float) -> float:
        return _TOP + self.inner_height * (1 - self.vertical.fraction(value))

    def axes(self) -> str:
        """Draw the grid, ticks, labels and names."""
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = []
        for value, label in self.vertical.ticks():
            y = f"{self.y(value):.1f}"
            parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y}" dy=".35em" text-anchor="end">{label}</text>')
        for value, label in self.horizontal.ticks():
            x = f"{self.x(value):.1f}"
            parts.append(f'<line class="axis" x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 4}"/>')
            anchor = "end" if self.horizontal.fraction(value) > 0.97 else "middle"
            parts.append(f'<text x="{x}" y="{bottom + 19}" text-anchor="{anchor}">{label}</text>')
        parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
        parts.append(f'<text class="name" x="0" y="14">{_axis_title(self.vertical)}</text>')
        parts.append(f'<text class="name" x="{right}" y="{self.height - 6}" text-anchor="end">')
        return "".join(parts) + f"{_axis_title(self.horizontal)}</text>"

    def picture(self, name: str, title: str, words: str, body: str) -> Markup:
        """Wrap the body in an SVG with a title and a description."""
        kind = "wide" if self.width > 500 else "narrow"
        return Markup(
            f'<svg class="chart {kind}" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-labelledby="{name}-title {name}-words"><title id="{name}-title">{escape(title)}</title>'
            f'<desc id="{name}-words">{escape(words)}.</desc>{body}</svg>'
        )


def _axis_title(axis: Axis) -> str:
    return escape(axis.name + (f" ({axis.unit.strip()})" if axis.unit else ""))
