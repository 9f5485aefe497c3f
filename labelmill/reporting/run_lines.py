"""What a training run added to its dataset, in words for its page and the console."""

from __future__ import annotations

from jobs.ledger.learning.runs import Run
from jobs.models.dataset import describe_version
from labelmill.console.terminal import pluralize


def added_line(run: Run) -> str | None:
    """Return how many images the run added to its dataset; None if it brought none, or until it is known."""
    added = (run.data or {}).get("added_images")
    if added is None:
        return None
    version = describe_version(run.dataset, run.dataset_version)
    if not added:
        return f"no image was new: {version} has all of them"
    return f"{pluralize(added, 'image')} added: the dataset is now {version}"
