"""What a training run added to its dataset, and why it ended early, in words for its page and the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.engine import Row

from jobs.ledger.learning.runs import Run
from jobs.models.dataset import describe_version
from jobs.schema import RunState
from labelmill.console.terminal import pluralize

#: The share of the time limit that the epochs last at least if it ended them. The rest is what comes before.
_NEARLY_ALL: Final = 0.95


def added_line(run: Run) -> str | None:
    """Return how many images the run added to its dataset; None if it brought none, or until it is known."""
    added = (run.data or {}).get("added_images")
    if added is None:
        return None
    version = describe_version(run.dataset, run.dataset_version)
    if not added:
        return f"no image was new: {version} has all of them"
    return f"{pluralize(added, 'image')} added: the dataset is now {version}"


def end_line(run: Run, epochs: Sequence[Row[Any]]) -> str | None:
    """Return that the time limit ended the training; None if it did not.

    A training also ends early if its last epochs gained nothing. It then has time left.
    """
    minutes, wanted = run.recipe.get("max_minutes"), run.recipe.get("epochs", 0)
    if run.state != RunState.DONE or not minutes or len(epochs) >= wanted:
        return None
    if sum(epoch.seconds for epoch in epochs) < _NEARLY_ALL * 60 * minutes:
        return None
    limit = f"{minutes:g} {'minute' if minutes == 1 else 'minutes'}"
    return f"ended after {len(epochs)} of {wanted:,} epochs: its time of {limit} was over"
