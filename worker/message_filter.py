"""The message filter: drops items on our queues that are not our messages, before Celery sees them.

Without it, an item that is not JSON would end the worker. One whose task name is a list would end it, return
to the queue unacknowledged, and end the next worker, for ever. A message with its own time limit would
outlive its lease. So a message is rebuilt from only five parts: the task, its arguments, its id, its tag, and
whether it was redelivered from a lost worker.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from typing import Any, Final

from jobs.messages import (
    CLASSIFY_TASK,
    QUEUES,
    RETRAIN_TASK,
    WEBHOOK_TASK,
    MessageError,
    check_wake_up,
    run_id_of,
)

logger = logging.getLogger(__name__)

#: Our messages have about 1,000 bytes, and none of their parts can grow.
MAX_MESSAGE_BYTES: Final = 16 * 1024

#: A task's id and its delivery tag: both are UUIDs.
_ID: Final = re.compile(r"[\w-]{1,64}", re.ASCII)

_dropped = 0


def log_dropped(reason: str) -> None:
    """Count and log a dropped message, but not its content, which anybody may have written."""
    global _dropped
    _dropped += 1
    logger.warning("dropped a message that is not ours: %s (number %d of this process)", reason, _dropped)


def rebuild_or_drop(item: bytes) -> bytes | None:
    """Return the rebuilt message, or log a line and return None if it is not ours."""
    try:
        return rebuild(item)
    except MessageError as error:
        log_dropped(str(error))
        return None


def rebuild(item: bytes) -> bytes:
    """Return the message, rebuilt from its five parts. Raises MessageError if it is not ours."""
    if len(item) > MAX_MESSAGE_BYTES:
        raise MessageError(f"it has {len(item):,} bytes")
    match _parse(item, "it is not JSON"):
        case {
            "body": str(body),
            "content-type": "application/json",
            "headers": {"task": str(task), "id": str(task_id)},
            "properties": {"delivery_info": dict(delivery), "delivery_tag": str(tag)},
        } if _ID.fullmatch(task_id) and _ID.fullmatch(tag):
            pass
        case _:
            raise MessageError("it is not a Celery message in JSON")
    content = json.dumps([_arguments(task, body), {}, {}]).encode()
    redelivered = {"redelivered": True} if delivery.get("redelivered") is True else {}
    ours = {
        "body": base64.b64encode(content).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": task_id, "root_id": task_id, **redelivered},
        "properties": {
            "body_encoding": "base64",
            "correlation_id": task_id,
            "delivery_info": {"exchange": "", "routing_key": QUEUES[task], **redelivered},
            "delivery_mode": 2,
            "delivery_tag": tag,
            "priority": 0,
        },
    }
    return json.dumps(ours).encode()


def _arguments(task: str, body: str) -> list[str]:
    """Return the task's arguments.

    Raises MessageError if the task does not take them, or if it has callbacks or following tasks.
    """
    try:
        decoded = base64.b64decode(body, validate=True)
    except ValueError:
        raise MessageError("its body is not base64") from None
    match _parse(decoded, "its body is not JSON"):
        case [list(args), dict(kwargs), dict(embedded)] if not any(embedded.values()):
            pass
        case _:
            raise MessageError("its body is not arguments alone")
    if task in (CLASSIFY_TASK, WEBHOOK_TASK):
        check_wake_up(args, kwargs)
        return []
    if task == RETRAIN_TASK:
        return [run_id_of(args, kwargs)]
    raise MessageError("it names another task")


def _parse(data: bytes, reason: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise MessageError(reason) from None
