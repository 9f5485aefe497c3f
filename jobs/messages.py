"""The messages: wake-ups, which name no chunk or webhook, and a training run's message, which names the run.

The ledger decides what is next (`jobs.ledger.jobs.claims`, `jobs.ledger.learning.runs`,
`jobs.ledger.api.deliveries`), so a lost, duplicate or late message costs only time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobs.errors import LabelmillError
from jobs.ids import is_id

#: Training has a queue and a worker of its own: it takes minutes, and must not hold up images.
CLASSIFY_QUEUE: Final = "labelmill.classify"
RETRAIN_QUEUE: Final = "labelmill.retrain"
#: Webhooks have a queue of their own, too: their receivers may be slow.
WEBHOOK_QUEUE: Final = "labelmill.webhooks"

CLASSIFY_TASK: Final = "labelmill.classify"
RETRAIN_TASK: Final = "labelmill.retrain"
WEBHOOK_TASK: Final = "labelmill.webhooks"

#: The queue of each task.
QUEUES: Final = {CLASSIFY_TASK: CLASSIFY_QUEUE, RETRAIN_TASK: RETRAIN_QUEUE, WEBHOOK_TASK: WEBHOOK_QUEUE}


class MessageError(LabelmillError):
    """A message on our queue is not one of ours."""


def check_wake_up(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check the arguments of a wake-up, which has none. Raises MessageError."""
    if args or kwargs:
        raise MessageError("it is not a wake-up")


def run_id_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the id of the training run that a message names. Raises MessageError."""
    if kwargs or len(args) != 1 or not is_id(args[0]):
        raise MessageError("it names no training run")
    run_id: str = args[0]
    return run_id
