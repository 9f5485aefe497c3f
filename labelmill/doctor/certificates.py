"""Check how long the certificates of broker and ledger are still valid."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from labelmill.console import format_duration
from labelmill.doctor.findings import Finding, ok, warning

#: A certificate that expires within this time is reported, as by the alert `LabelmillCertificateExpires`.
SOON: Final = timedelta(days=14)


def check_certificate(end: datetime | None, service: str) -> Iterator[Finding]:
    """Yield how long the service's certificate is valid, if it has one that is checked.

    If it has expired, the service cannot be used, and another finding says so.
    """
    if end is None:
        return
    left = end - datetime.now(UTC)
    what = f"its certificate expires in {format_duration(left.total_seconds())}"
    yield ok(what) if left > SOON else warning(what, fix=f"renew the certificate of the {service}'s server")
