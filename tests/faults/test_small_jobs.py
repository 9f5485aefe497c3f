"""Small jobs that are claimed together: whatever happens to one or to all, each has its own outcomes."""

from __future__ import annotations

from jobs.queue import Publisher
from tests.console import until
from tests.faults.checker import attempts_are_bounded, chunk_rows
from tests.faults.harness import Harness
from tests.faults.pictures import Picture, pictures, poisoned
from tests.faults.plan import Rule
from tests.faults.trials import Matrix, Trials

#: So many jobs at once, of one to three images each.
JOBS = 40

#: Where a process dies that is at many of them.
SEAMS = ("after claim", "after predict", "before COMMIT", "after COMMIT")


class _Silent(Publisher):
    """Keeps wake-ups until all jobs are in: else each would be done before the next one comes."""

    def wake_up(self, count: int = 1) -> int:  # noqa: ARG002
        return 0


def _submit_together(harness: Harness, jobs: list[list[Picture]]) -> list[str]:
    silent = _Silent(harness.app)
    ids = [harness.submit(images, chunk_images=20, publisher=silent) for images in jobs]
    publisher = Publisher(harness.app)
    assert publisher.wake_up(len(jobs)) == len(jobs)
    publisher.close()
    return ids


def _small_jobs() -> list[list[Picture]]:
    sizes = [number % 3 + 1 for number in range(JOBS)]
    return [pictures(size, first=sum(sizes[:number])) for number, size in enumerate(sizes)]


def _judge(
    harness: Harness, trials: Trials, jobs: list[list[Picture]], ids: list[str], *, times: int
) -> None:
    trials.ran(times, *(harness.judge(job_id, images) for job_id, images in zip(ids, jobs, strict=True)))
    assert all(attempts_are_bounded(harness.url, job_id) for job_id in ids)


def test_a_death_beside_many_small_jobs_loses_none_of_them(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("SIGKILL with small jobs claimed together", "I1-I5", short=8, long=80) as trials:
        crashed_together = 0
        for number in range(trials.wanted // len(harnesses)):
            # given many small jobs that wait, and a process that dies when it is at some of them
            jobs = _small_jobs()
            seam = SEAMS[number % len(SEAMS)]
            for harness in harnesses:
                harness.wait_for_silence()
                harness.plan.set(Rule(seam, "kill", times=1, every=1))
                ids = _submit_together(harness, jobs)

                # then all of them have their own outcomes
                until(lambda harness=harness: bool(harness.plan.events("kill")), f"somebody died {seam}")
                _judge(harness, trials, jobs, ids, times=1)
                crashed = sum(row["crashes"] for job_id in ids for row in chunk_rows(harness.url, job_id))
                crashed_together = max(crashed_together, crashed)
        # The reconciler may wake a worker when only the first of them is there, but not each time.
        assert crashed_together > 1


def test_a_poisonous_image_costs_the_jobs_beside_it_nothing(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("a poisonous image in one of many small jobs", "I3-I5", short=4, long=40) as trials:
        for number in range(trials.wanted // len(harnesses)):
            # given many small jobs, one of them with an image that kills its process
            jobs = _small_jobs()
            at = (number * 17 + 5) % JOBS
            jobs[at][-1] = poisoned(jobs[at][-1], "segfault", answer="quarantined")

            # when they are classified together, then that image alone has no label
            for harness in harnesses:
                _judge(harness, trials, jobs, _submit_together(harness, jobs), times=1)
