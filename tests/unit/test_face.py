"""The names that programs import from `labelmill`."""

from __future__ import annotations

import pytest

import labelmill
from jobs import errors
from labelmill.client import Client
from producer.follow import NotFinished
from tests.programs import run_python


@pytest.mark.parametrize("name", labelmill.__all__)
def test_what_it_offers_is_there(name: str) -> None:
    assert getattr(labelmill, name).__name__ == name


def test_its_errors_are_those_that_client_raises() -> None:
    assert labelmill.Client is Client
    assert labelmill.NotFinished is NotFinished
    assert labelmill.UserError is errors.UserError
    offered = [getattr(labelmill, name) for name in labelmill.__all__]
    raised = [each for each in offered if isinstance(each, type) and issubclass(each, Exception)]
    assert len(raised) == 6
    assert all(issubclass(each, labelmill.LabelmillError) for each in raised)


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = "import labelmill, sys; print('jobs.errors' in sys.modules, 'sqlalchemy' in sys.modules)"
    assert run_python(code).stdout == "False False\n"
