"""Render the report on a dataset as one HTML page with a contact sheet, which fetches nothing.

`dataset.html` is the template. The served page has the same sections.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jobs.models.dataset import DatasetVersion, Split
from jobs.settings import Settings
from jobs.storage.dataset_list import read_manifest
from jobs.storage.store import Store
from labelmill.datasets.contact_sheet import choose_images, draw_classes
from labelmill.datasets.describing import change_line, found_lines, modes_line, sizes_line
from labelmill.reporting.rendering import render_template


def render(
    store: Store, settings: Settings, version: DatasetVersion, versions: Sequence[DatasetVersion]
) -> str:
    """Return the page as HTML. Raises DataUnavailable, PayloadDamaged, Unavailable.

    `versions` are the dataset's latest versions, newest first.
    """
    chosen = choose_images(read_manifest(store, version), version.classes)
    pictures = {
        sheet.label: data and f"data:image/webp;base64,{b64encode(data).decode()}"
        for sheet, data in draw_classes(store, settings, chosen)
    }
    return render_template(
        "dataset.html",
        **section_values(version, versions),
        sheets=[(sheet, pictures[sheet.label]) for sheet in chosen],
    )


def section_values(version: DatasetVersion, versions: Sequence[DatasetVersion]) -> dict[str, Any]:
    """Return what the templates of a dataset need, apart from its contact sheet."""
    summary = version.summary
    most = max(map(_total, summary["classes"]))
    before = [*(older for _, older in pairwise(versions)), None]
    return {
        "version": version,
        "summary": summary,
        "classes": [
            {"name": each["name"], "splits": each, "images": _total(each), "share": _total(each) / most}
            for each in summary["classes"]
        ],
        "splits": tuple(Split),
        "sizes": sizes_line(summary),
        "modes": modes_line(summary),
        "lines": found_lines(summary),
        # Nothing is said about the oldest one that is listed, unless it is the first.
        "versions": [
            (each, change_line(each, older) if older or each.version == 1 else "")
            for each, older in zip(versions, before, strict=True)
        ],
    }


def _total(counts: dict[str, Any]) -> int:
    return sum(counts[split] for split in Split)
