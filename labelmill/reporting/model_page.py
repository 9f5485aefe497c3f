"""Render the report as one HTML page that fetches nothing and runs no script.

Jinja escapes everything that comes from the data. `model.html` is the template; `page.css` is in its head.
`contact_sheet` and `labelled` render other pages with the same style.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.engine import Row

from jobs.ledger.learning.models import StoredEvaluation
from jobs.ledger.learning.runs import Run
from jobs.models.dataset import describe_version
from jobs.models.promotion import LIVE_SET, TEST_SET
from labelmill.reporting import charts
from labelmill.reporting import report_rows as tables
from labelmill.reporting.rendering import render_template
from labelmill.reporting.report_data import Report

#: Fields of recipes that the page shows elsewhere, or that say nothing about the model.
_SHOWN_ELSEWHERE: Final = ("architecture", "profile", "force", "is_seed_random")


def render(report: Report) -> str:
    """Return the page as HTML."""
    return render_template("model.html", report=report, **report_values(report))


def report_values(report: Report) -> dict[str, Any]:
    """Return what the templates of the report need besides the report."""
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
        **learning_curves(report.run, report.epochs),
    }


def _describe_data(stored: StoredEvaluation) -> str:
    return describe_version(stored.dataset, stored.version)


def learning_curves(run: Run | None, epochs: Sequence[Row[Any]]) -> dict[str, Any]:
    """Return what the template of the learning curves needs; the curves are None before the first epoch."""
    # Without held-out images there are no figures to draw.
    held_out = bool(epochs) and ((run and run.data) or {}).get("validation_images") != 0
    both: list[tuple[str, charts.Style, str]] = [("training", "theirs", "")]
    if held_out:
        both.append(("held-out", "ours", "val_"))

    def lines(measure: str) -> list[charts.Series[float]]:
        return [
            charts.Series(name, style, [getattr(epoch, prefix + measure) for epoch in epochs])
            for name, style, prefix in both
        ]

    return {
        "epochs": epochs,
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
