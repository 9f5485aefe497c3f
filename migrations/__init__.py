"""The ledger's migrations, run by `labelmill db upgrade`."""
