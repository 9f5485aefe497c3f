"""What is on the queue and not ours is dropped, and the worker lives."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import uuid
from pathlib import Path
from typing import Any

from jobs.ids import new_id
from jobs.messages import CLASSIFY_QUEUE, CLASSIFY_TASK, RETRAIN_TASK
from jobs.queue import KEY_PREFIX
from tests.console import until
from tests.faults.harness import Harness
from tests.faults.pictures import pictures


class _Exploit:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def _junk(trap: Path) -> list[str | bytes]:
    """What a stranger may have put on our queue; left to kombu and Celery, half of it ends the worker."""
    return [
        # no message at all
        "garbage", b"\xff\xfe\x00", "", "null", "3", '"x"', "[]", "{}", "[" * 10_000,
        # half of a message
        _message(headers=None), _message(headers={}), _message(headers="x"), _message(headers={"task": 1}),
        _message(properties=None), _message(properties={}), _message(properties={"delivery_tag": "x"}),
        _message(body=None), _message(body=3), _message(body="no base64!"),
        _message(body=_encoded(b"no json")), _message(body=_encoded(b"{}")),
        _message(body=_encoded(b"[[],{}]")), _message(body=_encoded(b"[{},[],{}]")),
        # not JSON
        _message(body=_encoded(pickle.dumps(_Exploit(trap))), content_type="application/x-python-serialize"),
        _message(body=_encoded(b"[]"), content_type="application/x-yaml"),
        # another program's
        _message(task="os.system", args=["true"]), _message(task=["labelmill.classify"]), _message(task={}),
        # ours by name, and not by what is in it
        _message(args=["../../etc/passwd"]), _message(args=[new_id()]),
        _message(args=[{"chunk": 1}]), _message(kwargs={"x": 1}),
        _message(args=["x" * 50_000_000]),
        _message(embedded={"chain": [{"task": "os.system", "args": ["true"]}]}),
        _message(embedded={"errbacks": [{"task": "os.system", "args": ["true"]}]}),
        _message(extra={"id": "two\nlines"}), _message(task=RETRAIN_TASK, args=["/etc/passwd"]),
    ]  # fmt: skip


def _wake_ups() -> list[str]:
    """Wake-ups with something that would break Celery or its time limit."""
    return [
        _message(args=[]), _message(extra={"eta": "2099-01-01T00:00:00+00:00"}),
        _message(extra={"expires": "yesterday"}), _message(extra={"stamped_headers": 3}),
        _message(extra={"timelimit": [0, 0]}), _message(extra={"compression": "application/x-gzip"}),
    ]  # fmt: skip


def test_a_worker_drops_what_is_not_ours_and_lives(short_folder: Path, tmp_path: Path) -> None:
    # given a worker at rest
    trap, images = tmp_path / "unpickled", pictures(50)
    with Harness(short_folder / "home") as harness, harness.redis() as client:
        [worker] = harness.workers
        first = harness.judge(harness.submit(images, chunk_images=50), images)
        assert first.clean, first
        processes = sorted([worker.pid, *worker.children()])
        memory = _resident_bytes(worker.pid)

        # when there is junk on its queue, a few 50 MB of it, a job ahead of it, and one behind it
        junk = _junk(trap) + ["x" * 50_000_000] * 3
        key = KEY_PREFIX + CLASSIFY_QUEUE
        for message in [*junk, *_wake_ups()]:
            client.lpush(key, message)
        ahead = harness.submit(images, chunk_images=50)
        until(lambda: client.llen(key) == 0, "the junk is gone", seconds=30)
        behind = harness.submit(images, chunk_images=50)

        # then both are done by the same processes, nothing is left in the broker, and none was unpickled
        for job in (ahead, behind):
            verdict = harness.judge(job, images)
            assert verdict.clean, verdict
        assert sorted([worker.pid, *worker.children()]) == processes
        until(lambda: client.hlen(KEY_PREFIX + "unacked") == 0, "nothing is held", seconds=30)
        assert client.llen(key) == 0
        assert not trap.exists()

        # and each was counted, in a line, without a word of what was in it
        text = (harness.faults / "worker0.log").read_text()
        told = re.findall(
            r"/(\w+)\S+ dropped a message that is not ours: .* \(number (\d+) of this process\)$", text, re.M
        )
        assert len(told) == len(junk)
        assert [int(number) for _, number in told] == list(range(1, len(junk) + 1))
        assert "Traceback" not in text
        assert "passwd" not in text

        # and the parent, who took it from the broker, keeps none of it in memory
        assert _resident_bytes(worker.pid) < memory + 40_000_000


def _resident_bytes(pid: int) -> int:
    """How much memory the process has."""
    return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _encoded(body: bytes) -> str:
    return base64.b64encode(body).decode()


def _message(
    *,
    task: object = CLASSIFY_TASK,
    args: list[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    embedded: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    content_type: str = "application/json",
    **changes: Any,
) -> str:
    """A message as Celery's protocol 2 has it in Redis, or one that is changed in places."""
    task_id = str(uuid.uuid4())
    message = {
        "body": _encoded(json.dumps([args or [], kwargs or {}, embedded or {}]).encode()),
        "content-encoding": "utf-8" if content_type == "application/json" else "binary",
        "content-type": content_type,
        "headers": {
            "lang": "py",
            "task": task,
            "id": task_id,
            "root_id": task_id,
            "argsrepr": "",
            "kwargsrepr": "",
        }
        | (extra or {}),
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": CLASSIFY_QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(message | changes)
