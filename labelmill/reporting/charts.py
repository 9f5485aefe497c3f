"""Draw the report's charts as SVG. `page.css` styles them, one class for each series, light and dark.

Series differ by more than their colours: dashes, hollow marks, names in the legend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from markupsafe import Markup

from jobs.models.evaluation import CONFIDENCE_EDGES, CalibrationBin

#: In SVG units, about one pixel each. As wide as a phone, so that text is not shrunk there.
WIDTH: Final = 380
HEIGHT: Final = 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 26, 40

# The radius of a calibration mark with all images, and of one with hardly any.
_LARGEST_MARK, _SMALLEST_MARK = 13.0, 2.5

# Curves with at most this many points get a dot for each, so that a single epoch is visible too.
_MAX_DOTS: Final = 30

# A logarithmic axis has no zero, and a diverging loss has no bounds: values outside are drawn at the edge.
_LOSSES: Final = (1e-6, 1e6)
_ERRORS: Final = (1e-5, 1.0)

# More ticks than this on an axis overlap.
_MAX_TICKS: Final = 7

# About this many are enough if they are evenly spread.
_LINEAR_TICKS: Final = 5

T = TypeVar("T")

#: How a series is drawn, by its class in `page.css`.
Style = Literal["ours", "theirs"]


class Series(NamedTuple, Generic[T]):
    """The values that belong together in a chart, and their name in the legend."""

    name: str
    style: Style
    values: Sequence[T]


def loss_curves(name: str, lines: Sequence[Series[float]]) -> Markup:
    """Draw losses by epoch on a logarithmic axis. `name` makes the ids of the title unique in the page."""

    def place(loss: float) -> float:
        return math.log10(_clamp(_LOSSES, loss))

    def ticks(low: float, high: float) -> list[tuple[float, str]]:
        return [(place(value), f"{value:g}") for value in log_ticks(10**low, 10**high)]

    return _curves(name, "Loss by epoch", "loss", lines, place, ticks)


def accuracy_curves(name: str, lines: Sequence[Series[float]]) -> Markup:
    """Draw accuracies by epoch.

    Each tenfold reduction of the error takes the same height, so that differences above 0.99 are visible.
    """

    def place(accuracy: float) -> float:
        return -math.log10(_clamp(_ERRORS, 1.0 - accuracy))

    def ticks(low: float, high: float) -> list[tuple[float, str]]:
        errors = log_ticks(10**-high, 10**-low)
        return [(-math.log10(error), f"{100 * (1 - error):.6g} %") for error in errors if error > 0]

    return _curves(name, "Accuracy by epoch", "accuracy", lines, place, ticks)


def calibration_diagram(name: str, series: Sequence[Series[CalibrationBin]]) -> Markup:
    """Draw accuracy by confidence: a mark for each bin with images, its area proportional to their number.

    On the diagonal, a model is right as often as its confidence says.
    """
    across = _Span(0.0, 1.0, _LEFT, WIDTH - _RIGHT)
    up = _Span(0.0, 1.0, HEIGHT - _BOTTOM, _TOP)
    shares = [(tick / 5, f"{20 * tick} %") for tick in range(6)]
    parts = [
        *_grid(across, shares, up, shares, "confidence", "accuracy"),
        Markup('<line class="diagonal" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            _number(across(0)), _number(up(0)), _number(across(1)), _number(up(1))
        ),
    ]
    for marks in series:
        most = max((each.images for each in marks.values), default=0)
        for each in marks.values:
            if not each.images:
                continue
            radius = max(_SMALLEST_MARK, _LARGEST_MARK * math.sqrt(each.images / most))
            parts.append(
                Markup('<circle class="mark {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                    marks.style,
                    _number(across(each.confidence)),
                    _number(up(each.accuracy)),
                    _number(radius),
                    f"{marks.name}: {each.images:,} images, confidence {each.confidence:.3f}, "
                    f"accuracy {each.accuracy:.3f}",
                )
            )
    parts.extend(_legend([(each.name, each.style, "mark") for each in series]))
    description = "Accuracy against confidence, with the diagonal on which both are the same."
    return _svg(name, "Calibration", description, HEIGHT, parts)


def confidence_bars(name: str, series: Sequence[Series[int]]) -> Markup:
    """Draw a histogram of the confidences: a bar for each bin of CONFIDENCE_EDGES and model, with its count.

    The lengths of the bars are logarithmic.
    """
    thick, gap, left, right = 11, 8, 96, 52
    row = thick * len(series) + gap
    longest = math.log10(1 + max(1, *(count for bars in series for count in bars.values)))
    parts: list[Markup] = []
    for place, (low, high) in enumerate(pairwise(CONFIDENCE_EDGES)):
        top = _TOP + place * row
        parts.append(_text(left - 8, top + (row - gap) / 2 + 3, f"{low:g} to {high:g}", "end"))
        for below, bars in enumerate(series):
            count = bars.values[place]
            length = (WIDTH - left - right) * math.log10(1 + count) / longest
            y = top + below * thick
            if count:
                parts.append(
                    Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"/>').format(
                        bars.style, left, _number(y), _number(max(length, 1.0)), thick - 2
                    )
                )
            parts.append(_text(left + length + 5, y + thick - 2.5, f"{count:,}", "start"))
    bottom = _TOP + (len(CONFIDENCE_EDGES) - 1) * row
    parts.append(
        Markup('<line class="axis" x1="{0}" y1="{1}" x2="{0}" y2="{2}"/>').format(left, _TOP - 3, bottom - 4)
    )
    parts.extend(_legend([(each.name, each.style, "bar") for each in series]))
    description = "How many answers had a confidence in each range."
    return _svg(name, "Confidences", description, bottom + 6, parts)


# ---- axes ---------------------------------------------------------------------------------------------


def linear_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`, about _LINEAR_TICKS of them."""
    if not high > low:
        return [low]
    raw = (high - low) / _LINEAR_TICKS
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded to the step's own digits, because 0.1 + 0.2 is not 0.3.
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`, both above 0, for a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), (1, 2, 3, 5), range(1, 10)):
        found = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
        ticks = [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / _MAX_TICKS)]
    return linear_ticks(low, high)


def _clamp(bounds: tuple[float, float], value: float) -> float:
    return min(max(value, bounds[0]), bounds[1])


class _Span(NamedTuple):
    """A linear scale from values (`low` to `high`) to coordinates (`start` to `end`)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _curves(
    name: str,
    title: str,
    unit: str,
    lines: Sequence[Series[float]],
    place: Callable[[float], float],
    ticks: Callable[[float, float], list[tuple[float, str]]],
) -> Markup:
    # NaN cannot be drawn; the other values are.
    curves = [
        (line, [(n, place(value)) for n, value in enumerate(line.values, 1) if not math.isnan(value)])
        for line in lines
    ]
    places = [height for _, points in curves for _, height in points] or [0.0]
    room = max(0.06 * (max(places) - min(places)), 0.02)
    low, high = min(places) - room, max(places) + room
    epochs = max((len(line.values) for line in lines), default=0)
    across = _Span(1, max(epochs, 1), _LEFT + 8, WIDTH - _RIGHT - 8)
    up = _Span(low, high, HEIGHT - _BOTTOM, _TOP)
    numbers = [1.0, *(tick for tick in linear_ticks(0, epochs) if tick > 1 and tick == int(tick))]
    if len(numbers) > 2 and numbers[1] < epochs / 8:
        del numbers[1]  # it would overlap the 1
    parts = _grid(across, [(n, f"{n:g}") for n in numbers], up, ticks(low, high), "epoch", unit)
    for line, points in curves:
        at = [(_number(across(n)), _number(up(height))) for n, height in points]
        parts.append(
            Markup('<polyline class="line {}" points="{}"/>').format(
                line.style, " ".join(f"{x},{y}" for x, y in at)
            )
        )
        if epochs <= _MAX_DOTS:
            parts.extend(
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="2.6"/>').format(line.style, x, y)
                for x, y in at
            )
    parts.extend(_legend([(line.name, line.style, "line") for line in lines]))
    ends = "; ".join(f"{line.name} {line.values[-1]:.4f}" for line in lines if line.values)
    return _svg(name, title, f"After the last of {epochs} epochs: {ends}.", HEIGHT, parts)


def _grid(
    across: _Span,
    numbers: Sequence[tuple[float, str]],
    up: _Span,
    heights: Sequence[tuple[float, str]],
    below: str,
    beside: str,
) -> list[Markup]:
    """Return the grid lines with their numbers, and the axes with their names."""
    left, right, bottom, top = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM, _TOP
    parts = []
    for value, words in heights:
        y = _number(up(value))
        parts.append(Markup('<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(left, y, right, y))
        parts.append(_text(left - 6, up(value) + 3.5, words, "end"))
    for value, words in numbers:
        x = _number(across(value))
        parts.append(
            Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(x, bottom, x, bottom + 4)
        )
        parts.append(_text(across(value), bottom + 16, words, "middle"))
    parts.append(
        Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(left, top, bottom, right),
    )
    parts.append(_text((left + right) / 2, HEIGHT - 6, below, "middle", "name"))
    parts.append(_text(4, 12, beside, "start", "name"))
    return parts


def _legend(entries: Sequence[tuple[str, str, str]]) -> list[Markup]:
    """Return the legend at the top right: a sample of each series, and its name."""
    parts = []
    right = float(WIDTH - _RIGHT)
    for name, style, kind in reversed(entries):
        x = right - 6.2 * len(name) - 24  # text cannot be measured here: letters are about that wide
        if kind == "line":
            sample = Markup('<line class="line {}" x1="{}" y1="8" x2="{}" y2="8"/>')
            parts.append(sample.format(style, _number(x), _number(x + 18)))
        elif kind == "bar":
            sample = Markup('<rect class="bar {}" x="{}" y="3.5" width="18" height="9"/>')
            parts.append(sample.format(style, _number(x)))
        else:
            sample = Markup('<circle class="mark {}" cx="{}" cy="8" r="5"/>')
            parts.append(sample.format(style, _number(x + 11)))
        parts.append(_text(x + 22, 12, name, "start", "name"))
        right = x - 10
    return parts


def _text(x: float, y: float, words: str, anchor: str, kind: str = "number") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, _number(x), _number(y), anchor, words
    )


def _svg(name: str, title: str, description: str, height: float, parts: Sequence[Markup]) -> Markup:
    # No namespace: HTML needs none, and the page must not contain any address.
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title {}-text">'
        '<title id="{}-title">{}</title><desc id="{}-text">{}</desc>{}</svg>'
    ).format(WIDTH, _number(height), name, name, name, title, name, description, Markup().join(parts))


def _number(number: float) -> str:
    """Return a coordinate as text, to a tenth of a pixel."""
    return f"{number:.1f}".removesuffix(".0")
