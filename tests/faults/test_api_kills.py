"""kill -9 of the HTTP API at a random instant: what it has answered is there, and nothing is there twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.ids import new_id
from tests.console import until
from tests.faults.api import Api, archive_of
from tests.faults.checker import Verdict
from tests.faults.harness import HEALED_SECONDS
from tests.faults.pictures import pictures
from tests.faults.trials import Matrix

#: An upload takes about so long: its archive is sent in pieces of 64 KiB, with pauses.
_UPLOAD_SECONDS = 0.5
_PIECES = 40

#: A batch is created within this time.
_CREATE_SECONDS = 0.04


def _uploading(api: Api, chance: random.Random, _most: int) -> tuple[int, Verdict]:
    """The server is killed while it receives a file; the user sends it again."""
    images = pictures(50)
    archive, name = archive_of(images, padding=_PIECES * 64 * 1024), new_id()
    with ThreadPoolExecutor(1) as user:
        uploading = user.submit(api.upload, archive, pause=_UPLOAD_SECONDS / _PIECES)
        time.sleep(chance.uniform(0, 1.2 * _UPLOAD_SECONDS))
        is_met = not uploading.done()
        api.kill()
        file_id = uploading.result()
    verdict = api.judge(name, api.submit(file_id, name), images)
    api.check_files(file_id)
    return is_met, verdict


def _answering(api: Api, chance: random.Random, _most: int) -> tuple[int, Verdict]:
    """The server is killed while it creates a batch; the user repeats the request."""
    images, name = pictures(50), new_id()
    file_id = api.upload(archive_of(images))
    with ThreadPoolExecutor(1) as user:
        creating = user.submit(api.submit, file_id, name)
        if chance.randrange(2):
            time.sleep(chance.uniform(0, _CREATE_SECONDS))
        else:  # committed, and on the point of being answered
            while not (creating.done() or api.named(name)):
                pass
        is_met = not creating.done()
        api.kill()
        batch_id = creating.result()
    return is_met, api.judge(name, batch_id, images)


def _unpacking(api: Api, chance: random.Random, most: int) -> tuple[int, Verdict]:
    """The server, or the process that unpacks the archive, is killed again and again."""
    images, name = pictures(400), new_id()
    batch_id = api.submit(api.upload(archive_of(images)), name)
    killed, seen = 0, -1
    while killed < most:
        # A batch that gets on by no image in five attempts fails: one of its images may be at fault.
        until(
            lambda seen=seen: api.taken_in(batch_id) > seen,
            "more images are taken in",
            seconds=HEALED_SECONDS,
        )
        time.sleep(chance.uniform(0, 0.4))
        if (seen := api.taken_in(batch_id)) == len(images):
            break
        if chance.randrange(2):
            api.kill()
            killed += 1
        else:
            killed += api.kill_intake(batch_id)
    return killed, api.judge(name, batch_id, images)


@pytest.mark.parametrize(
    "moment", [_uploading, _answering, _unpacking], ids=lambda moment: moment.__name__[1:]
)
def test_killing_the_api_loses_nothing_that_it_has_answered(
    apis: list[Api], matrix: Matrix, moment: Callable[[Api, random.Random, int], tuple[int, Verdict]]
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    what = f"SIGKILL of the API while {moment.__name__[1:]}"
    with matrix.trials(what, "I1-I3", short=4, long=50) as trials, ThreadPoolExecutor() as at_once:
        killed = 0
        while killed < trials.wanted:
            most = (trials.wanted - killed) // 2 + 1
            each = [at_once.submit(moment, api, random.Random(chance.random()), most) for api in apis]
            for times, verdict in [future.result() for future in each]:
                trials.ran(times, verdict)
                killed += times
        for api in apis:
            api.check_sessions()
