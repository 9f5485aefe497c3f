"""The ledger: the SQL database that is the only source of truth.

`database` opens it; the other modules are its statements, by the moment of a chunk's life: `submission`
(a producer adds it), `claims` (a worker takes it, or lets it go), `results` (outcomes are recorded),
`control` (people stop and pause its job), `maintenance` (the reconciler, and the purge of finished jobs).
`queries` is what people look at, `models`, `runs` and `corrections` what is learnt, `health` and `shadows`
how models do on images as they come, `counters`, `metrics` and `workers` what is monitored.

Statements take a Connection, so that the caller decides what belongs into one transaction.
"""

from jobs.ledger.database import Ledger

__all__ = ["Ledger"]
