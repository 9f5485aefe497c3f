"""A simulation: workers that take chunk after chunk while very many wait, and how many messages they get.

A chunk is not rung for again within a few seconds. Where messages wait for longer, the reconciler, who knows
only how many wait and not which, rings for the oldest chunks once more.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final
from unittest.mock import patch

import redis

from benchmarks.scale.ground import Ground
from jobs.ledger import upkeep
from jobs.ledger.claims import claim_chunk
from jobs.messages import Message
from labelmill.console import say
from worker.reconcile import Reconciler

#: Chunks that are done from one look of the reconciler to the next.
_BETWEEN_LOOKS: Final = 100

_LEASE_SECONDS: Final = 600.0


def count_doubles(
    where: Ground, client: redis.Redis, queue: str, reconciler: Reconciler, *, looks: int
) -> dict[str, Any]:
    """How many messages named a chunk, and how many one that somebody had by then; and for how many chunks
    no message was there.
    """
    taken = doubles = missing = 0
    # As if messages always waited for longer: with a thousand of them they do, below 200 chunks a second.
    with patch.object(upkeep, "QUIET_SECONDS", 0.0):
        for _ in range(looks):
            reconciler.tick()
            wanted = taken + _BETWEEN_LOOKS
            while taken < wanted:
                message: Any = client.rpop(queue)
                if message is None:
                    missing += wanted - taken
                    break
                if _claim(where, message):
                    taken += 1
                else:
                    doubles += 1
    found = {
        "chunks": taken,
        "doubles": doubles,
        "messages_a_chunk": round((taken + doubles) / taken, 2),
        "chunks_without_message": missing,
    }
    say(f"doubles: {found}")
    return found


def _claim(where: Ground, message: bytes) -> bool:
    args, kwargs, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
    chunk_id = Message.decode(args, kwargs).id
    with where.ledger.transaction() as connection:
        claim = claim_chunk(connection, chunk_id, lease_seconds=_LEASE_SECONDS, owner="benchmark")
    return claim is not None
