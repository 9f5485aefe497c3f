"""`labelmill`, whose HTTP API continues the batches of a killed process after seconds instead of a minute.

Its intake processes import this module, too: Python's `spawn` begins with the main module of their parent.
"""

from __future__ import annotations

import jobs.ledger.batches
import producer.heartbeat
from labelmill.cli import main
from tests.faults.harness import LEASE_SECONDS

jobs.ledger.batches.INTAKE_LEASE_SECONDS = LEASE_SECONDS  # type: ignore[misc]
producer.heartbeat.HEARTBEAT_SECONDS = LEASE_SECONDS / 5  # type: ignore[misc]

if __name__ == "__main__":
    main()
