"""Small jobs that are claimed together: whatever happens to one or to all, each has its own outcomes."""

from __future__ import annotations

from jobs.queue import Publisher
from tests.faults.checker import attempts_are_bounded, chunk_rows
from tests.faults.harness import Harness
from tests.faults.pictures import Picture, pictures, poisoned
from tests.faults.trials import Matrix

#: So many jobs at once, of one to three images each.
JOBS = 40


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


def test_a_poisonous_image_costs_the_jobs_beside_it_nothing(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("a poisonous image in one of many small jobs", "I1-I5", short=4, long=40) as trials:
        crashed_together = 0
        for number in range(trials.wanted // len(harnesses)):
            # given many small jobs that wait, one of them with an image that kills its process
            jobs = _small_jobs()
            at = (number * 17 + 5) % JOBS
            jobs[at][-1] = poisoned(jobs[at][-1], "segfault", answer="quarantined")
            for harness in harnesses:
                harness.wait_for_silence()

                # when they are classified together, then that image alone has no label
                ids = _submit_together(harness, jobs)
                trials.ran(1, *(harness.judge(job, images) for job, images in zip(ids, jobs, strict=True)))
                assert all(attempts_are_bounded(harness.url, job) for job in ids)
                crashed = sum(bool(chunk["crashes"]) for job in ids for chunk in chunk_rows(harness.url, job))
                crashed_together = max(crashed_together, crashed)
        # The reconciler may wake a worker when only the first of them is there, but not each time.
        assert crashed_together > 1
