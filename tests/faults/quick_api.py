"""`labelmill`, whose HTTP API continues the batches of a killed process after seconds instead of a minute.

Its intake processes import this module, too: Python's `spawn` begins with the main module of their parent.
"""

from __future__ import annotations

import jobs.ledger.api.batches
import producer.heartbeat
from jobs.settings import Settings
from labelmill.cli import main

lease_seconds = Settings.load().lease_seconds  # the harness's
jobs.ledger.api.batches.INTAKE_LEASE_SECONDS = lease_seconds  # type: ignore[misc]
producer.heartbeat.HEARTBEAT_SECONDS = lease_seconds / 5  # type: ignore[misc]

if __name__ == "__main__":
    main()
