"""The order of the time limits, and what keeps messages apart and harmless."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.queue import make_app
from jobs.settings import Settings
from labelmill.local.celery_commands import worker_arguments


@pytest.mark.parametrize("lease", [1.0, 60.0, 86_400.0])
def test_a_task_ends_before_its_lease_and_the_lease_before_its_message_comes_again(
    tmp_path: Path, lease: float
) -> None:
    conf = make_app(Settings.load(home=tmp_path, lease_seconds=lease)).conf
    assert conf.task_soft_time_limit < conf.task_time_limit < lease
    assert lease < conf.broker_transport_options["visibility_timeout"]


def test_nothing_is_unpickled_and_no_queue_gets_a_copy_of_anothers_messages(tmp_path: Path) -> None:
    app = make_app(Settings.load(home=tmp_path))
    assert (app.conf.task_serializer, app.conf.accept_content) == ("json", ["json"])
    queues = app.conf.task_queues
    assert len({(each.exchange.name, each.routing_key) for each in queues}) == len(queues) == 3


def test_a_worker_starts_without_what_leaks_keys() -> None:
    arguments = worker_arguments(queue="a queue", processes=2, name="worker")
    assert [word for word in arguments if word.startswith("--without")] == [
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
    ]
