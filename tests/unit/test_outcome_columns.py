"""Outcomes in columns are the same as single outcomes."""

from __future__ import annotations

from collections import Counter

import pytest

from jobs.outcomes import Outcome, Outcomes

FINE = [Outcome("a.png", "7", 0.5), Outcome("b.png", "1", 0.75), Outcome("c.png", "7", 1.0)]
BROKEN = Outcome("d.png", None, None, "corrupt", "no picture")


@pytest.mark.parametrize("outcomes", [FINE, [BROKEN], [BROKEN, *FINE], [*FINE, BROKEN, BROKEN]])
def test_columns_hold_what_the_outcomes_say(outcomes: list[Outcome]) -> None:
    columns = Outcomes.of(outcomes)
    assert list(columns) == outcomes
    assert len(columns) == len(outcomes)
    assert columns[-1] == outcomes[-1]
    assert list(columns[1:3]) == outcomes[1:3]
    assert columns.failed == outcomes.count(BROKEN)
    assert columns.codes == Counter(outcome.error for outcome in outcomes)
    assert Outcomes.of(columns) is columns


def test_a_part_without_errors_counts_none() -> None:
    part = Outcomes.of([BROKEN, *FINE])[1:]
    assert (part.failed, part.codes) == (0, {None: 3})
    with pytest.raises(IndexError):
        part[3]
