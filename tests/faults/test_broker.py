"""Redis is killed, emptied or full: its messages are only hints, and are rung again from the ledger."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import redis

from jobs.ledger.workers import HEARTBEAT_SECONDS, list_workers
from jobs.queue import BROKER_TIMEOUT_SECONDS
from jobs.schema import JobState
from tests.console import is_alive, until
from tests.faults.harness import Harness
from tests.faults.pictures import Picture, pictures
from tests.faults.trials import Matrix

#: How long a submission may take where the broker is silent: it waits for it once, and a machine that is very
#: busy is slow beside.
SILENT_SECONDS = 3 * BROKER_TIMEOUT_SECONDS

#: Longer than a heartbeat's interval, and far longer than a chunk's time limit.
OUTAGE_SECONDS = HEARTBEAT_SECONDS + 4


def _kill(harness: Harness) -> None:
    """With all that it had in memory; the supervisor starts an empty one."""
    killed = harness.broker.pid
    os.kill(killed, signal.SIGKILL)
    until(lambda: not is_alive(killed), "it is dead")
    harness.wait_for_broker()


def _flush(harness: Harness) -> None:
    with harness.redis() as client:
        client.flushall()


@pytest.mark.parametrize(
    ("fault", "strike"),
    [("Redis killed and restarted", _kill), ("FLUSHALL", _flush)],
    ids=["killed", "flushed"],
)
def test_losing_all_messages_loses_no_image(
    harnesses: list[Harness], matrix: Matrix, fault: str, strike: Callable[[Harness], None]
) -> None:
    with matrix.trials(fault, "I1, I3", short=6, long=50) as trials:
        struck = 0
        while struck < trials.wanted:
            # given a job under way on each harness
            images = pictures(1_500)
            jobs = [harness.submit(images, chunk_images=25) for harness in harnesses]
            times = [0 for _ in harnesses]

            # when the broker loses everything, again and again
            while struck < trials.wanted and not all(map(Harness.is_over, harnesses, jobs)):
                time.sleep(random.uniform(0.2, 1.5))
                for place, (harness, job) in enumerate(zip(harnesses, jobs, strict=True)):
                    if not harness.is_over(job):
                        strike(harness)
                        times[place] += 1
                        struck += 1

            # then nobody has to do anything: the jobs end
            for harness, job, count in zip(harnesses, jobs, times, strict=True):
                trials.ran(count, harness.judge(job, images))


def test_an_outage_costs_two_lines_and_no_process(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("Redis away for longer than the time limit", "I1, I3", short=2, long=20) as trials:
        for _ in range(trials.wanted // len(harnesses)):
            # Given a job in work
            images = pictures(600)
            jobs = [_under_way(harness, images) for harness in harnesses]
            children = [harness.workers[0].children() for harness in harnesses]
            logs = [harness.faults / "worker0.log" for harness in harnesses]
            begin = [len(log.read_text()) for log in logs]

            # When the broker ends, and is started again after the chunks' hard time limit
            for harness in harnesses:
                harness.broker.supervised = False
                harness.broker.popen.kill()
                harness.broker.popen.wait()
            time.sleep(OUTAGE_SECONDS)
            seen = [_seconds_since_heartbeat(harness) for harness in harnesses]
            for harness in harnesses:
                harness.broker.start_again()
                harness.wait_for_broker()

            # Then the workers sent heartbeats meanwhile, no process was lost, and the log is short
            for harness, job in zip(harnesses, jobs, strict=True):
                trials.ran(1, harness.judge(job, images))
            assert max(seen) < OUTAGE_SECONDS - 1
            assert [harness.workers[0].children() for harness in harnesses] == children
            for log, start in zip(logs, begin, strict=True):
                lines = log.read_text()[start:]
                assert lines.count(": WARNING/") == 1, lines
                assert "the broker cannot be reached" in lines
                assert not re.search(r": (ERROR|CRITICAL)/|Traceback|Soft time limit", lines), lines


def _seconds_since_heartbeat(harness: Harness) -> float:
    with harness.ledger.reading() as connection:
        return max(worker.seen_seconds for worker in list_workers(connection))


def test_a_full_broker_holds_up_work_and_loses_none(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("Redis at maxmemory", "I1, I3, I5", short=2, long=20) as trials:
        for _ in range(trials.wanted // len(harnesses)):
            images = pictures(600)
            jobs = []
            with ExitStack() as stack:
                for harness in harnesses:
                    before = _under_way(harness, images)

                    # when the broker has no memory left, and takes no message any more
                    stack.callback(_limit_memory, harness, 0)
                    _limit_memory(harness, 1)
                    # and another job is submitted: it is accepted all the same
                    jobs.append((harness, before, harness.submit(images, chunk_images=25)))
                time.sleep(5.0)

                # and it is that which holds it up: the broker is as full as before, and nobody knows of it
                for harness, _, meanwhile in jobs:
                    with harness.redis() as client, pytest.raises(redis.OutOfMemoryError):
                        client.rpush("room", "for this?")
                    assert harness.done(meanwhile) == 0

            # then, with memory again, both are done
            for harness, before, meanwhile in jobs:
                trials.ran(0, harness.judge(before, images))
                trials.ran(1, harness.judge(meanwhile, images))


def _under_way(harness: Harness, images: list[Picture]) -> str:
    """A job that is given, and of which a chunk is done."""
    job = harness.submit(images, chunk_images=25)
    until(lambda: harness.done(job) > 0, "the first chunk is done")
    return job


def _limit_memory(harness: Harness, limit_bytes: int) -> None:
    with harness.redis() as client:
        client.config_set("maxmemory", limit_bytes)


def test_a_broker_that_is_alive_and_silent_holds_nobody_up_for_long(
    harnesses: list[Harness], matrix: Matrix
) -> None:
    with matrix.trials("Redis stands still: alive and silent", "I1-I3", short=2, long=20) as trials:
        for _ in range(trials.wanted // len(harnesses)):
            images = pictures(600)
            jobs = []
            with ExitStack() as stack:
                for harness in harnesses:
                    before = _under_way(harness, images)

                    # when the broker stands still: whoever connects is let in, and gets no answer
                    stack.callback(os.kill, harness.broker.pid, signal.SIGCONT)
                    os.kill(harness.broker.pid, signal.SIGSTOP)
                    # and another job is submitted (who would wait for ever is told apart by waking it)
                    waking = threading.Timer(SILENT_SECONDS, os.kill, (harness.broker.pid, signal.SIGCONT))
                    waking.start()
                    meanwhile = harness.submit(images, chunk_images=25)

                    # then it is accepted, as soon as it is clear that nobody answers
                    assert waking.is_alive(), f"it waited {SILENT_SECONDS:g} seconds for the broker"
                    waking.cancel()
                    assert harness.state(meanwhile) == JobState.RUNNING
                    jobs.append((harness, before, meanwhile))
                # and workers, too, wait longer for an answer than they mean to
                time.sleep(BROKER_TIMEOUT_SECONDS)
                assert {harness.done(meanwhile) for harness, _, meanwhile in jobs} == {0}

            # and when it answers again, both are done
            for harness, before, meanwhile in jobs:
                trials.ran(0, harness.judge(before, images))
                trials.ran(1, harness.judge(meanwhile, images))
                _flush(harness)  # what could not be acknowledged comes back in minutes, in another test
