"""What all benchmarks share: their setup, the running pipeline, what they watch, and how they report."""
