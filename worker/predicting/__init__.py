"""From a chunk's bytes to its outcomes: decode, predict on full batches."""
