"""The same wake-up many times, at once and in any order: there is no more work for it."""

from __future__ import annotations

import random
from collections.abc import Iterable

from jobs.messages import CLASSIFY_QUEUE
from jobs.queue import KEY_PREFIX, Publisher
from tests.faults.checker import chunk_rows
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.faults.trials import Matrix


class _Postman(Publisher):
    """Keeps the wake-ups of a job, to deliver them all together."""

    def __init__(self, harness: Harness) -> None:
        super().__init__(harness.app)
        self._mill = harness
        self.kept = 0

    def wake_up(self, count: int = 1) -> int:
        self.kept += count
        return 0

    def deliver(self, times: Iterable[int], chance: random.Random) -> None:
        """Each wake-up so many times: as one that was handed out again, with the same id, or sent again."""
        messages = [message for count in times for message in self._copies(count)]
        chance.shuffle(messages)
        with self._mill.redis() as client:
            client.lpush(KEY_PREFIX + CLASSIFY_QUEUE, *messages)

    def _copies(self, count: int) -> list[bytes]:
        sent = self._mill.wake_ups((count + 1) // 2)
        return [*sent, *sent[: count - len(sent)]]


def test_a_message_delivered_many_times_counts_once(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("each message 2 to 50 times, shuffled", "I2, I5", short=20, long=300) as trials:
        seed = random.randrange(2**32)
        chance = random.Random(seed)
        images = pictures(120)
        for _ in range(trials.wanted // len(harnesses)):
            # given a job of six chunks, when each one's message comes 2 to 50 times, all mixed
            jobs = []
            for harness in harnesses:
                postman = _Postman(harness)
                jobs.append(harness.submit(images, chunk_images=20, publisher=postman))
                postman.deliver([chance.randint(2, 50) for _ in range(postman.kept)], chance)

            # then each chunk was worked on once, and all messages are taken. A worker takes longer for them
            # than for the job, so they would pile up over the trials
            for harness, job in zip(harnesses, jobs, strict=True):
                trials.ran(1, harness.judge(job, images))
                harness.wait_for_silence()
                assert [chunk["attempts"] for chunk in chunk_rows(harness.url, job)] == [1] * 6, (
                    f"seed {seed}"
                )
