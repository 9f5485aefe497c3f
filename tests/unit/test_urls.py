"""URLs of ledger and broker: settings without effect are refused, and no secret is repeated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kombu import Connection

from jobs.network.urls import check_broker_url, check_ledger_url
from tests.tls import Certificates

BROKER = "rediss://mill:s3cret@host:6380/0"
LEDGER = "postgresql://mill:s3cret@host/db"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


# ---- the broker ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [BROKER, f"{BROKER}?", f"{BROKER}?ssl_check_hostname=true", "rediss://host"])
def test_the_certificate_is_checked_where_nothing_is_said_of_it(url: str) -> None:
    ssl = Connection(check_broker_url(url)).ssl
    assert ssl["ssl_cert_reqs"].name == "CERT_REQUIRED"
    assert ssl.get("ssl_check_hostname", True) is True


def test_no_check_is_to_be_had_for_the_asking() -> None:
    ssl = Connection(check_broker_url(f"{BROKER}?ssl_cert_reqs=none")).ssl
    assert ssl["ssl_cert_reqs"].name == "CERT_NONE"


def test_what_is_said_of_tls_arrives(certificates: Certificates) -> None:
    options = {
        "ssl_cert_reqs": "required",
        "ssl_ca_certs": str(certificates.ca),
        "ssl_check_hostname": "false",
        "ssl_certfile": str(certificates.client_cert),
        "ssl_keyfile": str(certificates.client_key),
    }
    query = "&".join(f"{name}={value}" for name, value in options.items())
    ssl = Connection(check_broker_url(f"{BROKER}?{query}")).ssl
    assert ssl.pop("ssl_cert_reqs").name == "CERT_REQUIRED"
    assert ssl.pop("ssl_check_hostname") is False
    assert ssl == {name: options[name] for name in ssl}
    assert len(ssl) == 3


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://:s3cret@host:6379/15",
        "redis://mill:s%40%3A%2F%3F%23%3Bt@[::1]:6379/",
        "redis+socket:///run/redis.sock",
        "redis+socket://mill:s3cret@/run/redis.sock?virtual_host=2",
    ],
)
def test_a_url_without_tls_is_left_as_it_is(url: str) -> None:
    assert check_broker_url(url) == url
    Connection(check_broker_url(url))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"{BROKER}?ssl_cert_reqs=non", "ssl_cert_reqs=required"),
        (f"{BROKER}?ssl_cert_reqs=", "ssl_cert_reqs=required"),
        (f"{BROKER}?ssl_cert_reqs=required&ssl_cert_reqs=none", "has the option ssl_cert_reqs twice"),
        (f"{BROKER}?ssl_cert_req=required", "has an unknown option ssl_cert_req;"),
        (f"{BROKER}?sslmode=verify-full", "has an unknown option sslmode;"),
        (f"{BROKER}?ssl_check_hostname=0", "ssl_check_hostname=true"),
        (f"{BROKER}?ssl_cert_reqs=none&ssl_check_hostname=true", "nothing else"),
        (f"{BROKER}?ssl_cert_reqs=none&ssl_ca_certs=/dev/null", "nothing else"),
        (f"{BROKER}?ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs that cannot be read (No such file"),
        (f"{BROKER}?ssl_ca_certs=/tmp", "ssl_ca_certs that cannot be read (Is a directory"),
        (f"{BROKER}?ssl_ca_certs={__file__}", "ssl_ca_certs without a usable certificate"),
        (f"{BROKER}?ssl_certfile={__file__}", "ssl_certfile without a usable certificate or key"),
        (f"{BROKER}?ssl_keyfile={__file__}", "no ssl_certfile"),
        ("redis://:s3cret@host/0?ssl_cert_reqs=required", "write rediss://"),
        ("redis://:s3cret@host/0?socket_timeout=3", "has an unknown option socket_timeout;"),
        ("redis+socket:///run/redis.sock?ssl_cert_reqs=required", "has an unknown option ssl_cert_reqs;"),
        (f"{BROKER};redis://:s3cret@other/0", "several brokers"),
        ("redis://:s3cret@host/zero", "number of a database"),
        ("redis://:s3cret@host/0/1", "number of a database"),
        ("redis:///0", "no host"),
        ("redis://:6379/0", "no host"),
    ],
)
def test_what_would_mean_something_else_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as refused:
        check_broker_url(url)
    assert "s3cret" not in str(refused.value)


def test_a_key_that_belongs_to_another_certificate_is_refused(
    certificates: Certificates, tmp_path: Path
) -> None:
    other = Certificates(tmp_path)
    pair = f"ssl_certfile={certificates.client_cert}&ssl_keyfile={other.client_key}"
    with pytest.raises(ValueError, match="ssl_certfile without a usable certificate or key"):
        check_broker_url(f"{BROKER}?{pair}")


# ---- the ledger ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("sslmode=verify_full", "unknown sslmode"),
        ("sslmode=verify-full&sslmode=disable", "has the option sslmode twice"),
        ("sslrootcert=/etc/ca.pem", "add sslmode=verify-full"),
        ("sslmode=prefer&sslrootcert=/etc/ca.pem", "add sslmode=verify-full"),
        ("sslmode=require&sslrootcert=/etc/ca.pem", "add sslmode=verify-full"),
        ("ssl_mode=verify-full", 'invalid connection option "ssl_mode"'),
        ("ssl_cert_reqs=required", 'invalid connection option "ssl_cert_reqs"'),
        ("password=s3cret", "before the host"),
    ],
)
def test_what_libpq_would_not_insist_on_is_refused(query: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as refused:
        check_ledger_url(f"{LEDGER}?{query}")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "query",
    [
        "sslmode=verify-full",
        "sslmode=verify-full&sslrootcert=system",
        "sslmode=verify-ca&sslrootcert=/etc/ca.pem&sslcert=/etc/me.pem&sslkey=/etc/me.key",
        "sslmode=require",
        "host=/run/postgresql&port=5433",
    ],
)
def test_what_libpq_knows_is_left_to_it(query: str) -> None:
    checked = check_ledger_url(f"{LEDGER}?{query}")
    assert checked.startswith("postgresql+psycopg://mill:s3cret@host/db?")
    for option in query.split("&"):
        assert option.partition("=")[0] in checked


# ---- secrets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", list("@:/?#;%[]&=+ "))
@pytest.mark.parametrize(
    "place", ["s3{}cret", "{}s3cret", "s3cret{}", "s3@3{}cret", "1{}s3cret@2", "[s3cret]{}"]
)
@pytest.mark.parametrize(
    "url",
    [
        "redis://mill:{}@host:6379/0",
        "rediss://mill:{}@host:6380/0?ssl_cert_reqs=required",
        "redis+socket://:{}@/run/redis.sock",
        "postgresql://mill:{}@host:5432/db?sslmode=require",
    ],
)
def test_a_password_that_is_not_escaped_is_not_repeated(url: str, place: str, letter: str) -> None:
    # given a password with an unescaped letter that has a meaning in URLs
    text = url.format(place.format(letter))
    check = check_ledger_url if url.startswith("postgresql") else check_broker_url

    # when the URL is checked, then no part of the password is in the error or after the host
    try:
        said = check(text).partition("@")[2]
    except ValueError as refused:
        said = str(refused)
    assert "s3" not in said
    assert "cret" not in said
