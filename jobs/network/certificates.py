"""Read when the TLS certificate of the broker or the ledger expires, in a separate handshake.

PostgreSQL's client library only says "certificate verify failed", whatever the cause, and neither client
library warns in time.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from sqlalchemy.engine import URL, make_url

#: How long a server may take to answer.
_ANSWER_SECONDS: Final = 3.0

#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME: also show a certificate that has expired.
_NO_CHECK_TIME: Final = 0x200000

#: PostgreSQL's request for TLS: its length, and a number instead of the protocol's version.
_SSL_REQUEST: Final = bytes.fromhex("0000000804d2162f")


def broker_certificate_end(url: str) -> datetime | None:
    """Return when the broker's certificate expires, or None if it is not checked or cannot be read."""
    parts = urlsplit(url)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.scheme != "rediss" or options.get("ssl_cert_reqs") == "none":
        return None
    return _certificate_end(parts.hostname or "localhost", parts.port or 6379, options.get("ssl_ca_certs"))


def ledger_certificate_end(url: str | URL) -> datetime | None:
    """Return when PostgreSQL's certificate expires, or None if it is not checked or cannot be read."""
    parsed = make_url(url)
    if parsed.query.get("sslmode") not in ("verify-ca", "verify-full"):
        return None
    ca = str(parsed.query.get("sslrootcert", Path("~/.postgresql/root.crt").expanduser()))
    ca_file = None if ca == "system" else ca
    return _certificate_end(parsed.host or "localhost", parsed.port or 5432, ca_file, _SSL_REQUEST)


def _certificate_end(host: str, port: int, ca_file: str | None, request: bytes = b"") -> datetime | None:
    with suppress(OSError, ValueError):
        context = ssl.create_default_context(cafile=ca_file)
        context.check_hostname = False
        context.verify_flags |= _NO_CHECK_TIME
        with socket.create_connection((host, port), timeout=_ANSWER_SECONDS) as plain:
            if request:
                plain.sendall(request)
                plain.recv(1)  # the server agrees
            with context.wrap_socket(plain, server_hostname=host) as tls:
                found = tls.getpeercert() or {}
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), UTC)
    return None
