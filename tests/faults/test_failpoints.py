"""A process dies exactly between two steps: at each seam of a chunk's way, child, parent or both."""

from __future__ import annotations

from contextlib import ExitStack

from tests.faults.checker import attempts_are_bounded
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.faults.plan import Rule
from tests.faults.trials import Matrix

SEAMS = (
    "after pop",
    "after claim",
    "after predict",
    "before COMMIT",
    "after COMMIT",
    "after task",
    "before ack",
)


def test_dying_at_any_seam_loses_nothing_and_doubles_nothing(
    harnesses: list[Harness], matrix: Matrix
) -> None:
    with ExitStack() as stack:
        trials = {
            seam: stack.enter_context(matrix.trials(f"SIGKILL {seam}", "I1-I5", short=5, long=50))
            for seam in SEAMS
        }
        dead = dict.fromkeys(SEAMS, 0)
        while any(dead[seam] < trials[seam].wanted for seam in SEAMS):
            # given faults at every seam: a child dies, or the whole worker does
            images = pictures(1_200)
            jobs = []
            for harness in harnesses:
                harness.plan.set(
                    *(Rule(seam, "kill", times=2, every=11 + place) for place, seam in enumerate(SEAMS)),
                    *(Rule(seam, "kill both", times=1, every=9 + place) for place, seam in enumerate(SEAMS)),
                )
                jobs.append(harness.submit(images, chunk_images=20))

            # when a job goes through them, then every image has one outcome, its own
            for harness, job in zip(harnesses, jobs, strict=True):
                verdict = harness.judge(job, images)
                for seam in SEAMS:
                    times = sum(event["seam"] == seam for event in harness.plan.events())
                    trials[seam].ran(times, verdict)
                    dead[seam] += times
                assert attempts_are_bounded(harness.url, job)
