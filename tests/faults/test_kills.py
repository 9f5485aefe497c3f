"""kill -9 at a random instant: every image has one outcome, and it is its own."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from tests.console import until
from tests.faults.checker import attempts_are_bounded, chunk_rows
from tests.faults.mill import HEALED_SECONDS, Mill
from tests.faults.pictures import Picture, pictures
from tests.faults.plan import Rule
from tests.faults.trials import Matrix, Trials

#: One kill in so many takes the whole worker's parent, the others a child.
_PARENTS = 4


def test_killing_processes_at_random_instants_loses_nothing(mills: list[Mill], matrix: Matrix) -> None:
    with matrix.trials("SIGKILL at a random instant", "I1-I5", short=20, long=300) as trials:
        _kill_at_random(mills, trials, pictures(1_500), chunk_images=25, pause_seconds=(0.2, 1.5))


def test_killing_processes_that_hold_tensorflow_loses_nothing(
    keras_mill: Mill, little_digits: list[Picture], matrix: Matrix
) -> None:
    with matrix.trials("SIGKILL at a random instant, TensorFlow", "I1-I5", short=4, long=60) as trials:
        # slow enough that a kill comes while a job is under way, not only while TensorFlow starts
        keras_mill.plan.set(Rule("after predict", "sleep", times=10**9, every=1, value=0.2))
        _kill_at_random([keras_mill], trials, little_digits, chunk_images=5, pause_seconds=(1.0, 6.0))


def _kill_at_random(
    mills: list[Mill],
    trials: Trials,
    images: list[Picture],
    *,
    chunk_images: int,
    pause_seconds: tuple[float, float],
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    killed = met = 0
    while killed < trials.wanted:
        # given a job that is under way, on each mill
        jobs = {mill: mill.submit(images, chunk_images=chunk_images) for mill in mills}
        for mill, job in jobs.items():
            until(lambda mill=mill, job=job: mill.done(job) > 0, "the first chunk is done")

        # when, at any moment, a child or its parent is killed, again and again
        times, claims = dict.fromkeys(mills, 0), dict.fromkeys(mills, 0)
        while killed < trials.wanted and (busy := [mill for mill in mills if not mill.is_over(jobs[mill])]):
            time.sleep(chance.uniform(*pause_seconds) / len(busy))
            mill = chance.choice(busy)
            # but not while its processes only start: on a machine that is very busy no kill would meet work
            until(
                lambda mill=mill, job=jobs[mill], seen=claims[mill]: (
                    mill.is_over(job) or _claims(mill, job) > seen
                ),
                "somebody is at work again",
                seconds=HEALED_SECONDS,
            )
            claims[mill] = _claims(mill, jobs[mill])
            victim = _victim(mill, chance)
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed += 1
                times[mill] += 1

        # then the job ends, every image has one outcome, its own, and no chunk was tried without end
        for mill, job in jobs.items():
            trials.ran(times[mill], mill.judge(job, images))
            assert attempts_are_bounded(mill.url, job), f"seed {seed}"
            met += sum(chunk["attempts"] - 1 for chunk in chunk_rows(mill.url, job))
    # and kills met chunks, not only processes that were waiting
    assert met > killed // 10, f"{met} of {killed} kills met a chunk; seed {seed}"


def _claims(mill: Mill, job: str) -> int:
    """How often a chunk of the job was claimed so far."""
    return sum(chunk["attempts"] for chunk in chunk_rows(mill.url, job))


def _victim(mill: Mill, chance: random.Random) -> int:
    """A process of the worker's."""
    [worker] = mill.workers
    children = worker.children()
    return worker.pid if not children or chance.randrange(_PARENTS) == 0 else chance.choice(children)
