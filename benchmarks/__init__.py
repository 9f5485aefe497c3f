"""What the performance claims are measured with: `make bench`, told about in docs/performance.md."""
