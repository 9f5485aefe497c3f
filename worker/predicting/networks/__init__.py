"""The networks that a classifier can run: one file per runtime."""
