"""Outcomes in columns are the same as single outcomes."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import pytest

from jobs.ledger.jobs.outcomes import COLUMN_NAMES, Outcomes, Prediction
from jobs.schema import predictions
from labelmill.server.schemas import Result, describe_result
from tests.outcomes import Outcome, best, to_columns, to_rows

FINE = [Outcome("a.png", "7", 0.5), Outcome("b.png", "1", 0.75), Outcome("c.png", "7", 1.0)]
BROKEN = Outcome("d.png", None, None, "corrupt", "no picture")
WITH_MORE = Outcome("e.png", "7", 0.5, alternatives=best("7", "1", "2"))


def test_a_column_of_a_result_is_recorded_exported_and_in_the_api() -> None:
    recorded = [each.name for each in fields(Outcomes)]
    assert [each.name for each in predictions.c] == ["job_id", "index", *recorded]
    assert set(COLUMN_NAMES) <= {"index", "model", *recorded}
    prediction = Prediction(1, "a.png", "7", 0.5, None, None, "a model", best("7", "1"))
    assert set(describe_result(prediction)) == set(Result.model_fields)


@pytest.mark.parametrize(
    "outcomes", [FINE, [BROKEN], [BROKEN, *FINE], [*FINE, BROKEN, BROKEN], [WITH_MORE, BROKEN]]
)
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


def test_each_part_has_as_many_alternatives_as_it_asks_for() -> None:
    columns = to_columns([WITH_MORE, BROKEN])
    assert [each.alternatives for each in to_rows(columns.limited_to(2))] == [best("7", "1"), None]
    assert columns.limited_to(None).alternatives is None
