"""Benchmarks behind the performance claims: `make bench`. docs/explanation/performance.md explains them."""
