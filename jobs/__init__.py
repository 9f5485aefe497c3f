"""Everything that producer and worker share: jobs, the queue, the object store and the ledger."""
