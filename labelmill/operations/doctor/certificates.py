"""Check how long the certificates of broker and ledger are still valid."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from labelmill.operations.doctor.findings import Finding, ok, warning

#: A certificate that expires within this time is reported, as by the alert `LabelmillCertificateExpires`.
SOON: Final = timedelta(days=14)


def check_certificate(end: datetime | None, service: str) -> Iterator[Finding]:
    """Yield a finding about the end of the service's certificate, if it has one that is checked.

    If it has expired, the service cannot be used, and another finding says so.
    """
    if end is None:
        return
    what = f"its certificate is valid until {end.astimezone(UTC):%Y-%m-%d}"
    is_soon = end - datetime.now(UTC) < SOON
    yield warning(what, fix=f"renew the certificate of the {service}'s server") if is_soon else ok(what)
