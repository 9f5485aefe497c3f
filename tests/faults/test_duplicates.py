"""The same wake-up many times, at once and in any order: there is no more work for it."""

from __future__ import annotations

import random

from jobs.messages import CLASSIFY_QUEUE
from jobs.queue import KEY_PREFIX, Publisher
from tests.faults.checker import chunk_rows
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.faults.trials import Matrix

#: How many chunks each job has.
CHUNKS = 6


def deliver(harness: Harness, chance: random.Random) -> None:
    """Deliver each chunk's wake-up 2 to 50 times: as one handed out again, with its id, or sent again."""
    messages: list[bytes] = []
    for _ in range(CHUNKS):
        count = chance.randint(2, 50)
        sent = harness.wake_ups((count + 1) // 2)
        messages += [*sent, *sent[: count - len(sent)]]
    chance.shuffle(messages)
    with harness.redis() as client:
        client.lpush(KEY_PREFIX + CLASSIFY_QUEUE, *messages)


def test_a_message_delivered_many_times_counts_once(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("each message 2 to 50 times, shuffled", "I2, I5", short=20, long=300) as trials:
        seed = random.randrange(2**32)
        chance = random.Random(seed)
        images = pictures(20 * CHUNKS)
        for _ in range(trials.wanted // len(harnesses)):
            # given a job, when each chunk's message comes 2 to 50 times, all mixed
            jobs = []
            for harness in harnesses:
                publisher = Publisher(harness.app)
                publisher.unavailable = True
                jobs.append(harness.submit(images, chunk_images=20, publisher=publisher))
                deliver(harness, chance)

            # then each chunk was worked on once, and all messages are taken. A worker takes longer for them
            # than for the job, so they would pile up over the trials
            for harness, job in zip(harnesses, jobs, strict=True):
                trials.ran(1, harness.judge(job, images))
                harness.wait_for_silence()
                attempts = [chunk["attempts"] for chunk in chunk_rows(harness.url, job)]
                assert attempts == [1] * CHUNKS, f"seed {seed}"
