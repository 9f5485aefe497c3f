"""The ledger's migrations, run by `labelmill db upgrade`."""

#: A migration that cannot get its lock soon fails, because workers' queries would queue behind it.
LOCK_TIMEOUT = "5s"
