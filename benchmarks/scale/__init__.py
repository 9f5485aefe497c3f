"""What a billion images per day cost: `python -m benchmarks.scale`, PostgreSQL only.

Each part measures one limit, through the ledger's own functions: rows (`rows`), waiting chunks (`backlog`),
messages and requests (`traffic`). `benchmarks.retention` measures removal.
docs/explanation/performance.md and docs/how-to/scale.md use the figures.
"""
