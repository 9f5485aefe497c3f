"""The options of a job are spelled once, and reach the HTTP API and come back unchanged."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

import pytest

from jobs.limits import ErrorLimits
from jobs.options import JobKeywords, JobOptions
from labelmill.server.schemas import NewBatch


def test_the_keywords_of_a_call_are_the_options() -> None:
    assert get_type_hints(JobKeywords) == get_type_hints(JobOptions)


@pytest.mark.parametrize(
    "limits", [ErrorLimits(), ErrorLimits(0), ErrorLimits(rate=0.25, sample=7), ErrorLimits(3, 0.5)]
)
def test_a_request_for_a_batch_has_each_option(limits: ErrorLimits) -> None:
    # Given a job with all options
    options = JobOptions(
        project="birds",
        key="mine",
        model="a model",
        dataset="birds",
        error_limits=limits,
        priority=-7,
        top_k=3,
        unlisted=True,
    )
    assert not [each.name for each in fields(options) if getattr(options, each.name) == each.default]
    # When a client sends them, and the server reads them
    sent = NewBatch(source_url="s3://bucket/photos/", **options.to_request()).model_dump()
    # Then they are the same
    found = JobOptions.from_request(sent, project="birds", key="mine")
    assert (found.error_limits or ErrorLimits()) == limits
    assert found.to_request() == options.to_request()
    assert (found.project, found.key) == ("birds", "mine")
