"""Code of others that lies in the project is exactly what they published, with its licence."""

from __future__ import annotations

import hashlib
from pathlib import Path

import labelmill.web

STATIC = Path(labelmill.web.__file__).parent / "static"


def test_htmx_is_what_was_published_with_its_licence() -> None:
    # htmx 4.0.1, dist/htmx.min.js of the npm package htmx.org
    digest = hashlib.sha256((STATIC / "htmx.min.js").read_bytes()).hexdigest()
    assert digest == "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"
    assert "Zero-Clause BSD" in (STATIC / "htmx.LICENSE").read_text()
