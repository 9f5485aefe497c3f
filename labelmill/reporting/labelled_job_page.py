"""Render how well a job's labels agree with the folders of its images, as one HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from jobs.models.evaluation import Mistake
from labelmill.labels.labelled_jobs import LabelledEvaluation
from labelmill.reporting import report_rows as tables
from labelmill.reporting.rendering import render_template


def render_labelled(job_id: str, found: LabelledEvaluation, thumbnails: Mapping[int, bytes]) -> str:
    """Return the page as HTML. `thumbnails` are PNG files of the mistakes that could be read, by index."""
    pictures = [
        tables.ShownMistake(
            Mistake(
                mistake.index,
                mistake.truth,
                mistake.label,
                mistake.confidence,
                base64.b64encode(thumbnails[mistake.index]).decode(),
            ),
            theirs=None,
            they_are_right=False,
        )
        for mistake in found.mistakes
        if mistake.index in thumbnails
    ]
    return render_template(
        "labelled.html",
        job=job_id,
        shown=pictures,
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
