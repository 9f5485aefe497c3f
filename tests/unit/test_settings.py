"""Settings: embedded services by default, clear errors, and secrets that are never shown."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest
from kombu.utils.url import parse_url
from sqlalchemy.engine import make_url

from jobs.cores import usable_cores
from jobs.errors import SettingsError
from jobs.limits import ArchiveLimits, ImageLimits, JobLimits
from jobs.settings import ENV_PREFIX, SECRETS, Settings
from jobs.storage.store import Store


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def setenv(monkeypatch):
    """Return a function: `setenv(CHUNK_IMAGES="5")` sets LABELMILL_CHUNK_IMAGES."""

    def setenv(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(ENV_PREFIX + name, value)

    return setenv


# ---- defaults -----------------------------------------------------------------------------------------


def test_without_a_setting_everything_is_embedded(monkeypatch, short_folder):
    # Given a user's home folder and no settings
    monkeypatch.setenv("HOME", str(short_folder))

    # When the settings are read
    settings = Settings.load()

    # Then everything is stored in one folder there
    home = short_folder / ".labelmill"
    assert settings.home == home
    assert make_url(settings.ledger).database == str(home / "ledger.sqlite3")
    assert settings.store == str(home / "store")
    assert settings.broker_socket == home / "broker" / "valkey.sock"
    assert settings.broker == f"redis+socket://{home}/broker/valkey.sock"
    assert settings.cache_dir == home / "cache"
    assert settings.embedded_broker
    assert settings.embedded_ledger

    # And the other settings have their documented defaults
    assert (settings.chunk_images, settings.lease_seconds, settings.mnist_dir) == (16384, 60.0, None)
    assert settings.processes == usable_cores()


def test_an_empty_setting_is_none(setenv):
    setenv(
        LEDGER_URL="", BROKER_URL="", STORE_URL="", CHUNK_IMAGES="", LEASE_SECONDS="", PROCESSES="", HOME=""
    )
    assert Settings.load() == Settings()


def test_what_is_set_is_taken(setenv, tmp_path):
    setenv(
        HOME=str(tmp_path),
        LEDGER_URL="postgresql://user:word@host:5433/labelmill",
        BROKER_URL="rediss://:word@host:6380/3",
        STORE_URL="s3://bucket/folder",
        MNIST_DIR="/data/mnist",
        CHUNK_IMAGES="100",
        LEASE_SECONDS="1.5",
        PROCESSES="3",
        MAX_IMAGE_BYTES="1000",
        MAX_IMAGE_PIXELS="2000",
        MAX_IMAGE_FRAMES="1",
        IMAGE_FORMATS="png, jpg ,,WebP",
        IMAGE_SECONDS="0.5",
        MAX_JOB_IMAGES="3000",
        MAX_JOB_BYTES="4000",
        MAX_ARCHIVE_MEMBERS="5000",
        MAX_ARCHIVE_EXPANSION="6",
    )
    settings = Settings.load()
    assert settings.home == tmp_path
    assert settings.ledger == "postgresql+psycopg://user:word@host:5433/labelmill"
    assert settings.broker == "rediss://:word@host:6380/3?ssl_cert_reqs=required"
    assert settings.store == "s3://bucket/folder"
    assert settings.mnist_dir == Path("/data/mnist")
    assert (settings.chunk_images, settings.lease_seconds, settings.processes) == (100, 1.5, 3)
    assert settings.image_limits == ImageLimits(1000, 2000, 1, ("PNG", "JPEG", "WEBP"))
    assert settings.archive_limits == ArchiveLimits(5000, 6)
    assert settings.job_limits == JobLimits(3000, 4000)
    assert settings.image_seconds == 0.5
    assert not settings.embedded_broker
    assert not settings.embedded_ledger


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_by_any_name_goes_through_the_driver_we_ship(scheme):
    assert Settings(ledger_url=f"{scheme}://u:p@h/d").ledger == "postgresql+psycopg://u:p@h/d"


def test_a_home_is_the_same_from_everywhere(setenv, monkeypatch, tmp_path):
    # Given a home relative to the current folder, and one relative to the user's home
    monkeypatch.chdir(tmp_path)
    setenv(HOME="state")
    assert Settings.load().home == tmp_path / "state"
    monkeypatch.setenv("HOME", "/users/anna")
    setenv(HOME="~/state")
    assert Settings.load().home == Path("/users/anna/state")


# ---- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEDGER_URL", "nonsense"),
        ("LEDGER_URL", "mysql://user:secret@host/db"),
        ("LEDGER_URL", "postgresql+asyncpg://user:secret@host/db"),
        ("LEDGER_URL", "postgresql://user:secret@host:port/db"),
        ("LEDGER_URL", "sqlite://"),
        ("LEDGER_URL", "sqlite:///"),
        ("LEDGER_URL", "sqlite:///:memory:"),
        ("LEDGER_URL", "sqlite:///ledger.sqlite3"),
        ("STORE_URL", "store"),
        ("STORE_URL", "~/store"),
        ("STORE_URL", "file://store"),
        ("STORE_URL", "local://store"),
        ("STORE_URL", "FILE://store"),
        ("STORE_URL", "memory://store"),
        ("API_URL", "nonsense"),
        ("API_URL", "ftp://host"),
        ("API_URL", "https://user:secret@host"),
        ("API_URL", "https://host/v1?key=secret"),
        ("API_URL", "https://host:port"),
        ("API_KEY", "secret\tkey"),
        ("BROKER_URL", "nonsense"),
        ("BROKER_URL", "amqp://user:secret@host"),
        ("BROKER_URL", "redis://host:port/0"),
        ("CHUNK_IMAGES", "0"),
        ("CHUNK_IMAGES", "100001"),
        ("CHUNK_IMAGES", "many"),
        ("LEASE_SECONDS", "0.9"),
        ("LEASE_SECONDS", "86401"),
        ("LEASE_SECONDS", "nan"),
        ("PROCESSES", "0"),
        ("PROCESSES", "1025"),
        ("HOME", "~nobody-of-this-name/state"),
        ("MAX_IMAGE_BYTES", "0"),
        ("MAX_IMAGE_FRAMES", "0"),
        ("IMAGE_FORMATS", "PNG,PSD"),
        ("IMAGE_FORMATS", " , "),
        ("IMAGE_SECONDS", "0"),
        ("MAX_JOB_IMAGES", "0"),
        ("MAX_ARCHIVE_EXPANSION", "0"),
    ],
)
def test_what_is_wrong_is_named_and_no_secret_with_it(setenv, name, value):
    setenv(**{name: value})
    with pytest.raises(SettingsError, match=rf"^{ENV_PREFIX}{name}: ") as wrong:
        Settings.load()
    assert "secret" not in str(wrong.value)
    assert "pydantic" not in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_everything_that_is_wrong_is_named_and_never_quoted(setenv):
    # A password may end up in the wrong setting.
    names = ("CHUNK_IMAGES", "LOG_FORMAT", "LEASE_SECONDS", "STORE_URL")
    setenv(**dict.fromkeys(names, "secret"))
    with pytest.raises(SettingsError) as wrong:
        Settings.load()
    assert "secret" not in str(wrong.value)
    named = {line.partition(":")[0] for line in str(wrong.value).splitlines()}
    assert named == {f"{ENV_PREFIX}{name}" for name in names}


# ---- secrets ------------------------------------------------------------------------------------------


def test_no_secret_is_shown():
    settings = Settings(
        home=Path("/state"),
        ledger_url="postgresql://user:secret@host/db",
        broker_url="redis://:secret@host",
        store_url="s3://key:secret@bucket",
    )
    assert "secret" not in repr(settings)
    assert "secret" not in str(settings)
    assert "secret" not in f"{settings!r:>10}"


def test_no_secret_is_shown_by_settings_that_are_wrong():
    # given a program that passes URLs that are refused
    with pytest.raises(ValueError, match="ledger_url") as wrong:
        Settings(
            ledger_url="mysql://user:secret@host/db", broker_url="amqp://:secret@host", store_url=["secret"]
        )
    assert "secret" not in str(wrong.value)
    assert "secret" not in repr(wrong.value)


def test_the_processes_of_a_stack_have_the_settings_of_their_parent(setenv, monkeypatch, tmp_path):
    # Given settings, some of them defaults, and one in a file
    (tmp_path / "url").write_text("redis://:secret@host:6379/0")
    setenv(BROKER_URL_FILE=str(tmp_path / "url"))
    settings = Settings.load(
        home=tmp_path,
        ledger_url="postgresql://user:pa%40ss@host/db",
        chunk_images=7,
        lease_seconds=2.5,
        image_formats=("PNG", "GIF"),
        max_image_pixels=99,
    )

    # When another process reads them from its environment, in which the file is still named
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)

    # Then it has the same settings
    assert Settings.load() == settings


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_be_in_a_file(setenv, tmp_path, name):
    # Given a file with a line end, as an editor writes it
    values = {
        "api_key": "labelmill_secret",
        "ledger_url": "postgresql+psycopg://user:secret@host/db",
        "broker_url": "redis://:secret@host:6379/0",
        "store_url": "s3://key:secret@bucket",
    }
    (tmp_path / name).write_text(values[name] + "\n")
    setenv(**{f"{name.upper()}_FILE": str(tmp_path / name)})

    # When the settings are read, then they have the file's content
    assert getattr(Settings.load(), name) == values[name]

    # And an argument takes precedence over the file
    assert getattr(Settings.load(**{name: None}), name) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file or directory): check the path and its permissions"),
        (b"", "is empty: write the value in it"),
        (b" \n", "is empty: write the value in it"),
        (b"\xff\xfe", "is not text: write the value in UTF-8"),
    ],
)
def test_a_file_without_a_secret_is_named(setenv, tmp_path, content, words):
    path = tmp_path / "url"
    if content is not None:
        path.write_bytes(content)
    setenv(BROKER_URL_FILE=str(path))
    with pytest.raises(SettingsError, match=f"^LABELMILL_BROKER_URL_FILE: {path} {re.escape(words)}$"):
        Settings.load()


def test_a_secret_and_a_file_with_it_are_one_too_many(setenv, tmp_path):
    setenv(BROKER_URL="redis://:old@host", BROKER_URL_FILE=str(tmp_path / "new"))
    with pytest.raises(SettingsError, match="BROKER_URL and LABELMILL_BROKER_URL_FILE are both set"):
        Settings.load()


# ---- homes --------------------------------------------------------------------------------------------


def test_a_long_home_has_a_short_socket(tmp_path):
    # Given two homes whose paths are longer than a Unix socket's may be
    long = tmp_path / ("x" * 120)
    one, two = Settings(home=long / "one"), Settings(home=long / "two")

    # Then their sockets are short, in the temporary folder, distinct, and always the same
    for settings in (one, two):
        assert len(os.fsencode(settings.broker_socket)) <= 100
        assert settings.broker_socket.is_relative_to(tempfile.gettempdir())
        assert str(os.getuid()) in settings.broker_socket.parent.name
    assert one.broker_socket != two.broker_socket
    assert one.broker_socket == Settings(home=long / "one").broker_socket

    # And everything else stays in the home
    assert make_url(one.ledger).database == str(long / "one" / "ledger.sqlite3")


def test_a_path_is_as_long_as_its_bytes():
    # Given a home of 60 one-byte letters, and one of 60 two-byte letters
    short, long = Settings(home=Path("/" + "e" * 60)), Settings(home=Path("/" + "é" * 60))
    assert short.broker_socket.is_relative_to(short.home)
    assert not long.broker_socket.is_relative_to(long.home)


@pytest.mark.parametrize("name", ["a b", "é", "a+b", "a@b", "a:b", "a=b", "a%20b", "a#b", "a?b"])
def test_the_embedded_services_lie_in_any_home(tmp_path, name):
    settings = Settings(home=tmp_path / name)
    assert make_url(settings.ledger).database == str(tmp_path / name / "ledger.sqlite3")
    assert "/" + parse_url(settings.broker)["virtual_host"] == str(settings.broker_socket)

    # When a file is stored, Then nothing is written outside the home
    Store(settings.store).put("payloads/a", b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (settings.home / "store" / "payloads" / "a").read_bytes() == b"x"
