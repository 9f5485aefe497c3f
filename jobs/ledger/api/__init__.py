"""The HTTP API in the ledger: keys, files, batches, and webhooks."""
