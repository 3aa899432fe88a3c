"""The report's plots as inline SVG: points in a plane, and points by category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.tables import escaped

WIDTH = 560
HEIGHT = 400
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 16, 50  # of the plane
ROW_PX = 28  # of a category, at least, ...
DOT_PX = 6  # ... and for each method's dot
LABEL_PX = 178  # for the names of categories
LINE_PX = 14
CHARACTER_PX = 6.2  # of a label, on the average
# As many as there are editors, and neighbours unlike each other.
COLOURS = (
    *("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#b45309", "#0e7490", "#be123c", "#4d7c0f", "#6d28d9", "#0f766e"),
    *("#f472b6", "#1e293b", "#facc15", "#38bdf8", "#7f1d1d", "#86efac", "#a16207", "#c084fc", "#fb923c", "#64748b"),
    *("#831843", "#a21caf", "#65a30d", "#0369a1"),
)
PUBLISHED_COLOUR = "#8b8f98"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A labelled point; `x_range`, `y_range` are intervals, `published` ones are drawn hollow and grey."""

    label: str
    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    colour: str = PUBLISHED_COLOUR
    published: bool = False


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One method's value in one category, with its interval."""

    label: str
    value: float
    low: float | None
    high: float | None
    colour: str


def colour_of(index: int) -> str:
    """Return the colour of the method at a place of the list."""
    return COLOURS[index % len(COLOURS)]


def scatter(points: Sequence[Point], *, x_title: str, y_title: str) -> str:
    """Draw points in a plane with labels that do not cover each other where that can be had."""
    x_axis = _Axis.over([value for point in points for value in (point.x, *(point.x_range or ()))], LEFT, WIDTH - RIGHT)
    y_axis = _Axis.over([value for point in points for value in (point.y, *(point.y_range or ()))], HEIGHT - BOTTOM, TOP)
    parts = [_open(WIDTH, HEIGHT, f"{y_title} against {x_title}")]
    for value in x_axis.ticks:
        x = x_axis.place(value)
        parts.append(
            _line(x, TOP, x, HEIGHT - BOTTOM, "grid") + _text(x, HEIGHT - BOTTOM + 18, _number(value), "tick", "middle")
        )
    for value in y_axis.ticks:
        y = y_axis.place(value)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid") + _text(LEFT - 8, y + 4, _number(value), "tick", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_title, "axis", "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 14 {middle:.1f})">{_text(14, middle, y_title, "axis", "middle")}</g>')
    taken: list[tuple[float, float, float, float]] = []
    places = [(x_axis.place(point.x), y_axis.place(point.y)) for point in points]
    taken += [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    for point, (x, y) in sorted(zip(points, places, strict=True), key=lambda pair: not pair[0].published):
        title = f"<title>{escaped(f'{point.label}: {_number(point.x)}, {_number(point.y)}')}</title>"
        if point.x_range:
            low, high = (x_axis.place(value) for value in point.x_range)
            parts.append(_line(low, y, high, y, "whisker", point.colour))
        if point.y_range:
            low, high = (y_axis.place(value) for value in point.y_range)
            parts.append(_line(x, low, x, high, "whisker", point.colour))
        fill = "none" if point.published else point.colour
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{point.colour}" stroke-width="1.5">{title}</circle>'
        )
    for point, (x, y) in sorted(zip(points, places, strict=True), key=lambda pair: pair[0].published):
        box, anchor = _label_place(point.label, x, y, taken)
        taken.append(box)
        at = box[0] if anchor == "start" else box[2]
        name = "label published" if point.published else "label"
        parts.append(_text(at, box[3] - 3, point.label, name, anchor, "" if point.published else point.colour))
    return "".join([*parts, "</svg>"])


def dots(rows: Sequence[tuple[str, Sequence[Dot]]], *, title: str) -> str:
    """Draw one line per category with a dot for every method."""
    values = [value for _, row in rows for dot in row for value in (dot.value, dot.low, dot.high) if value is not None]
    row_px = max(ROW_PX, 8 + DOT_PX * max((len(row) for _, row in rows), default=0))
    height = TOP + BOTTOM + row_px * len(rows)
    axis = _Axis.over(values, LABEL_PX, WIDTH - RIGHT)
    parts = [_open(WIDTH, height, f"{title} by category")]
    for value in axis.ticks:
        x = axis.place(value)
        parts.append(
            _line(x, TOP, x, height - BOTTOM, "grid") + _text(x, height - BOTTOM + 18, _number(value), "tick", "middle")
        )
    for number, (name, row) in enumerate(rows):
        middle = TOP + row_px * (number + 0.5)
        parts.append(_text(LABEL_PX - 10, middle + 4, name, "tick", "end"))
        parts.append(_line(LABEL_PX, middle, WIDTH - RIGHT, middle, "grid"))
        for index, dot in enumerate(row):
            y = middle + (index - (len(row) - 1) / 2) * DOT_PX
            x = axis.place(dot.value)
            if dot.low is not None and dot.high is not None:
                parts.append(_line(axis.place(dot.low), y, axis.place(dot.high), y, "whisker", dot.colour))
            tip = escaped(f"{name}, {dot.label}: {_number(dot.value)}")
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{dot.colour}"><title>{tip}</title></circle>')
    parts.append(_text((LABEL_PX + WIDTH - RIGHT) / 2, height - 10, title, "axis", "middle"))
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        spread = (high - low) or max(abs(high), 1.0) * 0.1
        low, high = low - 0.06 * spread, high + 0.06 * spread
        raw = (high - low) / 6
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
        first = math.ceil(low / step)
        ticks = tuple(n * step for n in range(first, math.floor(high / step) + 1))
        return cls(low, high, start, end, ticks)

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _label_place(
    label: str, x: float, y: float, taken: Sequence[tuple[float, float, float, float]]
) -> tuple[tuple[float, float, float, float], str]:
    """Find a place for a label near its point: the one that covers least of what is there and lies nearest."""
    width = CHARACTER_PX * len(label)
    best: tuple[float, tuple[float, float, float, float], str] | None = None
    for step in range(9):
        shift = LINE_PX * (step + 1) // 2 * (1 if step % 2 else -1)
        for anchor in ("start", "end"):
            left = x + 9 if anchor == "start" else x - 9 - width
            box = (left, y + shift - LINE_PX / 2, left + width, y + shift + LINE_PX / 2)
            outside = max(0.0, LEFT - box[0]) + max(0.0, box[2] - WIDTH) + max(0.0, -box[1]) + max(0.0, box[3] - HEIGHT)
            cost = sum(_overlap(box, other) for other in taken) + 50 * outside + abs(shift)
            if best is None or cost < best[0]:
                best = (cost, box, anchor)
    assert best is not None
    return best[1], best[2]


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _open(width: int, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(title)}">'


def _line(x1: float, y1: float, x2: float, y2: float, name: str, colour: str = "") -> str:
    stroke = f' stroke="{colour}"' if colour else ""
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{stroke}/>'


def _text(x: float, y: float, text: str, name: str, anchor: str, colour: str = "") -> str:
    fill = f' fill="{colour}"' if colour else ""
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{escaped(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.4g}"
