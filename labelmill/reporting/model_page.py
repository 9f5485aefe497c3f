"""Render the report as one HTML page that fetches nothing and runs no script.

Jinja escapes everything that comes from the data. `model.html` is the template; `page.css` is in its head.
`contact_sheet` and `labelled` render other pages with the same style.
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobs.ledger.learning.models import StoredEvaluation
from jobs.models.dataset import describe_version
from jobs.models.evaluation import Evaluation
from jobs.models.promotion import LIVE_SET, TEST_SET
from labelmill.console.terminal import format_duration
from labelmill.reporting import charts
from labelmill.reporting import report_rows as tables
from labelmill.reporting.report_data import Report

#: Fields of recipes that the page shows elsewhere, or that say nothing about the model.
_SHOWN_ELSEWHERE: Final = ("architecture", "profile", "force")


# A no-break space.
_NO_BREAK_SPACE: Final = "\u00a0"


def render(report: Report) -> str:
    """Return the page as HTML."""
    return render_template("model.html", report=report, **_template_values(report))


def render_template(name: str, **values: Any) -> str:
    """Return a template of this folder as HTML, with these values escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
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
    }
    return environment.get_template(name).render(**values)


def _template_values(report: Report) -> dict[str, Any]:
    evaluation, rival = report.evaluation, report.rival
    # Figures from other images cannot be compared with these.
    theirs = rival.stored if rival and rival.same_images else None
    recipe = dict(report.run.recipe) if report.run else {}
    if report.run and "precision" in report.model.metrics:
        # The trainer's processor determines it, not the recipe.
        recipe["precision"] = report.model.metrics["precision"]
    models = _compared_models(report)
    sets = [tables.evaluated_set(TEST_SET, report.stored, theirs)]
    if report.live_set:
        sets.append(tables.evaluated_set(LIVE_SET, report.live_set, rival.live_set if rival else None))
    return {
        "evaluation": evaluation,
        "evaluated_on": _describe_data(report.stored),
        "their_data": _describe_data(rival.stored) if rival and rival.stored else None,
        "run_data": describe_version(report.run.dataset, report.run.dataset_version) if report.run else None,
        "rival": rival,
        "theirs": theirs.evaluation if theirs else None,
        "sets": sets,
        "matrix": tables.confusion_matrix(evaluation)
        if len(evaluation.classes) <= tables.MAX_CLASSES
        else None,
        "confused": tables.most_confused(evaluation),
        "classes": tables.by_class(evaluation, theirs.evaluation if theirs else None),
        "mistakes": tables.shown_mistakes(evaluation, theirs.answers if theirs else None),
        "their_mistakes": tables.shown_mistakes(theirs.evaluation, report.stored.answers) if theirs else (),
        "recipe": {name: value for name, value in recipe.items() if name not in _SHOWN_ELSEWHERE},
        "calibration_diagram": charts.calibration_diagram(
            "calibration-diagram",
            [charts.Series(name, style, evaluation.calibration) for name, style, evaluation in models],
        ),
        "confidence_bars": charts.confidence_bars(
            "confidence-bars",
            [
                charts.Series(name, style, evaluation.confidence_histogram)
                for name, style, evaluation in reversed(models)
            ],
        ),
        **_curves(report),
    }


def _describe_data(stored: StoredEvaluation) -> str:
    return describe_version(stored.dataset, stored.version)


def _curves(report: Report) -> dict[str, Any]:
    epochs = report.epochs
    # Without held-out images there are no figures to draw.
    data = (report.run and report.run.data) or {}
    held_out = bool(epochs) and data.get("validation_images") != 0
    both: list[tuple[str, charts.Style, str]] = [("training", "theirs", "")]
    if held_out:
        both.append(("held-out", "ours", "val_"))

    def lines(measure: str) -> list[charts.Series[float]]:
        return [
            charts.Series(name, style, [getattr(epoch, prefix + measure) for epoch in epochs])
            for name, style, prefix in both
        ]

    return {
        "held_out": held_out,
        "loss_curves": charts.loss_curves("loss", lines("loss")) if epochs else None,
        "accuracy_curves": charts.accuracy_curves("accuracy", lines("accuracy")) if epochs else None,
    }


def _compared_models(report: Report) -> list[tuple[str, charts.Style, Any]]:
    """Return the models to draw: the rival first, so that this model is drawn over it."""
    drawn: list[tuple[str, charts.Style, Any]] = [("this model", "ours", report.evaluation)]
    if report.rival and report.rival.same_images:
        name = "champion" if report.rival.is_champion else "champion before"
        drawn.insert(0, (name, "theirs", report.rival.evaluation))
    return drawn


# ---- how values are written ---------------------------------------------------------------------------


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
