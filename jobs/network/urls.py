"""Check the URLs of ledger, broker and store when the settings are read, and find the secrets in them.

The libraries ignore a mistyped option, so an option that protects could be lost: kombu would then continue
without checking the certificate. No message here repeats any part of a URL except the names of its options,
because a password with an unescaped `@` or `/` ends up where host, port or path belong.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from jobs.extras import install_hint

#: The options of `rediss://`, as kombu and redis-py name them.
_TLS_OPTIONS: Final = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_check_hostname", "ssl_certfile", "ssl_keyfile")

_ESCAPE: Final = "write characters such as @ : / ? # in a password in percent form"
_NO_BROKER: Final = f"is not a URL such as redis://user:password@host:6379/0; {_ESCAPE}"
_NO_API: Final = "is not a URL such as https://labelmill.example.org"
_NO_LEDGER: Final = f"is not a database URL such as postgresql://user:password@host/labelmill; {_ESCAPE}"


def check_ledger_url(text: str) -> str:
    """Return the ledger's URL, with the driver that we install for `postgresql://`.

    Raises ValueError if the ledger cannot be kept there, or if a TLS option would silently have no effect.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # ValueError if the port is not a number
        raise ValueError(_NO_LEDGER) from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("postgresql+psycopg", "sqlite", "sqlite+pysqlite"):
        raise ValueError(f"names {url.drivername}; the ledger needs postgresql:// or sqlite:///path")
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ValueError("names no file; several processes share the ledger, so it cannot be in memory")
        if not Path(url.database or "").is_absolute():
            raise ValueError("names a relative path; an absolute one is sqlite:////data/ledger.sqlite3")
    else:
        if text.count("@") > 1:  # what follows the first @ would be taken for the host
            raise ValueError(_NO_LEDGER)
        _check_postgresql(url)
    return url.render_as_string(hide_password=False)


def check_broker_url(text: str) -> str:
    """Return the broker's URL for kombu. Raises ValueError.

    For `rediss://`, the certificate check is written out if the URL leaves it to the default.
    """
    if not text.startswith(("redis://", "rediss://", "redis+socket://")):
        raise ValueError("must start with redis://, rediss:// or redis+socket://")
    if ";" in text:  # kombu reads what follows as a second broker, with its own options
        raise ValueError("names several brokers; name one. In a password, write ; as %3B")
    try:
        url = urlsplit(text)
    except ValueError:  # brackets without an address
        raise ValueError(_NO_BROKER) from None
    _check_parts(url)
    if url.scheme == "redis+socket":
        _options(url, known=("virtual_host",))
        return text
    if url.scheme == "redis":
        if "ssl_" in url.query:
            raise ValueError("does not use TLS, so its ssl_ options have no effect: write rediss://")
        _options(url, known=())
        return text
    options = _options(url, known=_TLS_OPTIONS)
    _check_tls(options)
    if "ssl_cert_reqs" in options:
        return text
    return f"{text.rstrip('?&')}{'&' if url.query else '?'}ssl_cert_reqs=required"


def check_store_url(url: str) -> str:
    """Return the store's URL or path, which may be any that fsspec knows.

    Raises ValueError for memory and relative paths, which would be another place in each process.
    """
    scheme, separator, path = url.partition("://")
    if not separator:
        scheme, path = "file", url
    if scheme.lower() == "memory":
        raise ValueError("names memory; several processes share the store, so it cannot be in memory")
    if scheme.lower() in ("file", "local") and not Path(path).is_absolute():
        raise ValueError(
            "names a relative path; use an absolute one, as in /data/store or file:///data/store"
        )
    return url


def check_api_url(text: str) -> str:
    """Return the HTTP API's URL, without the `/v1` that OpenAI's clients need. Raises ValueError."""
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        raise ValueError(_NO_API) from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(_NO_API)
    if url.username is not None or url.query or url.fragment or not (text.isascii() and text.isprintable()):
        raise ValueError("must have no user, password, query or fragment; the key is LABELMILL_API_KEY")
    return text.rstrip("/").removesuffix("/v1")


def check_api_key(text: str) -> str:
    """Return the HTTP API's key. Raises ValueError if it cannot be sent in a header."""
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("has characters that no key has: `labelmill keys create` prints one")
    return text


def _check_parts(url: SplitResult) -> None:
    """Raise ValueError if host, port or database is missing or malformed."""
    if "@" in url.path + url.query or url.netloc.count("@") > 1 or url.fragment:
        raise ValueError(_NO_BROKER)
    if url.scheme == "redis+socket":
        return
    try:
        _ = url.port
    except ValueError:
        raise ValueError(f"has a port that is not a number; {_ESCAPE}") from None
    if not url.hostname:
        raise ValueError("names no host: it belongs after the //")
    if url.path not in ("", "/") and not url.path[1:].isdecimal():
        raise ValueError("must end in the number of a database, such as /0")


def _options(url: SplitResult, *, known: tuple[str, ...]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name not in known:
            options_known = f"the options are {', '.join(known)}" if known else "such URLs have no options"
            raise ValueError(f"has an unknown option {name}; {options_known}")
        if name in options:
            raise ValueError(f"has the option {name} twice: keep one")
        options[name] = value
    return options


def _check_tls(options: dict[str, str]) -> None:
    """Raise ValueError if a TLS option is invalid, contradicts another one, or names an unusable file."""
    check = options.get("ssl_cert_reqs", "required")
    if check not in ("required", "none"):
        raise ValueError("must have ssl_cert_reqs=required, or ssl_cert_reqs=none to trust any server")
    if options.get("ssl_check_hostname", "true") not in ("true", "false"):
        raise ValueError("must have ssl_check_hostname=true, or false to trust any host the CA knows")
    if check == "none" and ("ssl_ca_certs" in options or "ssl_check_hostname" in options):
        raise ValueError("has ssl_cert_reqs=none, so nothing else about the server's certificate is checked")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("has an ssl_keyfile, but no ssl_certfile: add one")
    _check_tls_files(options)


def _check_tls_files(options: dict[str, str]) -> None:
    """Raise ValueError if a file that the options name cannot be used.

    redis-py would say only "PEM lib", and not before it connects.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name not in options:
            continue
        try:
            Path(options[name]).open("rb").close()
            if name == "ssl_ca_certs":
                context.load_verify_locations(options[name])
            elif name == "ssl_certfile":
                # An empty passphrase: without one, OpenSSL would ask on the terminal.
                context.load_cert_chain(options[name], options.get("ssl_keyfile"), password="")
        except ssl.SSLError:
            raise ValueError(
                f"has an {name} without a usable certificate or key: name PEM files that belong together"
            ) from None
        except OSError as error:
            raise ValueError(
                f"has an {name} that cannot be read ({error.strerror}): check the path and its permissions"
            ) from None


def _check_postgresql(url: URL) -> None:
    """Raise ValueError if an option is invalid, or names a CA that libpq would not enforce."""
    for name, value in url.query.items():
        if not isinstance(value, str):
            raise ValueError(f"has the option {name} twice: keep one")
    if "password" in url.query:
        raise ValueError("has the password among its options; write it before the host, user:password@host")
    mode = url.query.get("sslmode", "prefer")
    if mode not in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"):
        raise ValueError("has an unknown sslmode; the safest is sslmode=verify-full")
    if "sslrootcert" in url.query and mode not in ("verify-ca", "verify-full"):
        raise ValueError(
            f"has an sslrootcert, but sslmode={mode} does not enforce it: add sslmode=verify-full"
        )
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import make_conninfo
    except ImportError:
        raise ValueError(f"needs psycopg: {install_hint('postgres')}") from None
    try:
        make_conninfo("", **{str(name): str(value) for name, value in url.query.items()})
    except ProgrammingError as error:
        raise ValueError(f"has an {error}".strip()) from None


def without_secrets(text: str, *urls: str | None) -> str:
    """Return a library's message without the secrets of these URLs, which it may quote."""
    for secret in secrets_of(*urls):
        text = text.replace(secret, "***")
    return text


def secrets_of(*urls: str | None) -> list[str]:
    """Return the secrets of these URLs, longest first, because one may be part of another.

    They are the password, as written, decoded, and encoded the usual way; and the query, where stores have
    keys and signatures.
    """
    found: set[str] = set()
    for url in urls:
        _, _, rest = (url or "").partition("://")
        rest, _, query = rest.partition("?")
        password = rest.rpartition("@")[0].partition(":")[2]
        found |= {query, unquote(query), password, unquote(password), quote(unquote(password), safe="")}
    return sorted(found - {""}, key=len, reverse=True)
