"""Learning in the ledger: datasets, corrections, training runs, models, the gate, and schedules."""
