"""The ledger: the SQL database that is the only source of truth.

`database` opens it; the other modules are its statements by the moment of a chunk's life: `intake` (a
producer adds), `claims` (a worker takes and gives back), `gathering` (it takes small ones along), `parts` (a
part becomes a chunk of its own), `isolation` (it crashed), `outcomes` (results come in), `pausing` (people
hold it up), `progress` (people look), `naming` (what they type for an id), `upkeep` (the reconciler's view),
`diagnosis` (the doctor's), `settling`, `retries` and `retention` (its job has finished), `models`, `runs`,
`evaluations` and `promotions` (what was learnt), `corrections`, `health` and `shadows` (how models do on
images as they come), `counters`, `backlog` and `workers` (what is told to whoever watches all of it).

Statements take a Connection, so that whoever calls them says what belongs into one transaction.
"""

from jobs.ledger.database import Ledger

__all__ = ["Ledger"]
