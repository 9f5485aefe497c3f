"""What a fleet costs that classifies a billion images a day: `python -m benchmarks.scale`, PostgreSQL only.

Each part takes one limit by itself, through the ledger's own functions: rows (`rows`), what waits
(`backlog`), messages and requests (`traffic`), and what is removed (`retention`).
docs/explanation/performance.md and docs/how-to/scale.md use the figures.
"""
