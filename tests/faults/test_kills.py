"""kill -9 at a random instant: every image has one outcome, and it is its own."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from tests.console import until
from tests.faults.checker import attempts_are_bounded, chunk_rows
from tests.faults.harness import HEALED_SECONDS, Harness
from tests.faults.pictures import pictures
from tests.faults.trials import Matrix

#: One kill in so many takes the whole worker's parent, the others a child.
_PARENTS = 4


def test_killing_processes_at_random_instants_loses_nothing(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("SIGKILL at a random instant", "I1-I5", short=20, long=300) as trials:
        images = pictures(1_500)
        seed = random.randrange(2**32)
        chance = random.Random(seed)
        killed = met = 0
        while killed < trials.wanted:
            # given a job that is under way, on each harness
            jobs = {harness: harness.submit(images, chunk_images=25) for harness in harnesses}
            for harness, job in jobs.items():
                until(lambda harness=harness, job=job: harness.done(job) > 0, "the first chunk is done")

            # when, at any moment, a child or its parent is killed, again and again
            times, claims = dict.fromkeys(harnesses, 0), dict.fromkeys(harnesses, 0)
            while killed < trials.wanted and (
                busy := [harness for harness in harnesses if not harness.is_over(jobs[harness])]
            ):
                time.sleep(chance.uniform(0.2, 1.5) / len(busy))
                harness = chance.choice(busy)
                # but not while its processes only start: on a very busy machine, no kill would meet work
                until(
                    lambda harness=harness, job=jobs[harness], seen=claims[harness]: (
                        harness.is_over(job) or _claims(harness, job) > seen
                    ),
                    "somebody is at work again",
                    seconds=HEALED_SECONDS,
                )
                claims[harness] = _claims(harness, jobs[harness])
                victim = _victim(harness, chance)
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed += 1
                    times[harness] += 1

            # then the job ends, every image has one outcome, its own, and no chunk was tried without end
            for harness, job in jobs.items():
                trials.ran(times[harness], harness.judge(job, images))
                assert attempts_are_bounded(harness.url, job), f"seed {seed}"
                met += sum(chunk["attempts"] - 1 for chunk in chunk_rows(harness.url, job))
        # and kills met chunks, not only processes that were waiting
        assert met > killed // 10, f"{met} of {killed} kills met a chunk; seed {seed}"


def _claims(harness: Harness, job: str) -> int:
    """How often a chunk of the job was claimed so far."""
    return sum(chunk["attempts"] for chunk in chunk_rows(harness.url, job))


def _victim(harness: Harness, chance: random.Random) -> int:
    """A process of the worker's."""
    [worker] = harness.workers
    children = worker.children()
    return worker.pid if not children or chance.randrange(_PARENTS) == 0 else chance.choice(children)
