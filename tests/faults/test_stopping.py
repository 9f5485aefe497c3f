"""Workers are told to stop in the middle of a chunk, as every deploy does: no image is to blame for it."""

from __future__ import annotations

import pytest

from jobs.messages import CLASSIFY_QUEUE
from jobs.queue import KEY_PREFIX
from tests.console import folder_for_sockets
from tests.faults.checker import chunk_rows
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.faults.plan import Rule
from tests.faults.trials import Matrix


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_a_worker_that_is_told_to_stop_blames_no_image(
    harnesses: list[Harness], matrix: Matrix, signal_name: str
) -> None:
    with matrix.trials(f"{signal_name} in mid-chunk", "I1-I4", short=4, long=50) as trials:
        told = 0
        while told < trials.wanted:
            # given workers that are told to stop while they hold a claim, and started again when they have
            images = pictures(500)
            jobs = []
            for harness in harnesses:
                harness.plan.set(Rule("after claim", signal_name, times=2, every=7, value=0.3))
                jobs.append(harness.submit(images, chunk_images=20))

            # when a job goes through that, then it ends with every label
            for harness, job in zip(harnesses, jobs, strict=True):
                verdict = harness.judge(job, images)
                times = len(harness.plan.events(signal_name))
                trials.ran(times, verdict)
                told += times
                # and nothing counts as a crash; but after SIGQUIT, by which Celery kills children in mid-step
                crashes = [chunk["error"] for chunk in chunk_rows(harness.url, job) if chunk["crashes"]]
                assert not crashes or signal_name == "SIGQUIT", crashes


def test_a_message_outlives_the_process_that_had_it(matrix: Matrix) -> None:
    # given workers whose reconciler sends nothing, and leases that do not run out: what becomes of a
    # message is Celery's affair alone
    with (
        matrix.trials("SIGQUIT in mid-chunk, nobody wakes up again", "I1", short=3, long=20) as trials,
        folder_for_sockets() as folder,
        Harness(folder / "home", workers=0, lease_seconds=120.0, FAULT_RECONCILE_SECONDS="86400") as harness,
    ):
        # when a process dies with its chunk claimed, then another one has its message
        images = pictures(30)
        harness.plan.set(Rule("after claim", "kill", times=1, every=1))
        worker = harness.add_worker("killed", processes=1)
        job = harness.submit(images, chunk_images=30)
        verdict = harness.judge(job, images)
        assert verdict.clean, verdict
        [chunk] = chunk_rows(harness.url, job)
        assert (chunk["attempts"], chunk["crashes"]) == (2, 1)
        harness.remove_worker(worker)

        for number in range(trials.wanted):
            # and given a worker in the middle of a chunk, whose message is the only one there is
            with harness.redis() as client:
                client.flushall()
            harness.plan.set(Rule("after claim", "SIGQUIT", times=1, every=1, value=60.0))
            worker = harness.add_worker(f"stopped{number}", processes=1)
            worker.supervised = False
            job = harness.submit(images, chunk_images=30)

            # when it is shut down cold
            worker.popen.wait(60)
            assert len(harness.plan.events("SIGQUIT")) == 1
            assert harness.done(job) == 0

            # then the message is there: on the queue, or among those that come back after a while
            with harness.redis() as client:
                waiting, out = client.llen(KEY_PREFIX + CLASSIFY_QUEUE), client.hlen(KEY_PREFIX + "unacked")
            assert waiting + out == 1, (waiting, out)  # type: ignore[operator]
            harness.remove_worker(worker)
            trials.ran(1)
