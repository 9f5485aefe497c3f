"""Metrics as Prometheus reads them, and the exporter as a process."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from jobs.settings import Settings
from tests.console import LABELMILL, stop

Labels = tuple[tuple[str, str], ...]


class Scrape:
    """What one scrape said."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self._values = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __getitem__(self, name: str) -> float:
        """Of a metric without labels."""
        return self._values[f"labelmill_{name}", ()]

    def __contains__(self, name: str) -> bool:
        return any(each == f"labelmill_{name}" for each, _ in self._values)

    def by(self, name: str) -> dict[str, float]:
        """Of a metric with one label: by its values, without the zeros."""
        return {
            labels[0][1]: value
            for (each, labels), value in self._values.items()
            if each == f"labelmill_{name}" and value
        }

    def samples(self, name: str) -> list[Sample]:
        """All of a metric."""
        return [
            sample
            for family in self.families
            for sample in family.samples
            if sample.name == f"labelmill_{name}"
        ]

    def labels(self, name: str) -> dict[str, str]:
        """Of a metric that is there once."""
        [found] = [labels for each, labels in self._values if each == f"labelmill_{name}"]
        return dict(found)


def scrape(port: int) -> Scrape:
    """Asks the exporter on this machine."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert answer.status == 200
        return Scrape(answer.read().decode())


def collected(collector: Collector) -> Scrape:
    """The same without a server."""
    registry = CollectorRegistry()
    registry.register(collector)
    return Scrape(generate_latest(registry).decode())


@contextlib.contextmanager
def exporter(settings: Settings) -> Iterator[int]:
    """`labelmill metrics` as a process; gives its port."""
    with exporter_at(settings, "127.0.0.1:0") as url:
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/metrics", url)
        assert found is not None, url
        yield int(found[1])


@contextlib.contextmanager
def exporter_at(settings: Settings, listen: str) -> Iterator[str]:
    """`labelmill metrics` as a process; gives the URL that it says."""
    process = subprocess.Popen(
        [LABELMILL, "metrics", "--listen", listen],
        env=os.environ | settings.environment() | {"COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+/metrics", line)
        if found is None:
            pytest.fail(f"the exporter does not start: {line}{process.stderr.read()}")
        yield found[0]
        assert process.poll() is None
    finally:
        assert stop(process, seconds=30) == 0
