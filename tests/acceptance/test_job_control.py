"""What people do with a job while it runs and afterwards: pause, resume, limits, retry, purge."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.schema import ChunkState, chunks
from jobs.storage.store import Store
from labelmill import Client
from tests.console import LABELMILL, Home, killed_at_the_end, rows, until
from tests.faults.stack import running_job
from worker.reconciler import RECONCILE_SECONDS


@pytest.fixture
def mixed(few_digits: Path, tmp_path: Path) -> Path:
    """Fifty good digits and ten files that are none."""
    folder = tmp_path / "mixed"
    shutil.copytree(few_digits, folder)
    for number in range(10):
        (folder / f"letter{number}.png").write_text("Dear Sir or Madam")
    return folder


def in_work(client: Client) -> int:
    """How many chunks a worker has."""
    with client.ledger.reading() as connection:
        query = sa.select(sa.func.count()).where(chunks.c.state == ChunkState.CLAIMED)
        return connection.scalar(query) or 0


# ---- pause and resume ---------------------------------------------------------------------------------


def test_a_paused_job_stands_still_and_ends_well(
    new_home: Home, digits: Path, accuracy: float, tmp_path: Path
) -> None:
    # given a job of many chunks that is under way, and somebody who watches it
    with running_job(new_home, digits, tmp_path / "up.log") as running, ExitStack() as stack:
        [status] = running.client.jobs()
        begun = subprocess.Popen(
            [LABELMILL, "status", status.id, "--watch"],
            env=new_home.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        watching = stack.enter_context(killed_at_the_end(begun))

        # when it is paused
        paused = new_home.run("pause", status.id)
        assert paused.returncode == 0, paused.stderr
        assert f"labelmill resume {status.id}" in paused.stderr
        running.check_under_way()

        # then what was in work comes in, and then nothing moves: not when the reconciler looks, either
        until(lambda: not in_work(running.client), "no chunk is in work")
        before = new_home.json("status", status.id)
        time.sleep(2 * RECONCILE_SECONDS)
        after = new_home.json("status", status.id)
        assert (before["paused"], after["paused"]) == (True, True)
        assert (after["succeeded"], after["eta_seconds"]) == (before["succeeded"], None)
        assert after["state"] in ("receiving", "running")
        # The submission may end meanwhile.
        assert re.search(r"(receiving|running), paused", new_home.ok("status", status.id))
        assert re.search(r"(receiving|running), paused", new_home.ok("jobs"))

        # when it is resumed, then it goes on, and every image has its row
        new_home.ok("resume", status.id)
        running.check_it_ends_well(accuracy)

        # and who watched was told how to go on
        _, said = watching.communicate(timeout=120)
        assert f"paused: labelmill resume {status.id}" in said

    # and now there is nothing to pause or resume
    for command in ("pause", "resume"):
        done = new_home.run(command, status.id)
        assert done.returncode == 2
        assert "has already finished: it is done" in done.stderr


# ---- limits of errors ---------------------------------------------------------------------------------


def test_too_many_errors_stop_a_job(stack: Home, mixed: Path) -> None:
    # given a job that may have nine errors, and has ten, when it is followed
    done = stack.run("submit", mixed, "--watch", "--max-errors", "9")

    # then it has failed and says why
    assert done.returncode == 1
    job = done.stdout.split()[-1]
    assert "more than its limit of 9" in done.stderr
    assert stack.json("status", job)["state"] == "failed"

    # and where the limit is ten, or the share is larger, it has not
    assert stack.run("submit", mixed, "--watch", "--max-errors", "10").returncode == 3
    done = stack.run("submit", mixed, "--watch", "--max-error-rate", "0.5", "--min-sample", "1")
    assert done.returncode == 3
    done = stack.run("submit", mixed, "--watch", "--max-error-rate", "0.1", "--min-sample", "1")
    assert done.returncode == 1
    assert "more than its limit of 10 %" in done.stderr


# ---- trying again -------------------------------------------------------------------------------------


@pytest.mark.fast
def test_what_failed_is_tried_again(stack: Home, mixed: Path) -> None:
    # given a job that is done, with errors
    job = stack.run("submit", mixed, "--watch").stdout.split()[-1]

    # when what failed is tried again, and followed
    done = stack.run("retry", job, "--failed", "--watch")

    # then the new job's id is the last word on stdout, and it has just those images, by the same model
    assert done.returncode == 3, done.stderr
    new = done.stdout.split()[-1]
    assert done.stdout == f"{new}\n"
    errors = rows(stack.ok("predictions", new, "--format", "csv"))
    assert sorted(row["name"] for row in errors) == sorted(map(str, mixed.glob("letter*.png")))
    status = stack.json("status", new)
    assert (status["retry_of"], status["total"]) == (job, 10)
    assert status["model"] == stack.json("status", job)["model"]
    assert f"retry of        {job}" in stack.ok("status", new)


def test_where_nothing_failed_there_is_nothing_to_do(stack: Home, few_digits: Path) -> None:
    job = stack.ok("submit", few_digits, "--watch").strip()
    done = stack.run("retry", job)
    assert (done.returncode, done.stdout) == (0, "")
    assert "has nothing to retry" in done.stderr
    assert json.loads(stack.ok("retry", job, "--json")) is None


# ---- purging ------------------------------------------------------------------------------------------


def test_a_purge_takes_nothing_from_a_running_job(
    new_home: Home, digits: Path, few_digits: Path, accuracy: float, tmp_path: Path
) -> None:
    # given a job that is under way, and two that finished while it was paused
    with running_job(new_home, digits, tmp_path / "up.log") as running:
        [big] = running.client.jobs()
        new_home.ok("pause", big.id)
        small = [new_home.ok("submit", few_digits, "--watch").strip() for _ in range(2)]

        # when the job that is under way is to be purged, then that is refused
        refused = new_home.run("purge", big.id)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"labelmill cancel {big.id}" in refused.stderr

        # when the others' payloads are purged, then what was announced is gone, and their predictions are not
        looked = new_home.json("purge", "--payloads", "0", "--dry-run")
        assert (looked["payloads"], looked["jobs"], looked["dry_run"]) == (2, 0, True)
        assert looked["bytes"] > 0
        purged = new_home.json("purge", "--payloads", "0")
        assert (purged["payloads"], purged["bytes"]) == (2, looked["bytes"])
        refused = new_home.run("retry", small[0])
        assert refused.returncode == 2
        assert "purged" in refused.stderr
        assert len(rows(new_home.ok("predictions", small[0], "--format", "csv"))) == 50

        # when they are removed as a whole, while the other job is half done
        removed = new_home.run("purge", "--jobs", "0")
        running.check_under_way()
        running.client.resume(big.id)
        assert "removed: 2 jobs with 100 predictions" in removed.stderr, removed.stderr

        # then that job ends well
        running.check_it_ends_well(accuracy)
        assert Store(running.client.settings.store).folders("payloads") == [big.id]

        # and by its id, which need not be typed in full, it is removed as soon as it has finished
        both = new_home.run("purge", big.id, "--jobs", "0")
        assert both.returncode == 2
        assert "not both" in both.stderr
        assert new_home.json("purge", big.id[:-2])["jobs"] == 1
        assert new_home.json("jobs") == []
