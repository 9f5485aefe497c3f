"""The doorbell: a message that names one chunk, or one training run, and nothing else.

What it is about, whose turn it is and what became of it is in the ledger (`jobs.ledger.claims`,
`jobs.ledger.runs`); a message that is lost, doubled or late therefore costs nothing but time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from jobs.errors import LabelmillError
from jobs.ids import is_id

#: Training has a queue and a worker of its own: it takes minutes, and must not hold up images.
CLASSIFY_QUEUE: Final = "labelmill.classify"
RETRAIN_QUEUE: Final = "labelmill.retrain"


class MessageError(LabelmillError):
    """A message on our queue is not one of ours."""


@dataclass(frozen=True, slots=True)
class Message:
    """Please look at this. Which kind of thing it is, the task says that the message is for."""

    id: str

    def encode(self) -> tuple[str]:
        """As the positional arguments of a Celery task."""
        return (self.id,)

    @classmethod
    def decode(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Self:
        """From a Celery task's arguments. Raises MessageError on anything but one id."""
        if kwargs or len(args) != 1 or not is_id(args[0]):
            raise MessageError("it does not name one thing of ours")
        return cls(args[0])
