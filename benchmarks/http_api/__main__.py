"""The three measurements as commands."""

from __future__ import annotations

import typer

from benchmarks.http_api import latency, million, small

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    for module in (million, small, latency):
        app.command(module.__name__.rpartition(".")[2])(module.main)
    app()
