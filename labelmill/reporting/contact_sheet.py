"""Render the images of a job that are worth checking as one HTML page, small and side by side."""

from __future__ import annotations

from labelmill.labels.reviewing import Review
from labelmill.reporting.rendering import render_template


def render_contact_sheet(review: Review) -> str:
    """Return the page as HTML."""
    return render_template("contact_sheet.html", review=review)
