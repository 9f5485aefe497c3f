"""Redis is killed, emptied or full: its messages are only hints, and are rung again from the ledger."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from jobs.queue import BROKER_TIMEOUT_SECONDS
from jobs.schema import JobState
from tests.console import is_alive, until
from tests.faults.mill import Mill
from tests.faults.pictures import Picture, pictures
from tests.faults.trials import Matrix

#: How long a submission may take where the broker is silent: it waits for it once, and a machine that is very
#: busy is slow beside.
SILENT_SECONDS = 3 * BROKER_TIMEOUT_SECONDS


def _kill(mill: Mill) -> None:
    """With all that it had in memory; the supervisor starts an empty one."""
    killed = mill.broker.pid
    os.kill(killed, signal.SIGKILL)
    until(lambda: not is_alive(killed), "it is dead")
    mill.wait_for_broker()


def _flush(mill: Mill) -> None:
    with mill.redis() as client:
        client.flushall()


@pytest.mark.parametrize(
    ("fault", "strike"),
    [("Redis killed and restarted", _kill), ("FLUSHALL", _flush)],
    ids=["killed", "flushed"],
)
def test_losing_all_messages_loses_no_image(
    mills: list[Mill], matrix: Matrix, fault: str, strike: Callable[[Mill], None]
) -> None:
    with matrix.trials(fault, "I1, I3", short=6, long=50) as trials:
        struck = 0
        while struck < trials.wanted:
            # given a job under way on each mill
            images = pictures(1_500)
            jobs = [mill.submit(images, chunk_images=25) for mill in mills]
            times = [0 for _ in mills]

            # when the broker loses everything, again and again
            while struck < trials.wanted and not all(map(Mill.is_over, mills, jobs)):
                time.sleep(random.uniform(0.2, 1.5))
                for place, (mill, job) in enumerate(zip(mills, jobs, strict=True)):
                    if not mill.is_over(job):
                        strike(mill)
                        times[place] += 1
                        struck += 1

            # then nobody has to do anything: the jobs end
            for mill, job, count in zip(mills, jobs, times, strict=True):
                trials.ran(count, mill.judge(job, images))


def test_a_full_broker_holds_up_work_and_loses_none(mills: list[Mill], matrix: Matrix) -> None:
    with matrix.trials("Redis at maxmemory", "I1, I3, I5", short=2, long=20) as trials:
        for _ in range(trials.wanted // len(mills)):
            images = pictures(600)
            jobs = []
            with ExitStack() as stack:
                for mill in mills:
                    before = _under_way(mill, images)

                    # when the broker has no memory left, and takes no message any more
                    stack.callback(_limit_memory, mill, 0)
                    _limit_memory(mill, 1)
                    # and another job is submitted: it is accepted all the same
                    jobs.append((mill, before, mill.submit(images, chunk_images=25)))
                time.sleep(5.0)

                # and it is that which holds it up: the broker is as full as before, and nobody knows of it
                for mill, _, meanwhile in jobs:
                    with mill.redis() as client, pytest.raises(redis.OutOfMemoryError):
                        client.rpush("room", "for this?")
                    assert mill.done(meanwhile) == 0

            # then, with memory again, both are done
            for mill, before, meanwhile in jobs:
                trials.ran(0, mill.judge(before, images))
                trials.ran(1, mill.judge(meanwhile, images))


def _under_way(mill: Mill, images: list[Picture]) -> str:
    """A job that is given, and of which a chunk is done."""
    job = mill.submit(images, chunk_images=25)
    until(lambda: mill.done(job) > 0, "the first chunk is done")
    return job


def _limit_memory(mill: Mill, limit_bytes: int) -> None:
    with mill.redis() as client:
        client.config_set("maxmemory", limit_bytes)


def test_a_broker_that_is_alive_and_silent_holds_nobody_up_for_long(
    mills: list[Mill], matrix: Matrix
) -> None:
    with matrix.trials("Redis stands still: alive and silent", "I1-I3", short=2, long=20) as trials:
        for _ in range(trials.wanted // len(mills)):
            images = pictures(600)
            jobs = []
            with ExitStack() as stack:
                for mill in mills:
                    before = _under_way(mill, images)

                    # when the broker stands still: whoever connects is let in, and gets no answer
                    stack.callback(os.kill, mill.broker.pid, signal.SIGCONT)
                    os.kill(mill.broker.pid, signal.SIGSTOP)
                    # and another job is submitted (who would wait for ever is told apart by waking it)
                    waking = threading.Timer(SILENT_SECONDS, os.kill, (mill.broker.pid, signal.SIGCONT))
                    waking.start()
                    meanwhile = mill.submit(images, chunk_images=25)

                    # then it is accepted, as soon as it is clear that nobody answers
                    assert waking.is_alive(), f"it waited {SILENT_SECONDS:g} seconds for the broker"
                    waking.cancel()
                    assert mill.state(meanwhile) == JobState.RUNNING
                    jobs.append((mill, before, meanwhile))
                # and workers, too, wait longer for an answer than they mean to
                time.sleep(BROKER_TIMEOUT_SECONDS)
                assert {mill.done(meanwhile) for mill, _, meanwhile in jobs} == {0}

            # and when it answers again, both are done
            for mill, before, meanwhile in jobs:
                trials.ran(0, mill.judge(before, images))
                trials.ran(1, mill.judge(meanwhile, images))
                _flush(mill)  # what could not be acknowledged comes back in minutes, in another test


def test_flushing_in_the_middle_of_a_large_job(keras_mill: Mill, mnist_dir: Path, matrix: Matrix) -> None:
    with matrix.trials("FLUSHALL in mid-job, all of MNIST, TensorFlow", "I1, I3", short=1, long=10) as trials:
        mill = keras_mill
        files = sorted(str(path) for path in mnist_dir.glob("*-images-idx3-ubyte*"))

        # given all of MNIST in chunks of the size that is the default
        job, names = mill.submit_sources(files)
        until(lambda: mill.done(job) > 0, "the first chunk is done")

        # when the broker is emptied while it is under way
        flushed = 0
        while flushed < trials.wanted and not mill.is_over(job):
            _flush(mill)
            flushed += 1
            time.sleep(1.0)
        assert flushed

        # then every image has its label, and nobody had to do anything
        trials.ran(flushed, mill.judge_names(job, names, seconds=300))
