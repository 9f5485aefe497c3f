"""The checker itself: a sound ledger passes, and each way to be wrong is seen. No code of Labelmill's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.ledger.sqlite import driver
from tests.faults.checker import Expected, attempts_are_bounded, check_job

JOB = "job"
EXPECTED = [
    Expected("a.png", "1"),
    Expected("b.png", "2"),
    Expected("c.png", "corrupt"),
    Expected("d.png", None),
]


class Bad:
    """A ledger that anything can be written to: no key and no constraint keeps it right."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self._connection = driver().connect(path, isolation_level=None)
        self.run("CREATE TABLE jobs (id, state, total, succeeded, failed, finished_at, model_id)")
        self.run("CREATE TABLE models (id)")
        self.run(
            "CREATE TABLE chunks (job_id, state, first_index, images, attempts, crashes, releases, error)"
        )
        self.run('CREATE TABLE predictions (job_id, "index", name, label, confidence, error, detail)')
        # A chunk of four that crashed and was halved; both are done.
        self.run("INSERT INTO models VALUES ('model')")
        self.run("INSERT INTO jobs VALUES ('job', 'done', 4, 3, 1, 'now', 'model')")
        self.run("INSERT INTO chunks VALUES ('job', 'done', 0, 2, 1, 1, 0, 'died')")
        self.run("INSERT INTO chunks VALUES ('job', 'done', 2, 2, 1, 1, 0, 'died')")
        self.run("INSERT INTO predictions VALUES ('job', 0, 'a.png', '1', 0.9, NULL, NULL)")
        self.run("INSERT INTO predictions VALUES ('job', 1, 'b.png', '2', 0.9, NULL, NULL)")
        self.run("INSERT INTO predictions VALUES ('job', 2, 'c.png', NULL, NULL, 'corrupt', 'cut off')")
        self.run("INSERT INTO predictions VALUES ('job', 3, 'd.png', '7', 0.5, NULL, NULL)")

    def run(self, statement: str) -> None:
        self._connection.execute(statement)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def ledger_file(tmp_path: Path) -> Iterator[Bad]:
    bad = Bad(tmp_path / "ledger.sqlite3")
    yield bad
    bad.close()


def test_a_sound_ledger_passes(ledger_file: Bad) -> None:
    verdict = check_job(ledger_file.url, JOB, EXPECTED)
    assert verdict.clean, str(verdict)
    assert attempts_are_bounded(ledger_file.url, JOB)


@pytest.mark.parametrize(
    ("damage", "lost", "doubled", "wrong"),
    [
        ('DELETE FROM predictions WHERE "index" = 2', 1, 0, 0),
        ("INSERT INTO predictions VALUES ('job', 1, 'b.png', '2', 0.9, NULL, NULL)", 0, 1, 0),
        # another outcome beside the first is doubled and wrong
        ("INSERT INTO predictions VALUES ('job', 1, 'b.png', '3', 0.9, NULL, NULL)", 0, 1, 1),
        ("INSERT INTO predictions VALUES ('job', 4, 'e.png', '3', 0.9, NULL, NULL)", 0, 0, 1),
        ("UPDATE predictions SET name = 'b.png' WHERE \"index\" = 0", 0, 0, 1),
        ("UPDATE predictions SET label = '9' WHERE \"index\" = 0", 0, 0, 1),
        ("UPDATE predictions SET error = 'corrupt' WHERE \"index\" = 0", 0, 0, 1),
        ('UPDATE predictions SET label = NULL WHERE "index" = 0', 0, 0, 1),
        ('UPDATE predictions SET confidence = NULL WHERE "index" = 0', 0, 0, 1),
        # any label would do there, but it is an error
        ("UPDATE predictions SET label = NULL, confidence = NULL, error = 'x' WHERE \"index\" = 3", 0, 0, 1),
        ("UPDATE predictions SET error = 'timeout' WHERE \"index\" = 2", 0, 0, 1),
        ("UPDATE chunks SET state = 'pending' WHERE first_index = 2", 0, 0, 0),
        ("UPDATE chunks SET images = 3 WHERE state = 'done' AND first_index = 0", 0, 1, 0),
        ("UPDATE chunks SET images = 1 WHERE state = 'done' AND first_index = 0", 0, 0, 0),
        ("INSERT INTO chunks VALUES ('job', 'done', 2, 2, 1, 0, 0, NULL)", 0, 2, 0),
        ("UPDATE jobs SET state = 'running'", 0, 0, 0),
        ("UPDATE jobs SET succeeded = 4", 0, 0, 0),
        ("UPDATE jobs SET finished_at = NULL", 0, 0, 0),
        ("UPDATE jobs SET model_id = 'another'", 0, 0, 0),
        ("DELETE FROM jobs", 0, 0, 0),
    ],
)
def test_what_is_wrong_is_seen(ledger_file: Bad, damage: str, lost: int, doubled: int, wrong: int) -> None:
    # given a sound ledger with one thing wrong in it
    ledger_file.run(damage)

    # when it is judged, then it is not clean, and what can be counted is
    verdict = check_job(ledger_file.url, JOB, EXPECTED)
    assert not verdict.clean
    assert (verdict.lost, verdict.doubled, verdict.wrong) == (lost, doubled, wrong), str(verdict)


def test_attempts_without_end_are_seen(ledger_file: Bad) -> None:
    # given a chunk that was claimed sixteen times and given back once, then it is within the bound
    ledger_file.run("UPDATE chunks SET attempts = 16, releases = 1 WHERE first_index = 2")
    assert attempts_are_bounded(ledger_file.url, JOB)

    # and not with one more
    ledger_file.run("UPDATE chunks SET attempts = 17 WHERE first_index = 2")
    assert not attempts_are_bounded(ledger_file.url, JOB)
