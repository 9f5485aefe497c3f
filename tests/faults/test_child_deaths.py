"""A worker reports that its processes keep dying."""

from __future__ import annotations

import os
import signal

from jobs.ledger.counters import CounterName, totals
from jobs.ledger.workers import list_workers
from labelmill.operations.readiness import Part, readiness
from tests.console import until
from tests.faults.harness import Harness
from tests.faults.trials import Matrix
from worker.children import MANY_DEATHS


def test_processes_that_keep_dying_are_told(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("processes of a worker keep dying", "I1", short=2, long=2) as trials:
        for harness in harnesses:
            # Given a worker that is ready
            until(lambda harness=harness: readiness(harness.settings, Part.WORKER).ready, "it is ready")
            before, [worker] = _deaths(harness), harness.workers

            # When they are killed, again and again
            killed: set[int] = set()
            while len(killed) < MANY_DEATHS:
                until(
                    lambda worker=worker, killed=killed: set(worker.children()) - killed,
                    "there are processes",
                )
                for child in set(worker.children()) - killed:
                    os.kill(child, signal.SIGKILL)
                    killed.add(child)

            # Then each death is counted, and the worker is not ready and says why
            expected = before + len(killed)
            until(lambda harness=harness, expected=expected: _deaths(harness) == expected, "they are counted")
            assert "keep dying, killed by SIGKILL" in readiness(harness.settings, Part.WORKER).reason
            with harness.ledger.reading() as connection:
                assert any(row.problem for row in list_workers(connection))
            assert "keep dying, killed by SIGKILL" in (harness.faults / "worker0.log").read_text()
            trials.ran(1)


def _deaths(harness: Harness) -> float:
    with harness.ledger.reading() as connection:
        return totals(connection).get((CounterName.CHILD_DEATHS, "SIGKILL"), 0.0)
