"""The words about a training run that ended early."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jobs.schema import RunState
from labelmill.reporting.run_lines import end_line


@pytest.mark.parametrize(
    ("seconds", "limit", "said"),
    [
        ([61], 1, "ended after 1 of 4 epochs: its time of 1 minute was over"),
        ([30, 31, 30], 1.5, "ended after 3 of 4 epochs: its time of 1.5 minutes was over"),
        ([20, 20, 20], 2, None),  # its last epochs gained nothing
        ([20, 20, 20, 20], 1.25, None),
        ([61], None, None),
    ],
)
def test_only_a_training_whose_time_was_over_says_so(seconds, limit, said):
    epochs = [SimpleNamespace(seconds=each) for each in seconds]
    run = SimpleNamespace(state=RunState.DONE, recipe={"epochs": 4, "max_minutes": limit})
    assert end_line(run, epochs) == said
    assert end_line(SimpleNamespace(**vars(run) | {"state": RunState.CANCELLED}), epochs) is None
