"""Charts as SVG, drawn by hand: pure functions from numbers to markup.

Colours are the page's: shapes carry class names, and nothing has a style of its own. Every
chart says in words, for those who can't see it, what it shows.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]
Range = tuple[float, float]
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 16, 32, 52  # margins around the plot, where axes are named


@dataclass(frozen=True)
class Series:
    """Points to be joined by a line, in order. style: a class name; dots: whether each point is marked."""

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """One of the two axes: what it counts, from where to where. unit: what follows the number of a tick."""

    name: str
    low: float
    high: float
    unit: str = ""

    def share(self, value: float) -> float:
        """How far along the axis a value is: 0 to 1 for those on it."""
        return (value - self.low) / (self.high - self.low)


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round values from low to high, at most so many: 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 1500)
    [0.0, 500.0, 1000.0, 1500.0]
    >>> ticks(1.83, 3.1, most=4)
    [2.0, 2.5, 3.0]
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return []
    power = math.floor(math.log10((high - low) / most))
    for factor, exponent in [(1, power), (2, power), (5, power), (1, power + 1), (2, power + 1)]:
        first = math.ceil(_times(low, factor, exponent) - 1e-9)
        last = math.floor(_times(high, factor, exponent) + 1e-9)
        if last - first < most:
            break
    return [float(f"{k * factor}e{exponent}") for k in range(first, last + 1)]


def _times(value: float, factor: int, exponent: int) -> float:
    """How often factor * 10^exponent goes into a value."""
    return value / factor / 10.0**exponent


def labels(values: Sequence[float]) -> list[str]:
    """The values of ticks as text, all with as many decimals as the finest needs; millions as M."""
    if not values:
        return []
    scale, suffix = (1e6, "M") if max(map(abs, values)) >= 1e6 else (1.0, "")
    scaled = [value / scale for value in values]
    decimals = next((d for d in range(7) if all(math.isclose(round(v, d), v, rel_tol=1e-6) for v in scaled)), None)
    return [(f"{v:.1e}" if decimals is None else f"{v:,.{decimals}f}") + suffix for v in scaled]


def finite(points: Iterable[Point]) -> list[Point]:
    """The points that have a place."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def around(values: Iterable[float], *, zero: bool = False) -> Range:
    """A range that holds the finite values with a little air, and 0 if asked; never empty."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if zero:
        low = min(low, 0.0)
    air = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if zero and low == 0 else low - air), high + air


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """The means of at most so many neighbouring groups of points."""
    size = max(1, -(-len(points) // most))
    return [_mean(points[start : start + size]) for start in range(0, len(points), size)]


def smooth(points: Sequence[Point], reach: int) -> list[Point]:
    """Each point's value averaged over those up to `reach` before and after it; fewer at the ends."""
    return [(x, _mean(points[max(0, i - reach) : i + reach + 1])[1]) for i, (x, _) in enumerate(points)]


def _mean(points: Sequence[Point]) -> Point:
    return math.fsum(x for x, _ in points) / len(points), math.fsum(y for _, y in points) / len(points)


def in_words(series: Series, *, at: str = "step") -> str:
    """The first, the lowest and the last value of a series.

    >>> in_words(Series("held-out", [(50, 3.8), (100, 2.9), (150, 3)], "valid"))
    'held-out: first 3.8 at step 50, lowest 2.9 at step 100, last 3 at step 150'
    """
    points = finite(series.points)
    if not points:
        return f"{series.name}: no values"
    chosen = zip(("first", "lowest", "last"), (points[0], min(points, key=lambda p: p[1]), points[-1]), strict=True)
    return f"{series.name}: " + ", ".join(f"{word} {_figure(y)} at {at} {x:,.0f}" for word, (x, y) in chosen)


def _figure(value: float) -> str:
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
    """Lines over a common x axis, cut off where they leave the plot. name: unique on the page."""
    plot = _Plot(*size, x, y)
    inner, dots = [], []
    for one in series:
        places = [(plot.x(px), plot.y(py)) for px, py in finite(one.points)]
        path = "L".join(f"{px - _LEFT:.1f} {py - _TOP:.1f}" for px, py in places)
        if len(places) > 1:
            inner.append(f'<path class="{escape(one.style)}" d="M{path}"/>')
        if one.dots or len(places) == 1:
            shown = [(px, py) for px, py in places if py >= _TOP - 0.5]
            dots += [f'<circle class="{escape(one.style)}" cx="{px:.1f}" cy="{py:.1f}" r="2.6"/>' for px, py in shown]
    body = [
        plot.axes(),
        # an inner picture cuts off what is outside it
        f'<svg x="{_LEFT}" y="{_TOP}" width="{plot.inner_width}" height="{plot.inner_height}">{"".join(inner)}</svg>',
        *dots,
    ]
    if best is not None and finite([best]):
        px, py = plot.x(best[0]), plot.y(best[1])
        left = x.share(best[0]) > 0.75
        body.append(f'<circle class="best" cx="{px:.1f}" cy="{py:.1f}" r="6"/>')
        body.append(
            f'<text class="best" x="{px + (4 if left else -4):.1f}" y="{py - 14:.1f}" '
            f'text-anchor="{"end" if left else "start"}">best {best[1]:.3f}</text>'
        )
    return plot.picture(name, title, ". ".join(map(in_words, series)), "".join(body))


def reliability(name: str, title: str, points: Sequence[tuple[float, float, int]]) -> Markup:
    """What was said against what came: (probability, share that came, how many) by bin."""
    plot = _Plot(400, 400, Axis("probability given", 0, 100, " %"), Axis("share that came", 0, 100, " %"))
    known = [(100 * p, 100 * share, count) for p, share, count in points if count and finite([(p, share)])]
    most = max((count for *_, count in known), default=1)
    corner = f'x1="{plot.x(0):.1f}" y1="{plot.y(0):.1f}" x2="{plot.x(100):.1f}" y2="{plot.y(100):.1f}"'
    dots = [
        f'<circle class="bin" cx="{plot.x(p):.1f}" cy="{plot.y(share):.1f}" r="{radius:.1f}"/>'
        for p, share, count in known
        for radius in [3 + 11 * math.sqrt(count / most)]
    ]
    words = "; ".join(f"said {p:.0f} %, came {share:.0f} % of {count:,} times" for p, share, count in known)
    body = f'{plot.axes()}<line class="ideal" {corner}/>{"".join(dots)}'
    return plot.picture(name, title, words or "no values", body)


def bar(value: float, most: float, words: str, *, style: str = "other") -> Markup:
    """A bar as long as a value is to the greatest. words: what it says, for those who can't see it."""
    share = value / most if math.isfinite(value) and most > 0 else 1.0
    return Markup(
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img"><title>{escape(words)}</title>'
        f'<rect class="rail" width="100" height="10"/>'
        f'<rect class="{escape(style)}" width="{100 * min(max(share, 0.0), 1.0):.2f}" height="10"/></svg>'
    )


@dataclass(frozen=True)
class _Plot:
    """The rectangle between two axes, in a picture of a given size."""

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
        return _LEFT + self.inner_width * self.horizontal.share(value)

    def y(self, value: float) -> float:
        return _TOP + self.inner_height * (1 - self.vertical.share(value))

    def axes(self) -> str:
        """Grid, ticks and names."""
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = []
        at = ticks(self.vertical.low, self.vertical.high)
        for value, label in zip(at, labels(at), strict=True):
            y = f"{self.y(value):.1f}"
            parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y}" dy=".35em" text-anchor="end">{label}</text>')
        at = ticks(self.horizontal.low, self.horizontal.high)
        for value, label in zip(at, labels(at), strict=True):
            x = f"{self.x(value):.1f}"
            parts.append(f'<line class="axis" x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 4}"/>')
            anchor = "end" if self.horizontal.share(value) > 0.97 else "middle"
            parts.append(f'<text x="{x}" y="{bottom + 19}" text-anchor="{anchor}">{label}</text>')
        parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
        parts.append(f'<text class="name" x="0" y="14">{_named(self.vertical)}</text>')
        parts.append(f'<text class="name" x="{right}" y="{self.height - 6}" text-anchor="end">')
        return "".join(parts) + f"{_named(self.horizontal)}</text>"

    def picture(self, name: str, title: str, words: str, body: str) -> Markup:
        """The whole SVG, with what it says in words."""
        kind = "wide" if self.width > 500 else "narrow"
        return Markup(
            f'<svg class="chart {kind}" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-labelledby="{name}-title {name}-words"><title id="{name}-title">{escape(title)}</title>'
            f'<desc id="{name}-words">{escape(words)}.</desc>{body}</svg>'
        )


def _named(axis: Axis) -> str:
    return escape(axis.name + (f" ({axis.unit.strip()})" if axis.unit else ""))
