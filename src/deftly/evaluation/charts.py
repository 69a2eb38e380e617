"""The geometry of the report's pictures: numbers in, positions out. The page draws them, so that labels stay readable at any width.

Positions are percent of a chart's width from the left and of its height from the top.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from deftly.evaluation.statistics import Proportion

MAX_POINTS = 400
_TINY = 1e-12  # nothing that is drawn is smaller and not 0
_LOG_FROM = 30.0  # a curve that spans more than this ratio is drawn on a logarithmic axis


@dataclass(frozen=True, slots=True)
class Dot:
    """A proportion on a scale from none to all: its text, and where dot and interval stand."""

    label: str
    text: str
    at: float
    low: float
    width: float
    note: str = ""
    kind: str = ""


def dot(label: str, proportion: Proportion, note: str = "", kind: str = "") -> Dot:
    low, high = proportion.interval
    rate = proportion.rate
    return Dot(label, str(proportion), 100 * (0.0 if rate is None else rate), 100 * low, 100 * (high - low), note, kind)


class Tick(NamedTuple):
    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """One curve as the `points` of an SVG polyline in a box of 100 x 100; `last` is its last value as text."""

    label: str
    points: str
    last: str
    kind: str
    marks: tuple[tuple[float, float], ...] = ()  # where single points are drawn too


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines over a common axis."""

    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    is_log: bool
    right_ticks: tuple[Tick, ...] = ()  # of lines of kind `second`, which have an axis of their own


class Series(NamedTuple):
    """What is to be drawn: x ascending. Values that are None or not finite are left out; `marked` also draws its points."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    kind: str = "main"
    marked: bool = False


def curves(series: Sequence[Series], may_be_log: bool = True, until: float = 0.0) -> Curves | None:
    """All series on one pair of axes that start at 0, the vertical one logarithmic where they span a lot; None without points.

    The horizontal axis reaches to the last point, and at least to `until`.
    """
    clean = [(item, _finite(item)) for item in series]
    clean = [(item, points) for item, points in clean if points]
    if not clean:
        return None
    values = [y for _, points in clean for _, y in points]
    right = max(until, *(x for _, points in clean for x, _ in points)) or 1.0
    is_log = may_be_log and min(values) > _TINY and max(values) / min(values) > _LOG_FROM
    y_ticks = log_ticks(min(values), max(values)) if is_log else ticks(min(0.0, *values), max(values))
    low, high = y_ticks[0], y_ticks[-1]

    def height(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if is_log else (y - low) / (high - low)
        return 100 * (1 - share)

    lines = []
    for item, points in clean:
        places = [(100 * x / right, height(y)) for x, y in thin(points)]
        marks = tuple((round(x, 2), round(y, 2)) for x, y in places) if item.marked else ()
        text = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
        lines.append(Line(item.label, text, number(points[-1][1]), item.kind, marks))
    return Curves(tuple(lines), along(right), tuple(Tick(height(value), number(value)) for value in y_ticks), is_log)


def along(right: float) -> tuple[Tick, ...]:
    """Ticks of a horizontal axis from 0 to `right`."""
    return tuple(Tick(100 * value / right, number(value)) for value in ticks(0, right) if value <= right)


def twin(left: Series, right: Series, until: float) -> Curves | None:
    """Two series in different units, each on its own vertical axis; the other alone where one has no points."""
    first, second = curves([left], may_be_log=False, until=until), curves([right], until=until)
    if first is None or second is None:
        return first or second
    return replace(first, lines=first.lines + second.lines, right_ticks=second.y_ticks)


def areas(x: Sequence[float], parts: Sequence[Sequence[float]], count: int = 60) -> list[str]:
    """Shares of a whole along x, stacked: for each part the `points` of a polygon in a box of 100 x 100, the first part at the bottom.

    `parts[i]` are the parts between x[i - 1] (0 at first) and x[i]; at most `count` stretches are drawn. Empty where all parts are 0.
    """
    edges = sorted({len(parts) * i // count for i in range(count + 1)})
    sums = [[sum(column) for column in zip(*parts[a:b], strict=True)] for a, b in itertools.pairwise(edges)]
    ends = [0.0, *(100 * x[b - 1] / (x[-1] or 1.0) for b in edges[1:])]
    stretches = [(a, b, found) for (a, b), found in zip(itertools.pairwise(ends), sums, strict=True) if sum(found) > 0]
    polygons = []
    for part in range(len(parts[0]) if stretches else 0):
        heights = [(a, b, 100 * sum(found[:part]) / sum(found), 100 * sum(found[: part + 1]) / sum(found)) for a, b, found in stretches]
        upper = [place for a, b, _, top in heights for place in ((a, 100 - top), (b, 100 - top))]
        lower = [place for a, b, base, _ in reversed(heights) for place in ((b, 100 - base), (a, 100 - base))]
        polygons.append(" ".join(f"{across:.2f},{down:.2f}" for across, down in upper + lower))
    return polygons


def _finite(item: Series) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(item.x, item.y, strict=True) if y is not None and math.isfinite(y)]


def thin(points: Sequence[tuple[float, float]], count: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `count` points: each the mean of an equal share, so that noise is averaged and not picked from."""
    if len(points) <= count:
        return list(points)
    edges = [len(points) * i // count for i in range(count + 1)]
    shares = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(sum(x for x, _ in share) / len(share), sum(y for _, y in share) / len(share)) for share in shares]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that reach from at most `low` to at least `high`, about `count` of them."""
    if high - low <= _TINY * max(1.0, abs(low), abs(high)):
        high = low + max(1.0, abs(low))
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around a positive range."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A number as short as it can be read: 0.05, 1 500, 2.1e-05."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{digits}f}".replace(",", " ")
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


class Share(NamedTuple):
    """A part of a whole, as a segment of a bar."""

    label: str
    value: float
    left: float
    width: float


def shares(parts: dict[str, float]) -> list[Share]:
    """Segments in the given order; empty when everything is 0."""
    whole = sum(parts.values())
    found, left = [], 0.0
    for label, value in parts.items():
        if whole > 0 and value > 0:
            found.append(Share(label, value, left, 100 * value / whole))
            left += found[-1].width
    return found
