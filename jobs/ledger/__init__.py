"""The ledger: the SQL database that is the only source of truth.

`database` opens it; the other modules hold its statements, along a chunk's life: `submission` (a producer
adds it), `claims` (a worker takes it, or releases it), `results` (outcomes are recorded), `control` (people
stop and pause its job), `maintenance` (the reconciler, and the purge of finished jobs). `queries` is for
people; `models`, `runs` and `corrections` are about training; `health` and `shadows` show how models do on
new images; `counters`, `metrics` and `workers` are for monitoring.

Statements take a Connection, so that the caller decides what belongs in one transaction.
"""

from jobs.ledger.database import Ledger

__all__ = ["Ledger"]
