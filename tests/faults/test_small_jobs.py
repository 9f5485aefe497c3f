"""Small jobs that are classified together: whatever happens to one or to all, each has its own outcomes."""

from __future__ import annotations

import time
from collections.abc import Iterable

from jobs.queue import Bell
from tests.console import until
from tests.faults.checker import attempts_are_bounded, chunk_rows
from tests.faults.mill import Mill
from tests.faults.pictures import Picture, pictures, poisoned
from tests.faults.plan import Rule
from tests.faults.trials import Matrix, Trials

#: So many jobs at once, of one to three images each.
JOBS = 40

#: Images of a large job, and of its chunks: two processes are at it for some seconds.
LARGE, LARGE_CHUNK = 3_000, 300

#: Where a process dies that is at many of them.
SEAMS = ("after claim", "after predict", "before COMMIT", "after COMMIT")


class _Silent(Bell):
    """Keeps messages, until all jobs are in: else each would be done before the next one comes."""

    def __init__(self, mill: Mill) -> None:
        super().__init__(mill.app)
        self.kept: list[str] = []

    def ring_for_small(self, chunk_id: str) -> int:
        self.kept.append(chunk_id)
        return 0

    def ring(self, chunk_ids: Iterable[str], *, ahead: bool = False) -> int:
        raise AssertionError(f"small jobs wait behind others: {[*chunk_ids]}, {ahead}")

    def ring_now(self) -> None:
        assert super().ring_for_small(self.kept[0]) == 1
        for chunk_id in self.kept[1:]:
            super().ring_for_small(chunk_id)


def _submit_together(mill: Mill, jobs: list[list[Picture]]) -> list[str]:
    bell = _Silent(mill)
    ids = [mill.submit(images, chunk_images=20, bell=bell) for images in jobs]
    bell.ring_now()
    return ids


def _small_jobs() -> list[list[Picture]]:
    sizes = [number % 3 + 1 for number in range(JOBS)]
    return [pictures(size, first=sum(sizes[:number])) for number, size in enumerate(sizes)]


def _judge(mill: Mill, trials: Trials, jobs: list[list[Picture]], ids: list[str], *, times: int) -> None:
    trials.ran(times, *(mill.judge(job_id, images) for job_id, images in zip(ids, jobs, strict=True)))
    assert all(attempts_are_bounded(mill.url, job_id) for job_id in ids)


def test_a_death_beside_many_small_jobs_loses_none_of_them(mills: list[Mill], matrix: Matrix) -> None:
    with matrix.trials("SIGKILL with small jobs gathered", "I1-I5", short=8, long=80) as trials:
        for number in range(trials.wanted // len(mills)):
            # given many small jobs that wait, and a process that dies when it is at some of them
            jobs = _small_jobs()
            seam = SEAMS[number % len(SEAMS)]
            for mill in mills:
                mill.wait_for_silence()  # a message in vain would ring for the first of those to come
                mill.plan.set(Rule(seam, "kill", times=1, every=1))
                ids = _submit_together(mill, jobs)

                # then all of them have their own outcomes, and it was many that it was at
                until(lambda mill=mill: bool(mill.plan.events("kill")), f"somebody died {seam}")
                _judge(mill, trials, jobs, ids, times=1)
                crashed = sum(row["crashes"] for job_id in ids for row in chunk_rows(mill.url, job_id))
                assert crashed > 1 or seam == "after COMMIT"


def test_a_poisonous_image_costs_the_jobs_beside_it_nothing(mills: list[Mill], matrix: Matrix) -> None:
    with matrix.trials("a poisonous image in one of many small jobs", "I3-I5", short=4, long=40) as trials:
        for number in range(trials.wanted // len(mills)):
            # given many small jobs, one of them with an image that kills its process
            jobs = _small_jobs()
            at = (number * 17 + 5) % JOBS
            jobs[at][-1] = poisoned(jobs[at][-1], "segfault", answer="quarantined")

            # when they are classified together, then that image alone has no label
            for mill in mills:
                _judge(mill, trials, jobs, _submit_together(mill, jobs), times=1)


def test_a_death_at_a_small_job_in_a_large_chunk_costs_neither_anything(
    mills: list[Mill], matrix: Matrix
) -> None:
    with matrix.trials("SIGKILL at a small job in a large chunk", "I1-I5", short=8, long=80) as trials:
        for number in range(trials.wanted // len(mills)):
            seam = f"{SEAMS[number % len(SEAMS)]}, in between"
            for mill in mills:
                # given processes that are all at a large job, and one that dies at a small one in between
                mill.wait_for_silence()
                mill.plan.set(Rule(seam, "kill", times=1, every=1))
                large = pictures(LARGE)
                jobs, ids = [large], [mill.submit(large, chunk_images=LARGE_CHUNK)]
                while not mill.plan.events("kill"):
                    assert not mill.is_over(ids[0]), f"nobody was served in between, {seam}"
                    jobs.append(pictures(2, first=LARGE + 2 * len(jobs)))
                    ids.append(mill.submit(jobs[-1], chunk_images=LARGE_CHUNK))
                    time.sleep(0.1)

                # then all have their own outcomes, and the death was put down to both
                _judge(mill, trials, jobs, ids, times=1)
                rows = [row for job_id in ids for row in chunk_rows(mill.url, job_id)]
                crashed = sorted(row["images"] for row in rows if row["crashes"])
                assert LARGE_CHUNK in crashed
                assert 2 in crashed or seam.startswith("after COMMIT")
