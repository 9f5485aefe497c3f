"""Render templates as HTML: the pages that reports are, and those that are served.

Jinja escapes everything that comes from the data. `page.css` is the style of all pages.
"""

from __future__ import annotations

import base64
import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobs.models.evaluation import Evaluation
from labelmill.console.terminal import format_duration

#: The folder of the reports' templates.
TEMPLATES: Final = Path(__file__).parent

_NO_BREAK_SPACE: Final = "\u00a0"


def make_environment(*folders: Path) -> Environment:
    """Return an environment whose templates are in these folders, or in that of the reports."""
    environment = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,  # for every template, whatever its name ends with
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "interval": interval,
        "moment": moment,
        "duration": format_duration,
        "setting": setting,
        "p_value": p_value,
        "step": step,
        "png_url": png_url,
    }
    return environment


def render_template(name: str, **values: Any) -> str:
    """Return a report's template as HTML, with these values escaped."""
    return make_environment().get_template(name).render(**values)


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share (0 to 1) as percent; a dash if it is None."""
    return "–" if share is None else f"{100 * share:.{digits}f}{_NO_BREAK_SPACE}%"


def interval(evaluation: Evaluation) -> str:
    """Return the confidence interval of the accuracy, as percent."""
    return f"{100 * evaluation.accuracy_low:.2f}–{100 * evaluation.accuracy_high:.2f}{_NO_BREAK_SPACE}%"


def points(difference: float) -> str:
    """Return the difference of two shares in percentage points, with its sign."""
    rounded = round(100 * difference, 2)
    return "±0.00" if not rounded else f"{rounded:+.2f}".replace("-", "−")


def moment(when: datetime | None) -> str:
    """Return a time to the minute, in UTC; a dash if it is None."""
    return "–" if when is None else when.strftime("%Y-%m-%d %H:%M UTC")


def setting(value: Any) -> str:
    """Return a value of a recipe as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {setting(below)}" for name, below in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def p_value(p: float) -> str:
    """Return a p-value as text; very small values become a bound."""
    return "below 0.0001" if p < 0.0001 else f"{p:.4f}"


def step(share: float) -> int:
    """Return the step of a shade, from 0 to 10, for a share from 0 to 1. `page.css` has a class for each."""
    return round(10 * share)


def png_url(content: bytes) -> str:
    """Return a URL that contains this PNG file."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
