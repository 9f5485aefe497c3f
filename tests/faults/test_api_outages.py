"""The database of the HTTP API and of workers crashes: the API answers 503, and nothing is lost."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from jobs.ids import new_id
from tests.console import until
from tests.faults.api import Api, archive_of
from tests.faults.harness import HEALED_SECONDS
from tests.faults.pictures import Picture, pictures
from tests.faults.servers import FaultyPostgresql
from tests.faults.trials import Matrix

#: People who use the API at the same time.
USERS = 3


def test_restarting_postgresql_loses_nothing_that_was_answered(
    postgresql_api: Api, faulty_postgresql: FaultyPostgresql, matrix: Matrix
) -> None:
    with matrix.trials("PostgreSQL stopped immediately under the API", "I1-I3", short=3, long=50) as trials:
        api, restarts = postgresql_api, 0
        until(api.answers, "the API answers")
        process = api.process.pid
        while restarts < trials.wanted:
            # given people who upload and submit all the time
            over = threading.Event()
            with ThreadPoolExecutor() as at_once:
                users = [at_once.submit(_use, api, over) for _ in range(USERS)]
                try:
                    # when the server crashes and comes back, again and again
                    for _ in range(min(5, trials.wanted - restarts)):
                        time.sleep(random.uniform(0.2, 1.5))
                        _restart(api, faulty_postgresql)
                        restarts += 1
                        trials.ran(1)
                finally:
                    over.set()
                accepted = [batch for user in users for batch in user.result()]
            api.harness.ledger.engine.dispose()  # ours broke as well

            # then every batch that was accepted ends, and there is no other
            assert len(accepted) >= USERS
            for name, batch_id, images in accepted:
                trials.ran(0, api.judge(name, batch_id, images))
        api.check_sessions()
        assert api.process.pid == process


def _use(api: Api, over: threading.Event) -> list[tuple[str, str, list[Picture]]]:
    """Submit batches until it is over. Return their names, ids and images."""
    accepted = []
    while not over.is_set():
        images, name = pictures(30, first=random.randrange(1_000)), new_id()
        accepted.append((name, api.submit(api.upload(archive_of(images)), name), images))
        over.wait(0.5)
    return accepted


def _restart(api: Api, server: FaultyPostgresql) -> None:
    """Stop PostgreSQL, see that the API says so, and start it again until the API answers."""
    try:
        server.stop()
        assert api.status() == 503
        time.sleep(random.uniform(0.0, 1.0))
    finally:
        server.start()  # other tests have it, too
    until(api.answers, "the API answers again", seconds=HEALED_SECONDS)
