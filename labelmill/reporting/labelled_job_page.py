"""Render how well a job's labels agree with the known ones of its images, as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labelmill.labels.labelled_jobs import LabelledEvaluation
from labelmill.reporting import report_rows as tables
from labelmill.reporting.rendering import render_template


def render_labelled(job_id: str, found: LabelledEvaluation, thumbnails: Mapping[int, bytes]) -> str:
    """Return the page as HTML. `thumbnails` are PNG files of the mistakes that could be read, by index."""
    return render_template(
        "labelled.html",
        job=job_id,
        thumbnails=thumbnails,
        **accuracy_values(found),
    )


def accuracy_values(found: LabelledEvaluation) -> dict[str, Any]:
    """Return what the template of a job's accuracy needs."""
    figures = found.figures
    return {
        "found": found,
        "evaluation": figures,
        "theirs": None,
        "matrix": tables.confusion_matrix(figures) if len(figures.classes) <= tables.MAX_CLASSES else None,
        "confused": tables.most_confused(figures),
        "classes": tables.by_class(figures, None),
    }
