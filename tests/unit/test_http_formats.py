"""The format of results is the one that `Accept` prefers."""

from __future__ import annotations

import pytest

from labelmill.server import results
from labelmill.server.problems import ApiError
from labelmill.server.results import JSON, PARQUET, choose_media_type


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("text/html, */*;q=0.1", JSON),
        ("application/*", JSON),
        ("text/*", "text/csv"),
        ("application/jsonl", "application/jsonl"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("Text/CSV;charset=utf-8 ; Q=0.9, application/json;q=0.5", "text/csv"),
        (PARQUET, PARQUET),
        # The most specific range counts
        ("application/*;q=0.9, application/json;q=0.1", "application/jsonl"),
    ],
)
def test_the_preferred_format_is_chosen(accept: str | None, chosen: str) -> None:
    assert choose_media_type(accept) == chosen


@pytest.mark.parametrize(
    "accept", ["text/html", "application/json;q=0", "application/json;q=much", ",", "image/*"]
)
def test_what_is_not_offered_is_refused(accept: str) -> None:
    with pytest.raises(ApiError, match="application/json, application/jsonl") as refused:
        choose_media_type(accept)
    assert refused.value.status == 406


def test_without_pyarrow_parquet_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "find_spec", lambda _name: None)
    with pytest.raises(ApiError, match="install pyarrow"):
        choose_media_type(PARQUET)
    assert choose_media_type(f"{PARQUET}, text/csv;q=0.5") == "text/csv"
