"""An image that takes its process with it: it ends alone, and its neighbours finish."""

from __future__ import annotations

from tests.faults.checker import attempts_are_bounded, chunk_rows
from tests.faults.harness import Harness
from tests.faults.pictures import Picture, pictures, poisoned
from tests.faults.plan import Rule
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


def test_a_death_during_a_cut_cuts_once(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("SIGKILL during a cut", "I1-I5", short=6, long=50) as trials:
        dead = 0
        while dead < trials.wanted:
            # given a poisonous image, and a process that dies with the halves written and not committed
            images = pictures(24)
            images[7] = poisoned(images[7], "segfault", answer="quarantined")
            jobs = []
            for harness in harnesses:
                harness.plan.set(Rule("cut", "kill", times=3, every=1))
                jobs.append(harness.submit(images, chunk_images=24))

            # then the halves are there once
            for harness, job in zip(harnesses, jobs, strict=True):
                verdict = harness.judge(job, images)
                times = len(harness.plan.events("kill"))
                assert times
                trials.ran(times, verdict)
                dead += times
                # and the image that was alone in the end is the poisonous one
                alone = [chunk for chunk in chunk_rows(harness.url, job) if chunk["crashes"] >= 3]
                assert [(chunk["first_index"], chunk["images"]) for chunk in alone] == [(7, 1)]


def test_two_poisonous_images_side_by_side_cost_nobody_else(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("two poisonous images side by side", "I3-I5", short=2, long=10) as trials:
        for _ in range(trials.wanted // len(harnesses)):
            # given a chunk with two of them next to each other
            images = pictures(10)
            for at in (4, 5):
                images[at] = poisoned(images[at], "segfault", answer="quarantined")

            # when it is classified, then only the two have no label
            jobs = [harness.submit(images, chunk_images=10) for harness in harnesses]
            for harness, job in zip(harnesses, jobs, strict=True):
                trials.ran(1, harness.judge(job, images))
