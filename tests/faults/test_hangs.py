"""A store that hangs: its images wait for it, and not one is given up."""

from __future__ import annotations

from tests.faults.checker import attempts_are_bounded, chunk_rows
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.faults.plan import Rule
from tests.faults.trials import Matrix

#: Reads of a payload in a row that hang, one more than crashes make a split. Each takes the soft time limit,
#: 2.1 seconds, and each time it is longer before the chunk comes again.
HANGS = 3


def test_a_store_that_hangs_costs_no_image_its_label(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("the store hangs", "I1-I5", short=6, long=24) as trials:
        for _ in range(trials.wanted // (len(harnesses) * HANGS)):
            # given a store in which payloads cannot be read, and nobody says so
            images = pictures(4)
            jobs = []
            for harness in harnesses:
                harness.plan.set(Rule("reading", "hang", times=HANGS, every=1))
                jobs.append(harness.submit(images, chunk_images=4))

            # when it answers again, then each image has its label
            for harness, job in zip(harnesses, jobs, strict=True):
                verdict = harness.judge(job, images)
                assert len(harness.plan.events("hang")) == HANGS
                trials.ran(HANGS, verdict)
                assert attempts_are_bounded(harness.url, job)

                # and its chunk was given back as often as it hung: nobody took it for the images' doing
                [chunk] = chunk_rows(harness.url, job)
                assert (chunk["images"], chunk["releases"], chunk["crashes"]) == (4, HANGS, 0)
