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


def _uploading(api: Api, _most: int) -> tuple[int, Verdict]:
    """The server is killed while it receives a file; the user sends it again."""
    images = pictures(50)
    archive, name = archive_of(images, padding=_PIECES * 64 * 1024), new_id()
    until(api.answers, "the API answers", seconds=HEALED_SECONDS)
    with ThreadPoolExecutor(1) as user:
        uploading = user.submit(api.upload, archive, pause=_UPLOAD_SECONDS / _PIECES)
        time.sleep(random.uniform(0, 1.2 * _UPLOAD_SECONDS))
        is_met = not uploading.done()
        api.kill()
        file_id = uploading.result()
    verdict = api.judge(name, api.submit(file_id, name), images)
    api.check_files(file_id)
    return is_met, verdict


def _answering(api: Api, _most: int) -> tuple[int, Verdict]:
    """The server is killed while it creates a batch; the user repeats the request."""
    images, name = pictures(50), new_id()
    file_id = api.upload(archive_of(images))
    with ThreadPoolExecutor(1) as user:
        creating = user.submit(api.submit, file_id, name)
        if random.randrange(2):
            time.sleep(random.uniform(0, _CREATE_SECONDS))
        else:  # committed, and on the point of being answered
            while not (creating.done() or api.named(name)):
                pass
        is_met = not creating.done()
        api.kill()
        batch_id = creating.result()
    return is_met, api.judge(name, batch_id, images)


def _unpacking(api: Api, most: int) -> tuple[int, Verdict]:
    """The server, or the process that unpacks the archive, is killed again and again."""
    images, name = pictures(400), new_id()
    batch_id = api.submit(api.upload(archive_of(images)), name)
    killed, seen = 0, -1
    while killed < most:
        # A batch that gets on by no image in five attempts fails: one of its images may be at fault.
        until(
            lambda seen=seen: api.taken_in(batch_id) > seen and api.answers(),
            "more images are taken in, and the API answers",
            seconds=HEALED_SECONDS,
        )
        time.sleep(random.uniform(0, 0.4))
        if (seen := api.taken_in(batch_id)) == len(images):
            break
        if random.randrange(2):
            api.kill()
            killed += 1
        else:
            killed += api.kill_intake(batch_id)
    return killed, api.judge(name, batch_id, images)


@pytest.mark.parametrize("moment", [_uploading, _answering, _unpacking], ids=["upload", "answer", "unpack"])
def test_a_killed_api_loses_nothing_that_it_has_taken(
    apis: list[Api], matrix: Matrix, moment: Callable[[Api, int], tuple[int, Verdict]]
) -> None:
    what = f"SIGKILL of the API while {moment.__name__[1:]}"
    with matrix.trials(what, "I1-I3", short=4, long=50) as trials, ThreadPoolExecutor() as at_once:
        killed = 0
        while killed < trials.wanted:
            most = (trials.wanted - killed) // 2 + 1
            for times, verdict in at_once.map(moment, apis, [most, most]):
                trials.ran(times, verdict)
                killed += times
        for api in apis:
            api.check_sessions()
