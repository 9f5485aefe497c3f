"""Outcomes in columns are the same as single outcomes."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.outcomes import Outcome, to_columns, to_rows

FINE = [Outcome("a.png", "7", 0.5), Outcome("b.png", "1", 0.75), Outcome("c.png", "7", 1.0)]
BROKEN = Outcome("d.png", None, None, "corrupt", "no picture")


@pytest.mark.parametrize("outcomes", [FINE, [BROKEN], [BROKEN, *FINE], [*FINE, BROKEN, BROKEN]])
def test_columns_hold_what_the_outcomes_say(outcomes: list[Outcome]) -> None:
    columns = to_columns(outcomes)
    assert to_rows(columns) == outcomes
    assert len(columns) == len(outcomes)
    assert to_rows(columns[1:3]) == outcomes[1:3]
    assert columns.failed == outcomes.count(BROKEN)
    assert columns.codes == Counter(outcome.error for outcome in outcomes)


def test_a_part_without_errors_counts_none() -> None:
    part = to_columns([BROKEN, *FINE])[1:]
    assert (part.failed, part.codes) == (0, {None: 3})
    assert len(part) == 3
