"""What is on the queue and not ours is dropped, and the worker lives."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import uuid
from pathlib import Path
from typing import Any

import redis

from jobs.ids import new_id
from jobs.queue import CLASSIFY_QUEUE, CLASSIFY_TASK, KEY_PREFIX
from jobs.settings import Settings
from tests.console import Home, until


class _Exploit:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_worker_drops_what_is_not_ours_and_lives(stack: Home, few_digits: Path, tmp_path: Path) -> None:
    # given a queue with junk in it: unknown chunks, wrong arguments, other tasks, a pickle, a huge message
    trap = tmp_path / "unpickled"
    settings = Settings.load(home=stack.path)
    with contextlib.closing(redis.Redis(unix_socket_path=str(settings.broker_socket))) as client:
        key = KEY_PREFIX + CLASSIFY_QUEUE
        for message in [
            _message(args=[new_id()]),
            _message(args=[]),
            _message(args=["../../etc/passwd"]),
            _message(args=[new_id(), new_id()]),
            _message(args=[{"chunk": 1}], kwargs={"x": 1}),
            _message(args=["x" * 5_000_000]),
            _message(task="os.system", args=["true"]),
            _message(body=pickle.dumps(_Exploit(trap)), content_type="application/x-python-serialize"),
            _message(body=b"no json", content_type="application/json"),
        ]:
            client.lpush(key, message)

        # when a job comes after it
        done = stack.run("submit", few_digits, "--watch")

        # then the job is done by the same worker, the junk is gone, and nothing was unpickled
        assert done.returncode == 0, done.stderr
        until(lambda: client.llen(key) == 0, "the junk is gone", seconds=30)
    assert not trap.exists()


def _message(
    *,
    task: str = CLASSIFY_TASK,
    args: list[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    body: bytes | None = None,
    content_type: str = "application/json",
) -> str:
    """A message as Celery's protocol 2 has it in Redis."""
    if body is None:
        body = json.dumps([args or [], kwargs or {}, {}]).encode()
    task_id = str(uuid.uuid4())
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8" if content_type == "application/json" else "binary",
            "content-type": content_type,
            "headers": {
                "lang": "py",
                "task": task,
                "id": task_id,
                "root_id": task_id,
                "argsrepr": "",
                "kwargsrepr": "",
            },
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": CLASSIFY_QUEUE},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )
