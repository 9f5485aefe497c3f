"""The API counts its requests, and serves the numbers on a separate port."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import httpx

from tests.console import Home, until
from tests.scraping import scrape


def test_requests_are_counted_by_status(short_folder: Path, tmp_path: Path) -> None:
    # Given a server with metrics
    home = Home(short_folder / "home")
    log = tmp_path / "serve.log"
    log.write_bytes(b"")
    with home.started("serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", log=log):
        until(lambda: "metrics at" in log.read_text(), "the metrics are served")
        [url] = re.findall(r"HTTP API at (\S+);", log.read_text())
        [port] = re.findall(r"metrics at http://127.0.0.1:(\d+)/metrics", log.read_text())
        assert scrape(int(port)).by("api_request_seconds_count") == {}

        # When there are requests, Then each is counted by its status, with its time
        paths = ["/healthz", "/healthz", "/v1/models", "/nothing"]
        statuses = Counter(f"{httpx.get(url + path).status_code // 100}xx" for path in paths)
        now = scrape(int(port))
    assert now.by("api_request_seconds_count") == statuses
    assert set(statuses) == {"2xx", "4xx"}
    assert now.by("api_request_seconds_sum")["2xx"] < 5
