"""Render the images of a job that are worth checking as one HTML page, small and side by side."""

from __future__ import annotations

import base64

from labelmill.labels.reviewing import Review
from labelmill.reporting.rendering import render_template


def render_contact_sheet(review: Review) -> str:
    """Return the page as HTML."""
    shown = [(each, base64.b64encode(each.thumbnail).decode()) for each in review.images]
    return render_template("contact_sheet.html", review=review, shown=shown)
