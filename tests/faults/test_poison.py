"""An image that takes its process with it: it ends alone, and its neighbours finish."""

from __future__ import annotations

from tests.faults.checker import attempts_are_bounded
from tests.faults.harness import Harness
from tests.faults.pictures import Picture, pictures, poisoned
from tests.faults.trials import Matrix

CHUNK = 300

#: What the image does to its process, and what must become of it.
POISONS = {
    "segfault": "quarantined",
    "oom-kill": "quarantined",
    "memory": "quarantined",
    "bug": "quarantined",
    "hang": "timeout",
    "slow": "timeout",
}


def test_an_image_that_kills_its_process_costs_its_299_neighbours_nothing(
    harnesses: list[Harness], matrix: Matrix
) -> None:
    with matrix.trials("a poisonous image in a chunk of 300", "I3-I5", short=12, long=60) as trials:
        for number in range(trials.wanted // (len(harnesses) * len(POISONS))):
            # given chunks of 300 images with one poisonous image in each: a crash in C, the kernel out of
            # memory, MemoryError, a mistake of the program, a hang in C, a decoder that never ends
            images: list[Picture] = []
            for place, (poison, answer) in enumerate(POISONS.items()):
                chunk = pictures(CHUNK, first=place * CHUNK)
                # first, last and in between
                at = (place * 61 + number * 97) % CHUNK if place + number else 0
                chunk[at] = poisoned(chunk[at], poison, answer=answer)
                images += chunk

            # when it is classified
            jobs = [harness.submit(images, chunk_images=CHUNK) for harness in harnesses]

            # then in each chunk 299 images have their label and one its error code
            for harness, job in zip(harnesses, jobs, strict=True):
                trials.ran(len(POISONS), harness.judge(job, images, seconds=180))
                assert attempts_are_bounded(harness.url, job)
