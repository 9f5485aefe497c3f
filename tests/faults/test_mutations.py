"""Each guard of the ledger is taken away in turn, and its tests must notice. `mutants` lists the guards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.mutants import MUTANTS, NOTICED, ROOT, Change, Mutant, Result, run_tests

Results = dict[str, "Future[Result]"]

#: The tests that are run, without any change.
EVERYTHING = tuple(
    Mutant(
        database,
        tuple({test for mutant in MUTANTS if mutant.database == database for test in mutant.tests}),
        (),
        database,
    )
    for database in ("sqlite", "postgresql")
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """All runs, as many at a time as there are cores: each is a pytest of its own."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        runs = {
            mutant.name: pool.submit(
                run_tests,
                tmp_path_factory.mktemp("copy"),
                sorted(mutant.tests),
                database=mutant.database,
                changes=mutant.changes,
            )
            for mutant in (*EVERYTHING, *MUTANTS)
        }
        yield runs
        for run in runs.values():
            run.cancel()


@pytest.mark.parametrize("everything", EVERYTHING, ids=lambda everything: everything.name)
def test_with_all_guards_the_tests_pass(results: Results, everything: Mutant) -> None:
    result = results[everything.name].result()
    assert result.returncode == pytest.ExitCode.OK, result.output
    # Not one case was skipped, either.
    ended = [result.tests.get(name) for name in names(everything)]
    assert ended == [{"passed"}] * len(ended)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_without_this_guard_the_tests_fail(results: Results, mutant: Mutant) -> None:
    # When the guard is gone and its tests are run
    result = results[mutant.name].result()

    # Then all of them notice, by what they assert, and not because nothing works any more
    assert result.returncode in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), result.output
    assert result.ended("error") == set(), result.output
    assert result.tests["test_the_copy_is_what_is_tested"] == {"passed"}
    noticed = result.ended(NOTICED, *mutant.raises)
    assert names(mutant) <= noticed, f"not all noticed: {result.tests}\n{result.output}"


def test_a_mistake_in_a_mutant_is_no_loss_of_a_guard(tmp_path: Path) -> None:
    # Given a change that only makes the program fail
    test = "tests/unit/test_promotion.py::test_a_few_more_right_are_not_enough"
    guard = "passed = gained > lost and p < limits.significance"
    change = Change("worker/learning/promotion.py", guard, "passed = nobodys")
    # When the tests are run, Then by what they fail is seen, and none has noticed
    result = run_tests(tmp_path, [test], database="sqlite", changes=[change])
    assert result.tests["test_a_few_more_right_are_not_enough"] == {"NameError"}
    assert result.ended(NOTICED) == set()


def test_the_guards_stand_in_the_documents() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    for mutant in MUTANTS:
        row = next((line for line in text.splitlines() if line.startswith(f"| {mutant.name} |")), "")
        assert mutant.tests[0].rpartition("/")[2] in row, f"docs/faults.md does not tell of it: {mutant.name}"


def names(mutant: Mutant) -> set[str]:
    return {test.rpartition("::")[2] for test in mutant.tests}
