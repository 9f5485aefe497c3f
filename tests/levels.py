"""Two levels of tests: plain `pytest` runs everything, `pytest --fast` runs what `make test` runs.

The fast level has all tests in tests/unit and tests/integration, but a test for both databases runs only
on SQLite. Mark a test with `@pytest.mark.fast` to add all its cases to the fast level: a slow test
(acceptance, faults) that guards a main path, or a test for both databases if PostgreSQL takes another path
through the code. Mark an integration test with `@pytest.mark.slow` to leave it out: it takes many seconds.

A pytest plugin (tests/conftest.py names it).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

#: In these folders only tests marked `fast` belong to the fast level.
SLOW_FOLDERS: Final = tuple(Path(__file__).parent / name for name in ("acceptance", "faults", "compose"))

#: The fixtures that run a test once on each database.
ON_BOTH_DATABASES: Final = ("ledger_url", "empty_ledger")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("labelmill").addoption(
        "--fast",
        action="store_true",
        help="run only the fast level: SQLite, and the slow tests marked `fast`",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fast: all cases of this test belong to the fast level")
    config.addinivalue_line("markers", "slow: no case of this test belongs to the fast level")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--fast"):
        return
    slow = [item for item in items if not is_fast(item)]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in set(slow)]


def is_fast(item: pytest.Item) -> bool:
    """Return whether the test belongs to the fast level."""
    if item.get_closest_marker("fast"):
        return True
    if item.get_closest_marker("slow") or any(item.path.is_relative_to(folder) for folder in SLOW_FOLDERS):
        return False
    return not _is_second_database(item)


def _is_second_database(item: pytest.Item) -> bool:
    """Return whether the test runs on PostgreSQL only because it runs on both databases."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return False
    asked = {name for mark in item.iter_markers("parametrize") for name in _argument_names(mark)}
    chosen_for_it = [fixture for fixture in ON_BOTH_DATABASES if fixture not in asked]
    return any(item.callspec.params.get(fixture) == "postgresql" for fixture in chosen_for_it)


def _argument_names(parametrize: pytest.Mark) -> list[str]:
    names = parametrize.kwargs.get("argnames") or parametrize.args[0]
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
