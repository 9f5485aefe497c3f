"""The names that programs import from `labelmill`."""

from __future__ import annotations

import pytest

import labelmill
from tests.programs import run_python


@pytest.mark.parametrize("name", labelmill.__all__)
def test_what_it_offers_is_there(name: str) -> None:
    assert getattr(labelmill, name).__name__ == name


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = "import labelmill, sys; print('jobs.errors' in sys.modules, 'sqlalchemy' in sys.modules)"
    assert run_python(code).stdout == "False False\n"
